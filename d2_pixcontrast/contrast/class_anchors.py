"""Representative anchors of classes: Sung et al., "Contextrast", CVPR 2024."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .distributed import sum_over_ranks

# A mean of unit vectors that is shorter than this has no direction to speak of; normalising it
# would multiply gradients without bound.
_SHORTEST_MEAN = 1e-4


class ClassAnchors(NamedTuple):
    """One anchor per level and class.

    Attributes:
        rows: (I, C, D), 0 for classes that a level does not have.
        present: (I, C) bool.
    """

    rows: torch.Tensor
    present: torch.Tensor


def class_anchors(
    sums: torch.Tensor, counts: torch.Tensor, *, all_ranks: bool = False
) -> ClassAnchors:
    """Mean embedding of every class at every level: a_i^n of the paper.

    With ``all_ranks`` the means run over the batch of all ranks. Their gradient is that of the sum
    of all ranks' losses; DDP's average over ranks then makes it the gradient of the mean loss, as
    one process with all images and that loss has it. Every rank has to call it, in the forward and
    the backward pass.

    Args:
        sums: (I, C, D) sums of unit embeddings over the rank's batch.
        counts: (I, C) numbers of pixels, of the same dtype.
        all_ranks: mean over the pixels of all ranks.
    """
    if all_ranks:  # one collective for all levels
        total = sum_over_ranks(torch.cat([sums, counts[:, :, None]], dim=2))
        sums, counts = total[:, :, :-1], total[:, :, -1].detach()
    return ClassAnchors(sums / counts.clamp(min=1)[:, :, None], counts > 0)


def update_anchors(
    anchors: ClassAnchors, *, low_weight: float = 0.7, normalize: bool = True
) -> ClassAnchors:
    """Mix the anchors of each level with those of the deepest one, which has seen most context.

    ahat_i^n = w_l a_i^n + w_h a_I^n with w_h = 1 - w_l, where class n is present at both levels,
    else a_i^n.

    Args:
        anchors: of I levels, from shallow to deep.
        low_weight: w_l, of a level's own anchor, in [0, 1].
        normalize: bring the result to length 1.
    """
    rows, present = anchors
    both = (present & present[-1:])[:, :, None]
    mixed = torch.lerp(rows[-1:].expand_as(rows), rows, low_weight).where(both, rows)
    if normalize:
        mixed = F.normalize(mixed, dim=2, eps=_SHORTEST_MEAN)
    return ClassAnchors(mixed, present)
