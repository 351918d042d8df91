"""Trained models for others: ``python -m d2_pixcontrast.export --help``."""

from .cost import network_cost
from .graph import InferenceGraph, trace
from .onnx_file import write_onnx
from .publish import publish
from .torch_file import write_torch

__all__ = [
    "InferenceGraph",
    "network_cost",
    "publish",
    "trace",
    "write_onnx",
    "write_torch",
]
