"""Classes that change places in a mirrored image, such as left and right arm."""

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from fvcore.transforms.transform import HFlipTransform, NoOpTransform

from .labels import DataError

__all__ = ["RandomMirror", "check_flip_pairs", "common_flip_pairs", "exchange", "flip_pairs"]


def check_flip_pairs(pairs, num_classes: int, whose: str) -> list[tuple[int, int]]:
    """The pairs as tuples.

    Raises:
        DataError: a pair is not one of two different classes, or a class is in two pairs;
            the message says ``whose`` they are.
    """
    ids = [index for pair in pairs for index in pair]
    distinct = len(set(ids)) == len(ids) == 2 * len(pairs)
    if not distinct or not all(0 <= index < num_classes for index in ids):
        raise DataError(
            f"flip_pairs {[tuple(pair) for pair in pairs]} of {whose} have to be pairs of "
            f"different classes 0..{num_classes - 1}, each class in one pair at most"
        )
    return [tuple(pair) for pair in pairs]


def flip_pairs(dataset_name: str, num_classes: int) -> list[tuple[int, int]]:
    """The (left, right) class ids of a data set's metadata; none where it names none.

    Raises:
        DataError: as :func:`check_flip_pairs`.
    """
    pairs = MetadataCatalog.get(dataset_name).get("flip_pairs") or []
    return check_flip_pairs(pairs, num_classes, f"{dataset_name} (metadata)")


def common_flip_pairs(dataset_names: list[str], num_classes: int) -> list[tuple[int, int]]:
    """The pairs that all data sets share.

    Raises:
        DataError: two of them have different ones, so that there is no telling how to mirror; or as
            :func:`check_flip_pairs`.
    """
    of_each = [flip_pairs(name, num_classes) for name in dataset_names]
    for name, pairs in zip(dataset_names, of_each, strict=True):
        if set(map(frozenset, pairs)) != set(map(frozenset, of_each[0])):
            raise DataError(
                f"data sets {dataset_names[0]} and {name} have different flip_pairs: {of_each[0]} "
                f"and {pairs}; give them the same, or set INPUT.RANDOM_FLIP none"
            )
    return of_each[0] if of_each else []


def exchange(labels: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """A copy of ``labels`` (any shape) in which the ids of each pair have changed places."""
    out = labels.copy()
    for left, right in pairs:
        out[labels == left] = right
        out[labels == right] = left
    return out


class MirrorTransform(HFlipTransform):
    """Mirrors left and right, and with a label its ids."""

    def __init__(self, width: int, flip_pairs: list[tuple[int, int]]):
        super().__init__(width)
        self.flip_pairs = flip_pairs

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return exchange(super().apply_segmentation(segmentation), self.flip_pairs)


class RandomMirror(T.RandomFlip):
    """Detectron2's horizontal flip where classes have a side: a mirrored left arm is a right one.

    It draws as detectron2's does, so that a data set without such classes sees the same images.
    """

    def __init__(self, flip_pairs: list[tuple[int, int]] = (), prob: float = 0.5):
        """
        Args:
            flip_pairs: ids (left, right) of such classes.
            prob: of mirroring.
        """
        super().__init__(prob, horizontal=True)
        self.flip_pairs = list(flip_pairs)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        transform = super().get_transform(image)
        if isinstance(transform, NoOpTransform) or not self.flip_pairs:
            return transform
        return MirrorTransform(image.shape[1], self.flip_pairs)
