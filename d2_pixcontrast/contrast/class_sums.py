"""Sums of unit embeddings by class, without a map of embeddings."""

import torch
from torch.utils.checkpoint import checkpoint

# Shorter embeddings have no direction: what is left of them is rounding.
_SHORTEST = 1e-6


def unit_class_sums(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For every class the sum of u / |u| over its pixels, where u = weight @ hidden + bias.

    The graph keeps ``hidden`` alone; everything else is computed again in the backward pass. Where
    ``hidden`` has fewer channels than u, u is never computed at all: the sum is linear in
    hidden / |u|, and |u|^2 is a quadratic form of ``hidden``.

    Args:
        hidden: (B, K, h, w). Half precision is widened to float32.
        weight: (D, K).
        bias: (D,).
        labels: (B, h, w) int64; pixels with ids outside 0..C-1 are left out.
        num_classes: C.

    Returns:
        (C, D) sums, in float32 or wider, and (C,) numbers of pixels, of the same dtype.
    """
    # use_reentrant=False is the variant that DDP and autograd.grad can do with.
    return checkpoint(
        _unit_class_sums, hidden, weight, bias, labels, num_classes,
        use_reentrant=False, preserve_rng_state=False,
    )  # fmt: skip


def _unit_class_sums(hidden, weight, bias, labels, num_classes):
    with torch.autocast(hidden.device.type, enabled=False):
        half = hidden.dtype in (torch.float16, torch.bfloat16)
        rows = (hidden.float() if half else hidden).flatten(2)
        weight, bias = weight.to(rows.dtype), bias.to(rows.dtype)
        classes = torch.arange(num_classes, device=labels.device)
        member = (labels.flatten(1)[:, None] == classes[:, None]).to(rows.dtype)  # (B, C, h * w)
        counts = member.sum((0, 2))
        if len(weight) > rows.shape[1]:
            share = member * _inverse_lengths(rows, weight, bias)[:, None]
            sums = torch.bmm(share, rows.transpose(1, 2)).sum(0)
            return torch.addmm(share.sum((0, 2))[:, None] * bias, sums, weight.t()), counts
        return torch.bmm(member, unit(weight @ rows + bias[:, None]).transpose(1, 2)).sum(0), counts


def unit(embeddings: torch.Tensor) -> torch.Tensor:
    """(B, D, ...) embeddings brought to length 1 over D, in float32 or wider; 0 stays 0."""
    # Half precision cannot hold the squares of small channels; the length would be 0.
    if embeddings.dtype in (torch.float16, torch.bfloat16):
        embeddings = embeddings.float()
    # With few channels there are pixels where no ReLU lets anything pass, and a new projection has
    # no bias. Divided by a small number instead, their gradient would be beyond all bounds.
    length = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    return embeddings / length.where(length > _SHORTEST, torch.inf)


def _inverse_lengths(rows, weight, bias):
    """(B, P) 1 / |weight @ rows + bias| for (B, K, P) rows; 0 where there is no direction."""
    towards = torch.matmul(weight.t() @ weight, rows) + 2 * (bias @ weight)[:, None]
    squares = (rows * towards).sum(1) + bias @ bias
    some = squares > _SHORTEST**2
    return squares.where(some, 1).rsqrt().where(some, 0)
