"""Heads, decoders, terms and backbones. Importing this fills detectron2's registries."""

from .. import compat as _compat  # noqa: F401  (first: one clear message without detectron2)
from .backbone import TimmBackbone
from .build import build_model
from .decoder import DECODER_REGISTRY, DecoderOutput
from .sem_seg_head import PixelContrastSemSegHead
from .terms import TERM_REGISTRY, Term, TermInputs, TrainingProgress, term_classes
from .wrapped_head import ContrastWrapperHead

__all__ = [
    "DECODER_REGISTRY",
    "TERM_REGISTRY",
    "ContrastWrapperHead",
    "DecoderOutput",
    "PixelContrastSemSegHead",
    "Term",
    "TermInputs",
    "TimmBackbone",
    "TrainingProgress",
    "build_model",
    "term_classes",
]
