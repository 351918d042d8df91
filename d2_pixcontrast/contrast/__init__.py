"""Losses, samplers, memories and projection heads of cross-image contrast. Needs torch alone."""

from .boundary_negatives import (
    BANE_TARGETS,
    BoundaryNegatives,
    NegativeSlots,
    check_bane,
    sample_boundary_negatives,
)
from .class_queue import ClassEntries, ClassQueue
from .distance_transform import distance_to_boundary
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
    "BANE_TARGETS",
    "MINING_MODES",
    "AnchorSample",
    "BoundaryNegatives",
    "ClassEntries",
    "ClassQueue",
    "ContrastLoss",
    "ExtraNegatives",
    "MemoryBank",
    "Mining",
    "NegativeSlots",
    "ProjectionHead",
    "check_bane",
    "distance_to_boundary",
    "gather_batch",
    "gather_pixels",
    "nearest_resize",
    "pixel_contrast_loss",
    "random_keys",
    "region_means",
    "sample_boundary_negatives",
    "sample_class_anchors",
    "sample_group_pixels",
    "sample_hard_anchors",
]
