"""Trained models for others: ``python -m d2_pixcontrast.export --help``."""

from .. import compat  # noqa: F401  first: a missing detectron2 gets one clear message
from .cost import network_cost
from .evaluated_at import evaluated_at
from .graph import InferenceGraph, trace
from .onnx_file import write_onnx
from .publish import publish
from .torch_file import write_torch

__all__ = [
    "InferenceGraph",
    "network_cost",
    "publish",
    "evaluated_at",
    "trace",
    "write_onnx",
    "write_torch",
]
