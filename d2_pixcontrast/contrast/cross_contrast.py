"""Contrast within and between sets of labelled rows, all of which get a gradient.

The loss of Wang et al., ICCV 2021, equation (3), as Pissas et al., ECCV 2022, use it at several
scales. With 10 000 rows the matrix of logits takes 400 MB, and autograd would keep several. Here
loss and gradient are computed block by block in the forward pass; the backward pass scales them.
"""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .losses import ContrastLoss, nothing_to_contrast
from .streaming_loss import EMPTY

# Numbers in a temporary: what stays near a CPU's caches; more on a GPU, where launches cost.
_CPU_BUDGET, _GPU_BUDGET = 1 << 19, 1 << 23


class LabelledRows(NamedTuple):
    """Embeddings with their classes.

    Attributes:
        rows: (N, D) unit vectors.
        labels: (N,) int64, in 0..C-1.
        weight: (N,), share of a row in the mean over anchors; 0 for rows that take no part.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    weight: torch.Tensor


def cross_contrast_loss(
    anchors: LabelledRows,
    others: LabelledRows | None = None,
    *,
    num_classes: int,
    temperature: float = 0.1,
    budget: int | None = None,
) -> ContrastLoss:
    """Contrast every anchor with all other anchors, or with another set of rows.

    With s_ij = <a_i, b_j> / tau, P_i the rows b of the anchor's label (itself left out) and N_i
    those of other labels::

        L_i = -mean_{p in P_i} [ s_ip - log(exp(s_ip) + sum_{n in N_i} exp(s_in)) ]

    The loss is the weighted mean of L_i over the anchors that have a positive; without any it is 0,
    connected to the graph. Gradients reach both sets. Memory beside the rows is O(budget).

    Args:
        anchors: (N, D) rows.
        others: (M, D) rows, whose weights only say which of them take part; None = the anchors.
        num_classes: C.
        temperature: tau.
        budget: numbers in a block of logits; None = a number that suits the device.
    """
    itself = others is None
    others = anchors if itself else others
    if not len(anchors.rows) or not len(others.rows):
        return nothing_to_contrast(anchors.rows, others.rows)
    if budget is None:
        budget = _CPU_BUDGET if anchors.rows.device.type == "cpu" else _GPU_BUDGET
    there = others.weight > 0
    per_class = torch.zeros(num_classes, dtype=torch.int64, device=there.device)
    per_class.scatter_add_(0, others.labels, there.long())
    count = per_class[anchors.labels] - int(itself)
    active = (anchors.weight > 0) & (count > 0)
    weight = anchors.weight.where(active, 0).to(anchors.rows.dtype)
    weight = weight / weight.sum().where(active.any(), 1)
    with torch.autocast(anchors.rows.device.type, enabled=False):
        loss = _CrossContrast.apply(
            anchors.rows, others.rows, anchors.labels, others.labels, there, count, weight,
            itself, temperature, budget,
        )  # fmt: skip
        with torch.no_grad():
            sims = _similarities(anchors, others, active, there, count, per_class, itself)
    return ContrastLoss(loss, active.sum(), *sims)


class _CrossContrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        anchors,
        others,
        labels,
        other_labels,
        there,
        count,
        weight,
        itself,
        temperature,
        budget,
    ):
        absent = torch.where(there, 0.0, -torch.inf).to(anchors.dtype)
        share = weight / count.clamp(min=1)
        loss = anchors.new_zeros(())
        for_anchors, for_others = torch.empty_like(anchors), torch.zeros_like(others)
        step = max(1, budget // len(others))
        for start in range(0, len(anchors), step):
            part = slice(start, start + step)
            rows = anchors[part]
            logits = torch.addmm(absent, rows, others.t(), alpha=1 / temperature)
            same = labels[part, None] == other_labels
            negative = logits.masked_fill(same, -torch.inf)
            log_negatives = negative.logsumexp(1, keepdim=True).clamp(min=EMPTY)
            excess = (log_negatives - logits).masked_fill_(~(same & there), -torch.inf)
            if itself:  # an anchor is not its own positive
                excess.diagonal(start).fill_(-torch.inf)
            loss += (F.softplus(excess).sum(1) * share[part]).sum()
            # d softplus / d excess; softplus and sigmoid are 0 at -inf.
            pull = excess.sigmoid_()
            push = negative.sub_(log_negatives).exp_().mul_(pull.sum(1, keepdim=True))
            slope = push.sub_(pull).mul_(share[part, None] / temperature)
            torch.mm(slope, others, out=for_anchors[part])
            for_others.addmm_(slope.t(), rows)
        ctx.save_for_backward(for_anchors, for_others)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        for_anchors, for_others = ctx.saved_tensors
        return grad * for_anchors, grad * for_others, *[None] * 8


def _similarities(anchors, others, active, there, count, per_class, itself):
    """Mean cosine of all positive pairs and of all negative ones, from the sum of each class."""
    mine = anchors.rows * active[:, None]
    of_class = mine.new_zeros(len(per_class), mine.shape[1])
    of_class.index_add_(0, others.labels, others.rows * there[:, None])
    positive = (mine * of_class[anchors.labels]).sum()
    negative = (mine.sum(0) * of_class.sum(0)).sum() - positive
    if itself:
        positive = positive - mine.square().sum()
    positives = count.where(active, 0).sum()
    negatives = (per_class.sum() - per_class[anchors.labels]).where(active, 0).sum()
    return positive / positives.clamp(min=1), negative / negatives.clamp(min=1)
