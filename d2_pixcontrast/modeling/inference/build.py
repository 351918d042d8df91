"""A config's way of inference."""

from detectron2.data import MetadataCatalog
from torch import nn

from .multi_scale_flip import MultiScaleFlip
from .sliding_window import SlidingWindow


def with_sliding_window(cfg, model: nn.Module) -> nn.Module:
    """``model``, or with TEST.SLIDING.ENABLED the same in windows."""
    sliding = cfg.TEST.SLIDING
    if not sliding.ENABLED:
        return model
    return SlidingWindow(
        model,
        size=sliding.SIZE,
        stride=sliding.STRIDE,
        pad_value=cfg.MODEL.PIXEL_MEAN,
        average=sliding.AVERAGE,
    )


def with_test_time_augmentation(cfg, model: nn.Module, dataset_name: str) -> nn.Module:
    """``model`` at TEST.AUG.SCALES and with TEST.AUG.FLIP mirrored, whatever TEST.AUG.ENABLED is.

    Args:
        dataset_name: its metadata may have ``flip_pairs``, see :func:`flip_pairs`.
    """
    augmentation = cfg.TEST.AUG
    return MultiScaleFlip(
        model,
        scales=augmentation.SCALES,
        flip=augmentation.FLIP,
        flip_pairs=flip_pairs(dataset_name, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
    )


def flip_pairs(dataset_name: str, num_classes: int) -> list[tuple[int, int]]:
    """The (left, right) class ids of a data set's metadata; none where it names none.

    Raises:
        ValueError: a pair is not one of two different classes, or a class is in two pairs.
    """
    pairs = MetadataCatalog.get(dataset_name).get("flip_pairs") or []
    ids = [index for pair in pairs for index in pair]
    distinct = len(set(ids)) == len(ids) == 2 * len(pairs)
    if not distinct or not all(0 <= index < num_classes for index in ids):
        raise ValueError(
            f"flip_pairs {pairs} of {dataset_name} (metadata) have to be pairs of different "
            f"classes 0..{num_classes - 1}, each class in one pair at most"
        )
    return [tuple(pair) for pair in pairs]
