"""A config's way of inference."""

from torch import nn

from ...data.flip_pairs import flip_pairs
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
        dataset_name: its metadata may have ``flip_pairs``, see
            :func:`~d2_pixcontrast.data.flip_pairs.flip_pairs`.
    """
    augmentation = cfg.TEST.AUG
    return MultiScaleFlip(
        model,
        scales=augmentation.SCALES,
        flip=augmentation.FLIP,
        flip_pairs=flip_pairs(dataset_name, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
    )
