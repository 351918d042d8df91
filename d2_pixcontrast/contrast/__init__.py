"""Losses, samplers, memories and projection heads of cross-image contrast. Needs torch alone."""

from .class_queue import ClassEntries, ClassQueue
from .distributed import gather_batch
from .losses import ContrastLoss, ExtraNegatives, pixel_contrast_loss
from .memory_bank import MemoryBank, region_means
from .mining import MINING_MODES, Mining
from .projector import ProjectionHead
from .random_keys import random_keys
from .resize import nearest_resize
from .sampling import (
    AnchorSample,
    gather_pixels,
    sample_class_anchors,
    sample_group_pixels,
    sample_hard_anchors,
)

__all__ = [
    "MINING_MODES",
    "AnchorSample",
    "ClassEntries",
    "ClassQueue",
    "ContrastLoss",
    "ExtraNegatives",
    "MemoryBank",
    "Mining",
    "ProjectionHead",
    "gather_batch",
    "gather_pixels",
    "nearest_resize",
    "pixel_contrast_loss",
    "random_keys",
    "region_means",
    "sample_class_anchors",
    "sample_group_pixels",
    "sample_hard_anchors",
]
