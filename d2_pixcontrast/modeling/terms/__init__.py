"""Training-only terms, one file per published method."""

from .base import TERM_REGISTRY, Term, build_terms
from .inputs import TermInputs, TrainingProgress
from .pixel_contrast import PixelContrast

__all__ = [
    "TERM_REGISTRY",
    "PixelContrast",
    "Term",
    "TermInputs",
    "TrainingProgress",
    "build_terms",
]
