"""Training-only terms, one file per published method."""

from .base import TERM_REGISTRY, Term, build_terms, term_classes
from .contextrast import Contextrast
from .inputs import TermInputs, TrainingProgress
from .multi_scale_contrast import MultiScaleContrast
from .pixel_contrast import PixelContrast

__all__ = [
    "TERM_REGISTRY",
    "Contextrast",
    "MultiScaleContrast",
    "PixelContrast",
    "Term",
    "TermInputs",
    "TrainingProgress",
    "build_terms",
    "term_classes",
]
