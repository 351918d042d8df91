"""What a network costs at inference."""

from typing import NamedTuple

import torch
from fvcore.nn import FlopCountAnalysis

from .graph import InferenceGraph


class NetworkCost(NamedTuple):
    """Cost of one image.

    Attributes:
        parameters: number of them.
        gflops: 10^9 multiply-adds, as fvcore counts them.
        size: (height, width) of the image, in pixels.
    """

    parameters: int
    gflops: float
    size: tuple[int, int]

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.parameters:,} parameters, {self.gflops:.3f} GFLOPs at {height}x{width}"


def network_cost(graph: InferenceGraph, size: tuple[int, int]) -> NetworkCost:
    """Parameters and multiply-adds of a network for an image of ``size`` (height, width)."""
    image = torch.zeros(1, 3, *size, device=graph.mean.device)
    flops = FlopCountAnalysis(graph, image)
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    flops.tracer_warnings("none")
    parameters = sum(p.numel() for p in graph.parameters())
    return NetworkCost(parameters, flops.total() / 1e9, tuple(size))
