"""What the heads with training-only terms have in common."""

import logging

import torch
from detectron2.utils import comm
from torch import nn

from ..compat import current_event_storage
from .terms import TermInputs, TrainingProgress

logger = logging.getLogger(__name__)


class HeadWithTerms(nn.Module):
    """Base of segmentation heads that run terms beside their own losses.

    A subclass calls :meth:`set_terms` last in its constructor, and :meth:`term_losses` in training.
    """

    def __init__(self):
        super().__init__()
        self._progress = None
        self._forwards = 0
        self.align_corners = False

    def set_terms(self, terms: nn.ModuleDict | None, *, ignore_value: int, scalars_period: int):
        """
        Args:
            terms: name to :class:`~d2_pixcontrast.modeling.Term`; training only.
            ignore_value: label without a class.
            scalars_period: iterations between two records of the terms' scalars.
        """
        self.terms = terms if terms is not None else nn.ModuleDict()
        self.ignore_value = ignore_value
        self.scalars_period = scalars_period

    def set_progress(self, progress: TrainingProgress) -> None:
        """Tell the terms where training stands. Without this the head counts training forwards."""
        self._progress = progress

    def term_losses(
        self,
        features: dict[str, torch.Tensor],
        decoded: torch.Tensor,
        logits: torch.Tensor,
        targets: torch.Tensor,
        progress: TrainingProgress | None = None,
    ) -> dict[str, torch.Tensor]:
        """Losses of all terms, by name.

        Args:
            features: {name: (B, C, h, w)} of the backbone.
            decoded: (B, C, h, w) input of the classifier; the terms know it as "decoder".
            logits: (B, num_classes, h, w) of the classifier.
            targets: (B, H, W) int64 labels.
            progress: where training stands, if that has been asked in this forward already.
        """
        losses: dict[str, torch.Tensor] = {}
        if not len(self.terms):
            return losses
        inputs = TermInputs(
            features={**features, "decoder": decoded},
            logits=logits,
            labels=targets,
            ignore_value=self.ignore_value,
            progress=progress or self.next_progress(),
            first_image=comm.get_rank() * targets.shape[0],
            align_corners=self.align_corners,
        )
        for term in self.terms.values():
            term_losses, scalars = term(inputs)
            losses.update(term_losses)
            self._record(scalars)
        return losses

    def next_progress(self) -> TrainingProgress:
        """Where training stands; to be asked once in every training forward."""
        if self._progress is not None:
            return self._progress
        if not self._forwards:
            logger.warning(
                "Nobody tells the head where training stands: warm-ups end after one iteration and "
                "a memory's momentum stays as it is. Add the TrainingProgressHook of "
                "d2_pixcontrast.engine to your trainer"
            )
        progress = TrainingProgress(iteration=self._forwards, max_iter=max(self._forwards, 1))
        self._forwards += 1
        return progress

    def _record(self, scalars: dict[str, torch.Tensor]) -> None:
        """Write scalars; only now and then, since each of them waits for the device."""
        storage = current_event_storage()
        if scalars and storage is not None and (storage.iter + 1) % self.scalars_period == 0:
            storage.put_scalars(**_by_name(scalars))


def _by_name(scalars: dict[str, torch.Tensor]) -> dict[str, float]:
    """0-d tensors by their name, the items of (C,) tensors as ``<name>/<class>``."""
    result = {}
    for name, value in scalars.items():
        if value.dim():
            result.update({f"{name}/{c}": v for c, v in enumerate(value.tolist())})
        else:
            result[name] = float(value)
    return result
