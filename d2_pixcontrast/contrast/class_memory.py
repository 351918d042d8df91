"""What the memories have in common that a network reads by class."""

import contextlib
import logging
from typing import NamedTuple

import torch
from torch import nn

from .resize import nearest_resize
from .upsampled import UpsampledFeatures

UPDATE_GRIDS = ("label", "grid")


class MemoryEntries(NamedTuple):
    """Entries of a memory as rows, without gradient.

    Attributes:
        rows: (C * K, D), entry k of class c in row c * K + k.
        labels: (C * K,) int64, their classes.
        mask: (C * K,) bool, the filled ones.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor


class LabelledPixels(NamedTuple):
    """Features at the pixels of a label map.

    Attributes:
        features: at (B, H, W) pixels, in float32 or wider.
        classes: (B, H, W) int64 in 0..C-1, 0 at pixels that do not count.
        valid: (B, H, W) 1 at pixels that count, else 0, in the features' dtype.
    """

    features: UpsampledFeatures
    classes: torch.Tensor
    valid: torch.Tensor


class ClassMemory(nn.Module):
    """K entries of D channels for each of C classes, read by class probabilities.

    Subclasses have ``entries`` (C, K, D) and ``filled`` (C, K), tell how they ``update`` and what
    an empty memory is (``reset``). All their buffers are loaded together or not at all.
    """

    def __init__(self, num_classes: int, channels: int, *, entries_per_class: int, update_at: str):
        """
        Args:
            num_classes: C.
            channels: D, of the features that the memory learns from.
            entries_per_class: K.
            update_at: "label": features are upsampled to the labels, as published; "grid": labels
                are taken to the features' grid by nearest neighbour.

        Raises:
            ValueError: a number is below 1, or ``update_at`` is unknown.
        """
        super().__init__()
        if min(num_classes, channels, entries_per_class) < 1:
            raise ValueError(
                f"a memory of {num_classes} classes with {entries_per_class} entries "
                f"(ENTRIES_PER_CLASS) of {channels} channels: each has to be at least 1"
            )
        if update_at not in UPDATE_GRIDS:
            raise ValueError(f"UPDATE_AT is {update_at!r}; known are {UPDATE_GRIDS}")
        self.num_classes = num_classes
        self.channels = channels
        self.entries_per_class = entries_per_class
        self.update_at = update_at

    @property
    def read_channels(self) -> int:
        """K * D, channels of what :meth:`read` returns."""
        return self.entries_per_class * self.channels

    def read(self, probabilities: torch.Tensor, *, hard: bool = False) -> torch.Tensor:
        """What the memory holds for every pixel's likely classes, r = P @ M.

        As published, the k-th entries of all classes are read together, and an empty class is not
        left out of the mean: see the memory at hand for what it reads as.

        Args:
            probabilities: (B, C, h, w); gradients reach them unless ``hard``.
            hard: read the likeliest class alone.

        Returns:
            (B, K * D, h, w) in the entries' dtype: D channels of the first entries, then of the
            second ones, and so on.
        """
        # A copy, because the memory may be updated before the backward pass.
        entries = self.entries.flatten(1).clone()
        if hard:
            return entries[probabilities.argmax(dim=1)].permute(0, 3, 1, 2)
        flat = probabilities.to(entries.dtype).flatten(2)
        with without_autocast(probabilities):
            return torch.matmul(entries.t(), flat).unflatten(2, probabilities.shape[2:])

    def class_entries(self) -> MemoryEntries:
        """All entries (copies), for representation-consistent learning."""
        labels = torch.arange(self.num_classes, device=self.filled.device)
        return MemoryEntries(
            self.entries.flatten(0, 1).clone(),
            labels.repeat_interleave(self.entries_per_class),
            self.filled.flatten(),
        )

    def fill_ratio(self) -> torch.Tensor:
        """(C,) share of each class' entries that are filled."""
        return self.filled.float().mean(dim=1)

    def extra_repr(self) -> str:
        shape = (self.num_classes, self.entries_per_class, self.channels)
        return f"{shape}, update_at={self.update_at}"

    def labelled_pixels(
        self, features: torch.Tensor, labels: torch.Tensor, ignore_value: int
    ) -> LabelledPixels:
        """What :meth:`update` learns from.

        Args:
            features: (B, D, h, w) of any floating type.
            labels: (B, H, W) int64 of any size.
            ignore_value: label of pixels without a class; ids outside 0..C-1 have none either.

        Raises:
            ValueError: features of another number of channels, or labels of another batch.
        """
        if features.shape[1] != self.channels or len(features) != len(labels):
            raise ValueError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} do not fit "
                f"each other and a memory of {self.channels} channels"
            )
        if self.update_at == "grid":
            labels = nearest_resize(labels, features.shape[2:])
        dtype = torch.promote_types(features.dtype, torch.float32)
        pixels = UpsampledFeatures(features.to(dtype), labels.shape[1:])
        valid = (labels != ignore_value) & (labels >= 0) & (labels < self.num_classes)
        return LabelledPixels(pixels, labels.where(valid, 0), (valid & pixels.finite).to(dtype))

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        """Load all buffers or none: a memory of another shape starts empty, as does a missing one.

        Old entries would not fit the weights just loaded.
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
        if any(value is not None for value in found.values()):
            logging.getLogger(__name__).warning(
                f"{prefix}*: the checkpoint's memory has another shape than "
                f"{self.extra_repr()}; it starts empty"
            )
        else:
            missing_keys.extend(prefix + name for name in found)
        self.reset()


def without_autocast(tensor: torch.Tensor):
    """A context in which the tensor's device computes in the precision it is given."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()  # the meta device, on which models are only sized
