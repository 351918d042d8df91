"""Pictures of segmentations and embeddings, and the report that compares runs."""

from .. import compat  # noqa: F401  (first: a missing detectron2 gets one clear message)
from .colors import VOID_COLOR, class_colors, colorize
from .overlay import label_overlay, legend, legend_of, overlay
from .page import RunResult, Sample
from .pixel_sample import PixelSample, sample_embeddings
from .report import write_report
from .tsne import Embedding2D, project

__all__ = [
    "VOID_COLOR",
    "Embedding2D",
    "PixelSample",
    "RunResult",
    "Sample",
    "class_colors",
    "colorize",
    "label_overlay",
    "legend",
    "legend_of",
    "overlay",
    "project",
    "sample_embeddings",
    "write_report",
]
