"""Scores of a semantic segmentation, and detectron2's evaluator around them."""

from .. import compat  # noqa: F401  (first: a missing detectron2 gets one clear message)
from .boundary_iou import BoundaryCounter, near_boundary
from .class_map import class_map
from .confusion import ConfusionCounter, confusion_matrix, scores
from .sem_seg_evaluator import SemSegEvaluator

__all__ = [
    "BoundaryCounter",
    "ConfusionCounter",
    "SemSegEvaluator",
    "class_map",
    "confusion_matrix",
    "near_boundary",
    "scores",
]
