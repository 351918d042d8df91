"""Boundary IoU: the IoU of the pixels near the boundaries of each class."""

import math

import torch
from torch import Tensor

_OUTSIDE = torch.iinfo(torch.int16).max  # above every class id


class BoundaryCounter:
    """Counts the pixels of boundary regions on the device, for all classes at once.

    Boundary IoU of class c (Cheng et al., "Boundary IoU: Improving Object-Centric Image
    Segmentation Evaluation", CVPR 2021, eq. 2) is |G_d & P_d| / |G_d | P_d|, where G_d are the
    pixels of class c in the ground truth that lie within d pixels of a pixel of another class or
    of the outside of the image, and P_d the same of the prediction. Here

    * the distance is the larger of that in rows and in columns, as with the published code's
      d erosions by a 3 x 3 square;
    * as there, the image's border is a boundary;
    * ignored pixels are in no region and make no boundary, in the prediction neither: nobody knows
      where the class under them ends;
    * intersections and unions are summed over the data set before they are divided, as for IoU.

    ``counts`` is int64 of shape (3, C): pixels of G_d, of P_d and of both.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_value: int,
        width: float = 0.02,
        device: torch.device | str = "cpu",
    ):
        """
        Args:
            num_classes: C.
            ignore_value: label of the pixels without a class.
            width: d; below 1 it is a share of the image's diagonal (at least one pixel, rounded),
                from 1 on a number of pixels. 0.02 is the paper's.
            device: of the labels and predictions.

        Raises:
            ValueError: the width is not positive, or from 1 on not whole.
        """
        if width <= 0 or (width >= 1 and width != int(width)):
            raise ValueError(
                f"TEST.BOUNDARY_IOU.WIDTH is {width}: it has to be a share of the image's diagonal "
                "between 0 and 1, or a whole number of pixels"
            )
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.width = width
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)

    def update(self, label: Tensor, prediction: Tensor) -> None:
        """Add one image.

        Args:
            label: (H, W) integer class ids and ignore values, on the counter's device.
            prediction: (H, W) integer class ids.
        """
        classes, void = self.num_classes, label == self.ignore_value
        # int16: half as much memory to walk through as float, and ids of 32767 classes fit.
        label = label.to(torch.int16)
        prediction = prediction.to(torch.int16)
        distance = boundary_distance(self.width, *label.shape)
        near_truth = near_boundary(label, void, distance)
        near_predicted = near_boundary(prediction, void, distance)
        for row, region, ids in zip(
            self.counts,
            (near_truth, near_predicted, near_truth & near_predicted & (label == prediction)),
            (label, prediction, label),
            strict=True,
        ):
            # Pixels outside the region go into one more bin, that of no class.
            row += _count(torch.where(region, ids, classes), classes + 1)[:classes]

    def scores(self, class_names: list[str] | None = None) -> dict[str, float]:
        """``mBIoU`` and ``BIoU-<class>`` in percent.

        A class without a boundary pixel in the ground truth and in the predictions has NaN and is
        left out of the mean.
        """
        truth, predicted, both = self.counts.cpu().double()
        iou = both / (truth + predicted - both)  # 0 / 0 is NaN
        names = class_names or [str(index) for index in range(self.num_classes)]
        result = {"mBIoU": iou.nanmean()}
        result |= {f"BIoU-{name}": value for name, value in zip(names, iou, strict=True)}
        return {key: 100.0 * float(value) for key, value in result.items()}


def boundary_distance(width: float, height: int, columns: int) -> int:
    """The width of a boundary region in pixels of an image; see :class:`BoundaryCounter`."""
    if width >= 1:
        return int(width)
    return max(round(width * math.hypot(height, columns)), 1)


def near_boundary(ids: Tensor, void: Tensor, distance: int) -> Tensor:
    """Pixels with another class, or the outside of the image, within a distance in rows or columns.

    In the square around a pixel there is another class exactly where the largest or the smallest id
    in it is not the pixel's own. This takes two filters for all classes, of a cost that grows with
    the logarithm of the distance.

    Args:
        ids: (H, W) int16 class ids.
        void: (H, W) bool; such pixels are not near anything, and nothing is near to them.
        distance: in pixels, at least 1.

    Returns:
        (H, W) bool.
    """
    highest = _maximum_filter(ids.masked_fill(void, -_OUTSIDE), distance, outside=_OUTSIDE)
    # The smallest is minus the largest of the negative. The outside is found by the other filter.
    lowest = _maximum_filter(
        (-ids).masked_fill(void, -_OUTSIDE), distance, outside=-_OUTSIDE
    ).neg_()
    return ((highest != ids) | (lowest != ids)) & ~void


def _maximum_filter(ids: Tensor, distance: int, outside: int) -> Tensor:
    """(H, W) maxima over squares of 2 * distance + 1 pixels; the first pass works on columns."""
    for _ in range(2):
        ids = _running_maximum(ids, distance, outside).t().contiguous()
    return ids


def _running_maximum(ids: Tensor, distance: int, outside: int) -> Tensor:
    """(H, W) maxima over the rows y - distance .. y + distance, by spans that double in length."""
    rows, length, span = len(ids), 2 * distance + 1, 1
    edge = ids.new_full((distance, ids.shape[1]), outside)
    best = torch.cat([edge, ids, edge])  # best[y] is over the rows y .. y + span - 1
    while 2 * span <= length:
        best = torch.maximum(best[:-span], best[span:])
        span *= 2
    rest = length - span  # the last two spans overlap
    return torch.maximum(best[:rows], best[rest : rest + rows])


def _count(index: Tensor, size: int) -> Tensor:
    """(size,) int64: how often each number occurs in ``index``."""
    index = index.flatten()
    if index.is_cuda:  # bincount would ask the GPU for the largest index, and wait for it
        count = torch.zeros(size, dtype=torch.int64, device=index.device)
        return count.index_add_(0, index.long(), torch.ones_like(index, dtype=torch.int64))
    return torch.bincount(index, minlength=size)
