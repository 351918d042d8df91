"""Supervised pixel contrast."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch

from .class_queue import ClassEntries
from .contrast_sets import BankSet, BatchSet, log_sum
from .mining import Mining
from .streaming_loss import default_chunk


class ContrastLoss(NamedTuple):
    """Result of :func:`pixel_contrast_loss`; the scalars carry no gradient.

    Attributes:
        loss: scalar, mean over the anchors that have a positive.
        num_anchors: scalar, how many these are.
        pos_sim: scalar, mean cosine between anchors and all their positives (0 without any).
        neg_sim: the same for negatives, extra ones left out.
    """

    loss: torch.Tensor
    num_anchors: torch.Tensor
    pos_sim: torch.Tensor
    neg_sim: torch.Tensor


class ExtraNegatives(NamedTuple):
    """Negatives beside those of the contrast set; gradients reach them.

    Attributes:
        rows: (E, D) unit vectors.
        mask: (N, E) bool, which of them is a negative of which anchor.
    """

    rows: torch.Tensor
    mask: torch.Tensor


def pixel_contrast_loss(
    anchors: torch.Tensor,
    labels: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    bank: Sequence[ClassEntries] | None = None,
    with_batch: bool = False,
    extra: ExtraNegatives | None = None,
    mining: Mining | None = None,
    row_keys: torch.Tensor | None = None,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
    chunk: int | None = None,
) -> ContrastLoss:
    """Contrast anchors with each other, or with a memory: Wang et al., ICCV 2021, equation (3).

    With s_ij = <a_i, b_j> / tau over the contrast set b, P_i its members of the anchor's label and
    N_i those of other labels::

        L_i = -(tau / tau0) * mean_{p in P_i} [ s_ip - log(exp(s_ip) + sum_{n in N_i} exp(s_in)) ]

    Every positive has a denominator of its own, without the other positives. The mean runs over
    the anchors that have a positive; without any the loss is 0, connected to the graph.

    The contrast set is the anchors themselves, an anchor not being its own positive; or the
    ``bank``, which gets no gradient, takes O(N * chunk) extra memory, and may be written before
    the backward pass; or both.

    Args:
        anchors: (N, D) unit vectors. Half precision is widened to float32.
        labels: (N,) int64, in 0..C-1 where a bank of C classes is given.
        mask: (N,) bool, False for rows that take no part; None = all take part.
        bank: stores of class-sorted entries, see :meth:`MemoryBank.entries`; None = the batch.
        with_batch: the contrast set is the bank and the batch.
        extra: further negatives, outside of the mining.
        mining: chooses positives and negatives; bank and batch give their numbers each if the
            contrast set is both. None = all.
        row_keys: (N,) int64 in [0, 2**32), random; for the modes of ``mining`` that draw.
        temperature: tau.
        base_temperature: tau0.
        chunk: entries of the bank that are looked at together; None = a number that suits the
            device.

    Raises:
        ValueError: ``mining`` draws, but there are no ``row_keys``.
    """
    if anchors.dtype in (torch.float16, torch.bfloat16):
        anchors = anchors.float()
    if mask is None:
        mask = torch.ones_like(labels, dtype=torch.bool)
    mining = Mining() if mining is None else mining
    chunk = default_chunk(anchors.device) if chunk is None else chunk
    if row_keys is None:
        if mining.draws:
            modes = f"{mining.mode!r} and {mining.of_positives().mode!r}"
            raise ValueError(f"the mining modes {modes} draw, which needs row_keys")
        row_keys = torch.zeros_like(labels)
    if not len(anchors):
        return nothing_to_contrast(anchors, *([] if extra is None else [extra.rows]))
    parts = []
    with torch.autocast(anchors.device.type, enabled=False):
        if bank is None or with_batch:
            parts.append(BatchSet(anchors, labels, mask, temperature, mining, row_keys))
        if bank is not None:
            parts.append(BankSet(anchors, labels, mask, temperature, mining, row_keys, bank, chunk))
        logs = [part.log_negatives() for part in parts]
        if extra is not None:
            logits = anchors @ extra.rows.to(anchors.dtype).t() / temperature
            logs.append(log_sum(logits, extra.mask & mask[:, None]))
        loss, num_anchors = _mean_over_anchors(parts, reduce(torch.logaddexp, logs))
        with torch.no_grad():
            sums = [sum(values) for values in zip(*(part.similarities() for part in parts))]
    pos_sim, neg_sim = (sums[i] / sums[i + 1].clamp(min=1) for i in (0, 2))
    return ContrastLoss(loss * (temperature / base_temperature), num_anchors, pos_sim, neg_sim)


def nothing_to_contrast(*sets: torch.Tensor) -> ContrastLoss:
    """The result without an anchor: 0, connected to the graph of each of these (N, D) rows."""
    loss = sum(rows[:0].sum() for rows in sets)  # no product with 0, which NaN would pass
    zero = loss.detach()
    return ContrastLoss(loss, zero.long(), zero, zero)


def _mean_over_anchors(parts, log_negatives):
    """Mean over anchors with a positive of the mean of -log p over their positives.

    -log(exp(s_p) / (exp(s_p) + E)) = softplus(log E - s_p), E = sum over negatives of exp(s_n):
    finite for any temperature, and exactly 0 for an anchor without negatives.
    """
    sums, counts = zip(*(part.positive_losses(log_negatives) for part in parts))
    positives = reduce(torch.add, counts)
    row_loss = reduce(torch.add, sums) / positives.clamp(min=1)
    num_anchors = (positives > 0).sum()
    return row_loss.sum() / num_anchors.clamp(min=1), num_anchors
