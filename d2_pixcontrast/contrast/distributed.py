"""Tensors of all ranks on every rank."""

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


@torch.no_grad()
def gather_batch(tensor: torch.Tensor) -> torch.Tensor:
    """(B, ...) of each of W ranks to (W * B, ...), ranks in order: the global batch order.

    Without gradient, over gloo and NCCL alike; the tensor itself where torch.distributed is not
    initialised. Every rank has to call it, with the same shape and dtype.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    # As bytes: neither backend knows every dtype.
    payload = tensor.contiguous().view(-1).view(torch.uint8)
    received = [torch.empty_like(payload) for _ in range(dist.get_world_size())]
    dist.all_gather(received, payload)
    shape = (len(received) * tensor.shape[0], *tensor.shape[1:])
    return torch.cat(received).view(tensor.dtype).view(shape)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all ranks, on every rank, with gradient.

    The gradient of a rank's tensor is the sum of the gradients that all ranks have for the result.
    The tensor itself where torch.distributed is not initialised. Every rank has to call it, with
    the same shape and dtype, and to run the backward pass through it.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    return _SumOverRanks.apply(tensor)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _SumOverRanks.forward(ctx, grad)
