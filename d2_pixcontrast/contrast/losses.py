"""Supervised pixel contrast."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .mined_loss import mined_log_negatives, mined_positive_losses
from .mining import Mining, chosen_pairs
from .streaming_loss import (
    DEFAULT_CHUNK,
    EMPTY,
    ClassEntries,
    blocks,
    log_negatives,
    positive_losses,
)


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
    chunk: int = DEFAULT_CHUNK,
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
        mining: chooses positives and negatives, in the bank and in the batch; None = all.
        row_keys: (N,) int64 in [0, 2**32), random; for the modes of ``mining`` that draw.
        temperature: tau.
        base_temperature: tau0.
        chunk: entries of the bank that are looked at together.

    Raises:
        ValueError: ``mining`` draws, but there are no ``row_keys``.
    """
    if anchors.dtype in (torch.float16, torch.bfloat16):
        anchors = anchors.float()
    if mask is None:
        mask = torch.ones_like(labels, dtype=torch.bool)
    mining = Mining() if mining is None else mining
    if row_keys is None:
        if mining.mode in ("random", "semi_hard"):
            raise ValueError(f"mining mode {mining.mode!r} needs row_keys")
        row_keys = torch.zeros_like(labels)
    parts = []
    with torch.autocast(anchors.device.type, enabled=False):
        if bank is None or with_batch:
            parts.append(_BatchPart(anchors, labels, mask, temperature, mining, row_keys))
        if bank is not None:
            parts.append(
                _BankPart(anchors, labels, mask, temperature, mining, row_keys, bank, chunk)
            )
        logs = [part.log_negatives() for part in parts]
        if extra is not None:
            logits = anchors @ extra.rows.to(anchors.dtype).t() / temperature
            logs.append(_log_sum(logits, extra.mask & mask[:, None]))
        loss, num_anchors = _mean_over_anchors(parts, reduce(torch.logaddexp, logs))
        with torch.no_grad():
            sums = [sum(values) for values in zip(*(part.similarities() for part in parts))]
    pos_sim, neg_sim = (sums[i] / sums[i + 1].clamp(min=1) for i in (0, 2))
    return ContrastLoss(loss * (temperature / base_temperature), num_anchors, pos_sim, neg_sim)


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


class _BatchPart:
    """The anchors as contrast set: dense, since it is small and needs a gradient."""

    def __init__(self, anchors, labels, mask, temperature, mining, row_keys):
        self.cosine = anchors @ anchors.t()
        self.logits = self.cosine / temperature
        usable = mask[:, None] & mask[None, :]
        same = labels[:, None] == labels[None, :]
        self.all_positive = (usable & same).fill_diagonal_(False)  # not its own positive
        self.all_negative = usable & ~same
        self.positive, self.negative = chosen_pairs(
            self.logits.detach(), self.all_positive, self.all_negative, mining, row_keys
        )

    def log_negatives(self):
        return _log_sum(self.logits, self.negative)

    def positive_losses(self, log_negatives):
        pair_loss = F.softplus(log_negatives[:, None] - self.logits).where(self.positive, 0)
        return pair_loss.sum(dim=1), self.positive.sum(dim=1)

    def similarities(self):
        cosine = self.cosine.detach()
        for pairs in (self.all_positive, self.all_negative):
            yield cosine.where(pairs, 0).sum()
            yield pairs.sum()


class _BankPart:
    """A memory as contrast set."""

    def __init__(self, anchors, labels, mask, temperature, mining, row_keys, bank, chunk):
        self.anchors, self.labels, self.mask, self.bank = anchors, labels, mask, bank
        self.temperature, self.chunk = temperature, chunk
        self.mining, self.row_keys = mining, row_keys

    def log_negatives(self):
        if self.mining.mode == "all":
            return log_negatives(
                self.anchors,
                self.labels,
                self.bank,
                temperature=self.temperature,
                chunk=self.chunk,
            )
        return mined_log_negatives(
            self.anchors,
            self.labels,
            self.bank,
            self.mining,
            self.row_keys,
            temperature=self.temperature,
        )

    def positive_losses(self, log_negatives):
        rows = (self.anchors, log_negatives, self.labels, self.mask, self.bank)
        if self.mining.mode == "all":
            return positive_losses(*rows, temperature=self.temperature, chunk=self.chunk)
        return mined_positive_losses(
            *rows, self.mining, self.row_keys, temperature=self.temperature
        )

    def similarities(self):
        """Sums of cosines from the sum of each class: one pass over the bank, no matrix."""
        anchors = self.anchors.detach() * self.mask[:, None]
        of_class = anchors.new_zeros(self.bank[0].rows.shape[0], anchors.shape[1])
        for block in blocks(self.bank, self.chunk, anchors.dtype):
            sums = torch.bmm(block.filled.to(anchors.dtype)[:, None], block.rows)
            of_class.index_add_(0, block.classes, sums.squeeze(1))
        fill = sum(fill for _, fill in self.bank)
        labels = self.labels.where(self.mask, 0)
        positive = (anchors * of_class[labels]).sum()
        positives = (fill[labels] * self.mask).sum()
        everything = (anchors.sum(0) * of_class.sum(0)).sum()
        return positive, positives, everything - positive, fill.sum() * self.mask.sum() - positives


def _log_sum(logits, mask):
    """(N,) log of the sum of exp over the masked columns, ``EMPTY`` where there are none."""
    some = mask.any(dim=1, keepdim=True)
    # logsumexp over an empty set is -inf, and its gradient NaN: such rows get a constant instead.
    masked = logits.masked_fill(~mask, -torch.inf).where(some, 0)
    return torch.logsumexp(masked, dim=1).where(some.squeeze(1), EMPTY)
