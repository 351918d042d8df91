"""Tensors of all ranks on every rank."""

import torch
import torch.distributed as dist


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


@torch.no_grad()
def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of the ranks' tensors, the same bits on each; the tensor itself where there is one rank.

    Every rank has to call it, with the same shape and dtype; the argument is overwritten.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor
