"""The confusion matrix of a segmentation and the scores that are computed from it."""

import math

import torch
from torch import Tensor


class ConfusionCounter:
    """Counts (label, prediction) pairs on the device, without one synchronisation with the host.

    ``counts`` is int64 of shape (C * C + 2,): the pairs, row by row, then the pixels whose label is
    the ignore value, then the pixels whose label or prediction is no class at all. The latter are
    kept apart instead of landing in some class's bin; :meth:`matrix` raises when there are any.
    """

    def __init__(self, num_classes: int, ignore_value: int, device: torch.device | str = "cpu"):
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.counts = torch.zeros(num_classes**2 + 2, dtype=torch.int64, device=device)

    def update(self, labels: Tensor, predictions: Tensor) -> None:
        """Add the pixels of one image or batch.

        Args:
            labels: integer class ids and ignore values, of any shape, on the counter's device.
            predictions: integer class ids, of the same shape. Both are read as 32-bit numbers.

        Raises:
            ValueError: the shapes differ.
        """
        if labels.shape != predictions.shape:
            shapes = f"{tuple(labels.shape)} and {tuple(predictions.shape)}"
            raise ValueError(f"labels and predictions have different shapes: {shapes}")
        classes = self.num_classes
        # Half as much memory to walk through as 64-bit.
        labels, predictions = labels.reshape(-1).int(), predictions.reshape(-1).int()
        known = (labels >= 0) & (labels < classes) & (predictions >= 0) & (predictions < classes)
        index = torch.where(known, labels * classes + predictions, classes**2 + 1)
        index = torch.where(labels == self.ignore_value, classes**2, index)
        if index.is_cuda:  # bincount would ask the GPU for the largest index, and wait for it
            self.counts.index_add_(0, index, torch.ones_like(index, dtype=torch.int64))
        else:
            self.counts += torch.bincount(index, minlength=self.counts.numel())

    def matrix(self) -> Tensor:
        """The (C, C) int64 matrix; [i, j] counts the pixels of class i that were predicted as j.

        Raises:
            ValueError: some label was neither a class nor the ignore value, or some prediction
                was no class. (Reads one number from the device.)
        """
        unknown = int(self.counts[-1])
        if unknown:
            raise ValueError(
                f"{unknown} pixels have a label or a prediction outside the {self.num_classes} "
                f"classes 0..{self.num_classes - 1} (labels may also be the ignore value "
                f"{self.ignore_value}); a pixel has no prediction where scores are NaN, as with "
                "weights that have become NaN"
            )
        return self.counts[:-2].view(self.num_classes, self.num_classes)


def confusion_matrix(
    labels: Tensor, predictions: Tensor, num_classes: int, ignore_value: int
) -> Tensor:
    """Confusion matrix of integer class ids.

    Args:
        labels: ground truth of any shape, classes 0..C-1 or ``ignore_value``; pixels of the ignore
            value are not counted, whatever was predicted there.
        predictions: classes 0..C-1, of the same shape.
        num_classes: C.
        ignore_value: the label of void pixels.

    Returns:
        (C, C) int64 on the labels' device; rows are the ground truth, columns the predictions.

    Raises:
        ValueError: the shapes differ, or an id is neither a class nor the ignore value.
    """
    counter = ConfusionCounter(num_classes, ignore_value, labels.device)
    counter.update(labels, predictions)
    return counter.matrix()


def scores(confusion: Tensor, class_names: list[str] | None = None) -> dict[str, float]:
    """mIoU, fwIoU, mACC, pACC and each class's IoU and accuracy, in percent.

    With TP, FP and FN of each class counted over the whole data set:

    * ``IoU-<class>`` = TP / (TP + FP + FN); NaN for a class that is neither in the ground truth nor
      in the predictions.
    * ``ACC-<class>`` = TP / (TP + FN); NaN for a class that is not in the ground truth.
    * ``mIoU``, ``mACC``: means over the classes whose value is not NaN. A class that is
      predicted but nowhere in the ground truth so counts as IoU 0, as in Cityscapes' own script.
    * ``fwIoU``: sum of the IoUs, each weighted with the class's share of the labelled pixels.
    * ``pACC``: share of the labelled pixels that are right.

    Args:
        confusion: (C, C) counts; rows are the ground truth, columns the predictions.
        class_names: C names; "0", "1", ... by default.

    Returns:
        Plain floats; all NaN where no pixel was counted.
    """
    confusion = confusion.detach().cpu().double()
    names = class_names or [str(index) for index in range(len(confusion))]
    correct, truth = confusion.diagonal(), confusion.sum(dim=1)
    # 0 / 0 is NaN, which is the definition.
    iou = correct / (truth + confusion.sum(dim=0) - correct)
    accuracy = correct / truth
    frequency = truth / truth.sum()

    result = {
        "mIoU": iou.nanmean(),
        "fwIoU": (frequency * iou).nansum() if truth.sum() > 0 else math.nan,
        "mACC": accuracy.nanmean(),
        "pACC": correct.sum() / truth.sum(),
    }
    result |= {f"IoU-{name}": value for name, value in zip(names, iou, strict=True)}
    result |= {f"ACC-{name}": value for name, value in zip(names, accuracy, strict=True)}
    return {key: 100.0 * float(value) for key, value in result.items()}
