"""Contrast with a memory bank, chunk by chunk: the (N, K) matrix of logits never exists.

The loss of Wang et al., ICCV 2021, equation (3), is split in two autograd functions of the anchors:

    log_negatives   log E_i = log sum_{n in N_i} exp(s_in)
    positive_losses sum_{p in P_i} softplus(log E_i - s_ip)

so that negatives and positives of other origin join in between by plain autograd (logaddexp). Both
compute their gradient in the forward pass, as attention with the bank as values does, and save
(N, D) numbers: the backward pass does not read the bank, which may have been written meanwhile.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .class_queue import ClassEntries
from .class_tiles import class_tiles

# Logarithm of an empty sum. Finite, because -inf - (-inf) would be NaN in a gradient.
EMPTY = -1e30
# exp(-80) is well above the smallest float32: up to this span one constant shift serves all rows.
_SPAN_WITHOUT_UNDERFLOW = 80.0


def default_chunk(device: torch.device) -> int:
    """Entries per block: what stays in a CPU's caches; more on a GPU, where launches cost (with
    1024 anchors a block's logits are 128 MiB)."""
    return 1024 if device.type == "cpu" else 1 << 15


class Block(NamedTuple):
    """k classes x m slots of :class:`ClassEntries`: rows (k, m, D), classes (k,), filled (k, m)."""

    rows: torch.Tensor
    classes: torch.Tensor
    filled: torch.Tensor


def blocks(bank: Sequence[ClassEntries], chunk: int, dtype: torch.dtype) -> Iterator[Block]:
    """Cut a bank into blocks of about ``chunk`` entries, in ``dtype``."""
    for rows, fill in bank:
        num_classes, size = rows.shape[:2]
        classes = torch.arange(num_classes, device=rows.device)
        slots = torch.arange(size, device=rows.device)
        height = max(1, chunk // size)
        width = math.ceil(size / math.ceil(size / chunk))
        for c in range(0, num_classes, height):
            for m in range(0, size, width):
                filled = slots[m : m + width] < fill[c : c + height, None]
                part = rows[c : c + height, m : m + width].to(dtype)
                yield Block(part, classes[c : c + height], filled)


def negative_logits(
    scaled: torch.Tensor, labels: torch.Tensor, block: Block, shift: float = 0.0
) -> torch.Tensor:
    """(N, k * m) logits minus ``shift``; -inf for the anchor's own class and in empty slots."""
    zero = scaled.new_zeros(())
    empty = torch.where(block.filled, zero - shift, -torch.inf).flatten()
    own = torch.where(labels[:, None] == block.classes, -torch.inf, zero)
    logits = torch.addmm(empty, scaled, block.rows.flatten(0, 1).t())
    # Added, since that is several times faster than masked_fill.
    logits.view(*own.shape, -1).add_(own[:, :, None])
    return logits


def log_negatives(
    anchors: torch.Tensor,
    labels: torch.Tensor,
    bank: Sequence[ClassEntries],
    *,
    temperature: float,
    chunk: int,
) -> torch.Tensor:
    """(N,) log of the sum of exp(s_in) over the bank's entries of other classes.

    Extra memory is O(N * chunk). ``EMPTY`` where there is no such entry.

    Args:
        anchors: (N, D) unit vectors, float32 or float64.
        labels: (N,) int64.
        bank: stores of entries; they get no gradient.
        temperature: tau.
        chunk: entries of the bank that are looked at together.
    """
    return _LogNegatives.apply(anchors, labels, bank, temperature, chunk)


class _LogNegatives(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors, labels, bank, temperature, chunk):
        scaled = anchors / temperature
        total = scaled.new_zeros(len(scaled), 1)
        weighted = torch.zeros_like(scaled)
        # Unit vectors bound the logits by 1 / tau. Where exp would underflow over that range, the
        # running maximum of each row takes the place of the constant, from the lower bound up.
        constant = 2 / temperature <= _SPAN_WITHOUT_UNDERFLOW
        shift = scaled.new_full((len(scaled), 1), (1 if constant else -1) / temperature)
        for block in blocks(bank, chunk, scaled.dtype):
            if constant:
                weights = negative_logits(scaled, labels, block, 1 / temperature)
            else:
                weights = negative_logits(scaled, labels, block)
                higher = torch.maximum(shift, weights.amax(dim=1, keepdim=True))
                decay = torch.exp(shift - higher)
                total, weighted, shift = total * decay, weighted.mul_(decay), higher
                weights -= shift
            weights.exp_()
            total += weights.sum(dim=1, keepdim=True)
            if ctx.needs_input_grad[0]:
                weighted.addmm_(weights, block.rows.flatten(0, 1))
        some = total > 0
        total = total.where(some, 1)
        ctx.save_for_backward(weighted.div_(total * temperature))
        return (total.log() + shift).where(some, EMPTY).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (mean,) = ctx.saved_tensors
        return grad[:, None] * mean, None, None, None, None


def positive_losses(
    anchors: torch.Tensor,
    log_negatives: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor,
    bank: Sequence[ClassEntries],
    *,
    temperature: float,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of -log p over the bank's entries of the anchor's class, and how many these are.

    The anchors are laid out in tiles of one class each, so that logits and logarithms are computed
    for positives only. Extra memory is O(N * chunk).

    Args:
        anchors: (N, D) unit vectors, float32 or float64.
        log_negatives: (N,) log of the sum over the negatives, from wherever they come.
        labels: (N,) int64.
        mask: (N,) bool, False for anchors that take no part.
        bank: stores of entries; they get no gradient.
        temperature: tau.
        chunk: as for :func:`log_negatives`.

    Returns:
        (N,) sums and (N,) int64 counts, 0 for anchors that take no part.
    """
    sums = _PositiveLosses.apply(anchors, log_negatives, labels, mask, bank, temperature, chunk)
    safe = labels.where(mask, 0)
    count = sum(fill[safe] for _, fill in bank)
    return sums, count.where(mask, 0)


class _PositiveLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors, log_negatives, labels, mask, bank, temperature, chunk):
        tiles = class_tiles(labels, mask, bank[0].rows.shape[0])
        scaled = anchors[tiles.index] / temperature
        levels = log_negatives[tiles.index]
        sums, slopes = torch.zeros_like(levels), torch.zeros_like(levels)
        weighted = torch.zeros_like(scaled)
        num_tiles, rows_of_tile, dim = scaled.shape
        width = max(64, len(anchors) * chunk // (num_tiles * max(rows_of_tile, dim)))
        for rows, fill in bank:
            for start in range(0, rows.shape[1], width):
                part = rows[tiles.classes, start : start + width].to(scaled.dtype)
                slots = torch.arange(start, start + part.shape[1], device=rows.device)
                filled = slots < fill[tiles.classes, None]
                excess = levels[:, :, None] - torch.bmm(scaled, part.transpose(1, 2))
                excess.masked_fill_(~filled[:, None], -torch.inf)  # softplus and sigmoid: 0
                sums += F.softplus(excess).sum(dim=2)
                weights = excess.sigmoid_()
                slopes += weights.sum(dim=2)
                weighted.baddbmm_(weights, part)
        ctx.save_for_backward(
            tiles.scatter(weighted.div_(-temperature), len(anchors)),
            tiles.scatter(slopes, len(anchors)),
        )
        return tiles.scatter(sums, len(anchors))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        towards, slopes = ctx.saved_tensors
        return grad[:, None] * towards, grad * slopes, None, None, None, None, None
