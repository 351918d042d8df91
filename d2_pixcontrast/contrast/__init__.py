"""Losses, samplers, memories and projection heads of cross-image contrast. Needs torch alone."""

from .boundary_negatives import (
    BANE_TARGETS,
    Bane,
    BoundaryNegatives,
    NegativeSlots,
    check_bane,
    sample_boundary_negatives,
)
from .class_anchors import ClassAnchors, class_anchors, update_anchors
from .class_memory import ClassMemory, MemoryEntries
from .class_queue import ClassEntries, ClassQueue
from .cross_contrast import LabelledRows, cross_contrast_loss
from .dataset_memory import DatasetMemory
from .distance_transform import distance_to_boundary
from .distributed import gather_batch, sum_over_ranks
from .losses import ContrastLoss, ExtraNegatives, pixel_contrast_loss
from .memory_bank import MemoryBank, region_means
from .mining import MINING_MODES, Mining
from .pixel_anchor_loss import AnchorNegatives, PixelAnchorLoss, pixel_anchor_loss
from .pixel_embeddings import PixelEmbeddings
from .projector import ProjectionHead
from .random_keys import random_keys
from .resize import nearest_resize
from .sampling import (
    AnchorSample,
    PixelSample,
    gather_pixels,
    sample_balanced,
    sample_class_anchors,
    sample_group_pixels,
    sample_hard_anchors,
)
from .statistics_memory import StatisticsMemory

__all__ = [
    "BANE_TARGETS",
    "MINING_MODES",
    "AnchorNegatives",
    "AnchorSample",
    "Bane",
    "BoundaryNegatives",
    "ClassAnchors",
    "ClassEntries",
    "ClassMemory",
    "ClassQueue",
    "ContrastLoss",
    "DatasetMemory",
    "ExtraNegatives",
    "LabelledRows",
    "MemoryBank",
    "MemoryEntries",
    "Mining",
    "NegativeSlots",
    "PixelAnchorLoss",
    "PixelEmbeddings",
    "PixelSample",
    "ProjectionHead",
    "check_bane",
    "class_anchors",
    "cross_contrast_loss",
    "distance_to_boundary",
    "StatisticsMemory",
    "gather_batch",
    "gather_pixels",
    "nearest_resize",
    "pixel_anchor_loss",
    "pixel_contrast_loss",
    "random_keys",
    "region_means",
    "sample_balanced",
    "sample_boundary_negatives",
    "sample_class_anchors",
    "sample_group_pixels",
    "sample_hard_anchors",
    "sum_over_ranks",
    "update_anchors",
]
