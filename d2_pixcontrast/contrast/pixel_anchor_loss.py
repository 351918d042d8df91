"""Pixels against the representative anchors of classes."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .contrast_sets import log_sum
from .sampling import PixelSample


class AnchorNegatives(NamedTuple):
    """Negatives of class anchors.

    Attributes:
        cosines: (C, E) of the anchors with them.
        mask: (C, E) bool, which of them is a negative of which anchor.
    """

    cosines: torch.Tensor
    mask: torch.Tensor


class PixelAnchorLoss(NamedTuple):
    """Result of :func:`pixel_anchor_loss`; all but the loss carry no gradient.

    Attributes:
        loss: scalar, mean over the anchors that take part.
        num_anchors: scalar, how many these are.
        num_unserved: scalar, how many of them ``negatives`` had nothing for.
        pos_sim: scalar, mean over these anchors of the mean cosine with their positives.
        neg_sim: the same for the negatives that were used.
    """

    loss: torch.Tensor
    num_anchors: torch.Tensor
    num_unserved: torch.Tensor
    pos_sim: torch.Tensor
    neg_sim: torch.Tensor


def pixel_anchor_loss(
    cosines: torch.Tensor,
    sample: PixelSample,
    present: torch.Tensor,
    *,
    negatives: AnchorNegatives | None = None,
    temperature: float = 0.1,
) -> PixelAnchorLoss:
    """Contextrast's loss of one level: Sung et al., CVPR 2024.

    With s_z = a z / tau, the positives Z+ (the sampled pixels of the anchor's class) and its
    negatives Z-::

        ell(a) = -1 / |Z+| sum_{z+} log[ exp(s_z+) / (exp(s_z+) + sum_{z-} exp(s_z-)) ]

    The loss is the mean of ell over the classes that have an anchor and a positive. A sample of the
    positives estimates their mean without bias. Negatives are summed, not averaged: a sample of
    them stands for itself, and denominator and loss are smaller than with all.

    An anchor that no negative serves is contrasted with the sampled pixels of the other classes;
    without such pixels its loss is 0.

    Args:
        cosines: (C, S) of the anchors with the sampled pixels, in float32 or wider.
        sample: classes and mask of these pixels.
        present: (C,) bool, which anchors there are.
        negatives: None = the sampled pixels of the other classes for all anchors.
        temperature: tau.
    """
    classes = torch.arange(len(cosines), device=cosines.device)
    same = sample.labels == classes[:, None]
    count = (same & sample.mask).sum(1)
    active = present & (count > 0)
    # One anchor for each sampled pixel: that of its class.
    positive = cosines.gather(0, sample.labels[None])[0]
    unserved = active
    chosen = sample.mask & ~same
    if negatives is not None:
        unserved = active & ~negatives.mask.any(1)
        cosines = torch.cat([cosines, negatives.cosines], 1)
        chosen = torch.cat([chosen & unserved[:, None], negatives.mask], 1)
    log_negatives = log_sum(cosines / temperature, chosen)
    num_anchors = active.sum()
    share = active.to(cosines.dtype) / (count * num_anchors).clamp(min=1)
    weight = share[sample.labels] * sample.mask
    pair_loss = F.softplus(log_negatives[sample.labels] - positive / temperature)
    with torch.no_grad():
        pos_sim = (positive * weight).sum()
        of_anchor = cosines.where(chosen, 0).sum(1) / chosen.sum(1).clamp(min=1)
        neg_sim = of_anchor.where(active, 0).sum() / num_anchors.clamp(min=1)
    return PixelAnchorLoss(
        (pair_loss * weight).sum(), num_anchors, unserved.sum(), pos_sim, neg_sim
    )
