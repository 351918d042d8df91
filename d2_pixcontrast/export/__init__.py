"""Trained models for others: ``python -m d2_pixcontrast.export --help``."""

from .cost import network_cost
from .graph import InferenceGraph, trace
from .onnx_file import export_onnx
from .publish import publish
from .torch_file import export_torch

__all__ = [
    "InferenceGraph",
    "export_onnx",
    "export_torch",
    "network_cost",
    "publish",
    "trace",
]
