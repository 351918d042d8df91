"""Predictions for any image: the parts of ``python -m d2_pixcontrast.predict``."""

from .. import compat  # noqa: F401  first: a missing detectron2 gets one clear message
from .inputs import InputImage, find_inputs
from .predictor import Prediction, Predictor

__all__ = ["InputImage", "Prediction", "Predictor", "find_inputs"]
