"""The two functions of streaming_loss.py over mined entries of a memory bank.

An anchor's choice needs all its logits at once, so these work through chunks of anchors. Like the
others they compute their gradient in the forward pass and save (N, D) numbers.
"""

from collections.abc import Sequence

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .class_queue import ClassEntries
from .class_tiles import class_tiles
from .mining import Mining, choose
from .streaming_loss import EMPTY, blocks, negative_logits

# Numbers in the largest temporary: anchors of a chunk x entries of the bank. On a GPU more of them,
# and thus fewer and larger kernels.
_CPU_BUDGET, _GPU_BUDGET = 1 << 23, 1 << 25
# Entries that are looked at, and brought to the anchors' precision, together. Unlike the logits of
# streaming_loss.py these are all kept, so that small blocks would spare no memory.
_CHUNK = 1 << 17
_POSITIVE_STREAM, _NEGATIVE_STREAM = 0, 1


def mined_log_negatives(
    anchors: torch.Tensor,
    labels: torch.Tensor,
    bank: Sequence[ClassEntries],
    mining: Mining,
    row_keys: torch.Tensor,
    *,
    temperature: float,
) -> torch.Tensor:
    """:func:`log_negatives` over up to ``mining.num_negatives`` entries of each anchor."""
    return _MinedLogNegatives.apply(anchors, labels, bank, mining, row_keys, temperature)


class _MinedLogNegatives(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors, labels, bank, mining, row_keys, temperature):
        entries = sum(rows.shape[0] * rows.shape[1] for rows, _ in bank)
        step = max(1, _budget(anchors.device) // entries)
        logs, means = [], []
        for scaled, of, keys in zip(
            (anchors / temperature).split(step), labels.split(step), row_keys.split(step)
        ):
            logits = torch.cat(
                [negative_logits(scaled, of, b) for b in _all_blocks(bank, scaled)], dim=1
            )
            index, mask = choose(logits, mining, mining.num_negatives, keys, _NEGATIVE_STREAM)
            chosen = logits.gather(1, index).masked_fill_(~mask, -torch.inf)
            log = torch.logsumexp(chosen, dim=1, keepdim=True).clamp(min=EMPTY)
            logs.append(log)
            if ctx.needs_input_grad[0]:
                weights = logits.zero_().scatter_(1, index, torch.exp(chosen - log))
                means.append(_weighted_sum(weights, bank).div_(temperature))
        ctx.save_for_backward(torch.cat(means) if means else None)
        return torch.cat(logs).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (mean,) = ctx.saved_tensors
        return grad[:, None] * mean, None, None, None, None, None


def mined_positive_losses(
    anchors: torch.Tensor,
    log_negatives: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor,
    bank: Sequence[ClassEntries],
    mining: Mining,
    row_keys: torch.Tensor,
    *,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`positive_losses` over up to ``mining.num_positives`` entries of each anchor."""
    return _MinedPositiveLosses.apply(
        anchors, log_negatives, labels, mask, bank, mining, row_keys, temperature
    )


class _MinedPositiveLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors, log_negatives, labels, mask, bank, mining, row_keys, temperature):
        tiles = class_tiles(labels, mask, bank[0].rows.shape[0])
        size = sum(rows.shape[1] for rows, _ in bank)
        # A tile takes its class' entries with it: (M, D) numbers.
        per_tile = size * max(anchors.shape[1], tiles.index.shape[1])
        step = max(1, _budget(anchors.device) // per_tile)
        results = [
            _mined_positives_of_tiles(
                anchors[index] / temperature, log_negatives[index], row_keys[index],
                classes, bank, mining,
            )
            for index, classes in zip(tiles.index.split(step), tiles.classes.split(step))
        ]  # fmt: skip
        sums, counts, slopes, weighted = (
            tiles.scatter(torch.cat(parts), len(anchors)) for parts in zip(*results)
        )
        ctx.save_for_backward(weighted.div_(-temperature), slopes)
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        towards, slopes = ctx.saved_tensors
        return grad[:, None] * towards, grad * slopes, *[None] * 6


def _mined_positives_of_tiles(scaled, levels, keys, classes, bank, mining):
    """Sum of losses, count, sum of slopes (t, T) and weighted sum of entries (t, T, D)."""
    rows = torch.cat([rows[classes].to(scaled.dtype) for rows, _ in bank], dim=1)
    filled = torch.cat([_slots(rows) < fill[classes, None] for rows, fill in bank], dim=1)
    logits = torch.bmm(scaled, rows.transpose(1, 2))
    hardness = (-logits).masked_fill_(~filled[:, None], -torch.inf).flatten(0, 1)
    index, mask = choose(hardness, mining, mining.num_positives, keys.flatten(), _POSITIVE_STREAM)
    excess = levels.reshape(-1, 1) - logits.flatten(0, 1).gather(1, index)
    excess = excess.masked_fill_(~mask, -torch.inf)  # softplus and sigmoid: 0
    slopes = excess.sigmoid()
    weights = hardness.zero_().scatter_(1, index, slopes).view_as(logits)
    shape = levels.shape
    return (
        F.softplus(excess).sum(dim=1).view(shape),
        mask.sum(dim=1).view(shape),
        slopes.sum(dim=1).view(shape),
        torch.bmm(weights, rows),
    )


def _budget(device):
    return _CPU_BUDGET if device.type == "cpu" else _GPU_BUDGET


def _slots(rows):
    return torch.arange(rows.shape[1], device=rows.device)


def _all_blocks(bank, like):
    return blocks(bank, _CHUNK, like.dtype)


def _weighted_sum(weights, bank):
    """(n, K) @ (K, D) over the blocks of the bank, in their order."""
    start, result = 0, None
    for block in _all_blocks(bank, weights):
        rows = block.rows.flatten(0, 1)
        part = weights[:, start : start + len(rows)]
        result = part @ rows if result is None else result.addmm_(part, rows)
        start += len(rows)
    return result
