"""What a network costs at inference."""

import math
from typing import NamedTuple

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

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
    parameters = sum(p.numel() for p in graph.parameters())
    return NetworkCost(parameters, count_flops(graph, (image,)) / 1e9, tuple(size))


def count_flops(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    """Multiply-adds of a forward pass, as fvcore counts them, fused attention included."""
    flops = FlopCountAnalysis(module, inputs)
    flops.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    flops.tracer_warnings("none")
    return int(flops.total())


def _attention_flops(inputs, outputs) -> int:
    """Queries by keys, and the weights by values: fvcore has no count for their fusion."""
    query, key, value = (get_shape(x) for x in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (key[-1] + value[-1])
