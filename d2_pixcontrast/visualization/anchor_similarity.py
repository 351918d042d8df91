"""How like their class wrong pixels are, the farther inside an error they lie."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .error_view import ErrorView


class SimilarityCurve(NamedTuple):
    """Of one checkpoint.

    Attributes:
        name: of the checkpoint, for the legend.
        mean: (K,) mean cosine of wrong pixels with their class' anchor, by distance; NaN without
            any. Entry k is of distances in [k + 1, k + 2), the last of all from K up.
        count: (K,) int64, how many pixels these are.
    """

    name: str
    mean: np.ndarray
    count: np.ndarray


def similarity_by_distance(
    views: Iterable[ErrorView], *, name: str, num_classes: int, max_distance: int
) -> SimilarityCurve:
    """Figure 5 of Contextrast: cosine between wrong pixels and the anchor of their label.

    The anchor of a class is the mean of the embeddings of all its pixels, right and wrong, in all
    images, brought to length 1.

    Args:
        views: with embeddings; looked at one by one.
        name: of the checkpoint.
        num_classes: C; pixels with another label are left out.
        max_distance: K, in pixels of the grid.
    """
    sums, counts = 0.0, torch.zeros(max_distance, dtype=torch.int64)
    for view in views:
        rows = view.embeddings.flatten(1).t().double()
        label, wrong = view.label.flatten(), view.group.flatten() >= 0
        # Row 0 of each class takes its right pixels, row k those at distance k.
        bins = view.distance.flatten().clamp(max=max_distance).long().where(wrong, 0)
        known = (label >= 0) & (label < num_classes)
        place = (label * (max_distance + 1) + bins)[known]
        total = rows.new_zeros(num_classes * (max_distance + 1), rows.shape[1])
        sums = sums + total.index_add_(0, place, rows[known]).view(num_classes, -1, rows.shape[1])
        counts += torch.bincount(bins[wrong], minlength=max_distance + 1)[1:]
    # The sum over pixels of <z, a> is <sum of z, a>: no pixel has to be kept.
    anchors = F.normalize(sums.sum(dim=1), dim=1)
    total = (sums[:, 1:] * anchors[:, None]).sum(dim=(0, 2))
    return SimilarityCurve(name, (total / counts).numpy(), counts.numpy())
