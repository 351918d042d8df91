"""Scores of a semantic segmentation: one confusion matrix, and detectron2's evaluator around it."""

from .. import compat  # noqa: F401  (first: a missing detectron2 gets one clear message)
from .confusion import ConfusionCounter, confusion_matrix, scores
from .sem_seg_evaluator import SemSegEvaluator

__all__ = ["ConfusionCounter", "SemSegEvaluator", "confusion_matrix", "scores"]
