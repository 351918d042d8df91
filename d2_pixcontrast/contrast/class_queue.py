"""First-in-first-out stores of vectors by class."""

import logging
from typing import NamedTuple

import torch
from torch import nn


class ClassEntries(NamedTuple):
    """Entries of a memory, sorted by class.

    Attributes:
        rows: (C, M, D) vectors without gradient, of length 1; finite in empty slots too.
        fill: (C,) int64, slots below it are filled, the others take no part.
    """

    rows: torch.Tensor
    fill: torch.Tensor


class ClassQueue(nn.Module):
    """A first-in-first-out store of ``size`` vectors for every class.

    The counter ``written`` (C,) alone says what is valid: slots below min(written, size) are
    filled, and the next one to be written is written % size.
    """

    def __init__(self, num_classes: int, size: int, dim: int, dtype: torch.dtype = torch.float32):
        """
        Args:
            num_classes: C.
            size: M, entries per class.
            dim: D, channels of an entry.
            dtype: of the entries.
        """
        super().__init__()
        self.register_buffer("rows", torch.zeros(num_classes, size, dim, dtype=dtype))
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def fill(self) -> torch.Tensor:
        """(C,) int64, filled slots of each class; they come first."""
        return self.written.clamp(max=self.rows.shape[1])

    def entries(self) -> ClassEntries:
        """The entries as :func:`pixel_contrast_loss` takes them: a view, not a copy."""
        return ClassEntries(self.rows, self.fill)

    def extra_repr(self) -> str:
        return f"{tuple(self.rows.shape)}, {self.rows.dtype}"

    def reset(self) -> None:
        """Empty the store."""
        self.rows.zero_()
        self.written.zero_()

    @torch.no_grad()
    def push(self, rows: torch.Tensor, mask: torch.Tensor) -> None:
        """Append to each class the rows that ``mask`` marks, in order. Of too many the last stay.

        Args:
            rows: (C, K, D).
            mask: (C, K) bool.
        """
        num_classes, size, dim = self.rows.shape
        rank = mask.cumsum(1) - 1
        total = mask.sum(1)
        kept = (mask & (rank >= (total - size)[:, None])).flatten()
        classes = torch.arange(num_classes, device=rows.device)[:, None]
        target = (classes * size + (self.written[:, None] + rank) % size).flatten()

        # The shape must not depend on how many are kept: the others write again what the first
        # kept one writes, or, if there is none, what slot 0 holds already.
        item = torch.arange(kept.numel(), device=rows.device)
        source = torch.where(kept, item, kept.long().argmax())
        some = kept.any()
        flat = self.rows.view(-1, dim)
        values = rows.reshape(-1, dim)[source].to(flat.dtype)
        flat.index_copy_(
            0, torch.where(some, target[source], 0), torch.where(some, values, flat[:1])
        )
        self.written += total

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        """Load both buffers or neither.

        A store of another shape starts empty. Checkpointers that drop tensors of other shapes leave
        the counter alone behind, which must not declare zeros to be entries.
        """
        found = {name: state_dict.get(prefix + name) for name in self._buffers}
        if all(v is not None and v.shape == self._buffers[n].shape for n, v in found.items()):
            super()._load_from_state_dict(
                state_dict,
                prefix,
                local_metadata,
                strict,
                missing_keys,
                unexpected_keys,
                error_msgs,
            )
            return
        present = any(value is not None for value in found.values())
        if present:
            logging.getLogger(__name__).info(
                f"{prefix}rows: the checkpoint holds another shape than {tuple(self.rows.shape)}; "
                "this store starts empty"
            )
        else:
            missing_keys.extend(prefix + name for name in found)
        self.reset()  # also without any key: old entries do not fit the weights just loaded
