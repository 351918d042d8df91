"""How a trained model is applied to an image: at several scales, mirrored, in windows."""

from .build import with_sliding_window, with_test_time_augmentation
from .multi_scale_flip import MultiScaleFlip
from .sliding_window import SlidingWindow, window_starts

__all__ = [
    "MultiScaleFlip",
    "SlidingWindow",
    "window_starts",
    "with_sliding_window",
    "with_test_time_augmentation",
]
