"""Losses, samplers, memories and projection heads of cross-image contrast. Needs torch alone."""

from .class_memory import ClassMemory, MemoryEntries
from .class_queue import ClassEntries, ClassQueue
from .dataset_memory import DatasetMemory
from .distributed import gather_batch, sum_over_ranks
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
from .statistics_memory import StatisticsMemory

__all__ = [
    "MINING_MODES",
    "AnchorSample",
    "ClassEntries",
    "ClassMemory",
    "ClassQueue",
    "ContrastLoss",
    "DatasetMemory",
    "ExtraNegatives",
    "MemoryBank",
    "MemoryEntries",
    "Mining",
    "ProjectionHead",
    "StatisticsMemory",
    "gather_batch",
    "gather_pixels",
    "nearest_resize",
    "pixel_contrast_loss",
    "random_keys",
    "region_means",
    "sample_class_anchors",
    "sample_group_pixels",
    "sample_hard_anchors",
    "sum_over_ranks",
]
