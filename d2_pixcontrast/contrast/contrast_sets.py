"""What anchors are contrasted with: the batch, or a memory.

A set offers :func:`pixel_contrast_loss` three methods:

* ``log_negatives()``: (N,) log of the sum of exp(s_in) over its negatives.
* ``positive_losses(log_negatives)``: (N,) sums of softplus(log E_i - s_ip) over its positives, and
  (N,) numbers of them.
* ``similarities()``: sum and number of the cosines of all positive pairs, and of all negative ones.
"""

import torch
from torch.nn import functional as F

from .mined_loss import mined_log_negatives, mined_positive_losses
from .mining import chosen_pairs
from .streaming_loss import EMPTY, blocks, log_negatives, positive_losses


class BatchSet:
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
        return log_sum(self.logits, self.negative)

    def positive_losses(self, log_negatives):
        pair_loss = F.softplus(log_negatives[:, None] - self.logits).where(self.positive, 0)
        return pair_loss.sum(dim=1), self.positive.sum(dim=1)

    def similarities(self):
        cosine = self.cosine.detach()
        for pairs in (self.all_positive, self.all_negative):
            yield cosine.where(pairs, 0).sum()
            yield pairs.sum()


class BankSet:
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
        mining = self.mining.of_positives()
        if mining.mode == "all":
            return positive_losses(*rows, temperature=self.temperature, chunk=self.chunk)
        return mined_positive_losses(*rows, mining, self.row_keys, temperature=self.temperature)

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


def log_sum(logits, mask):
    """(N,) log of the sum of exp over the masked columns, ``EMPTY`` where there are none."""
    some = mask.any(dim=1, keepdim=True)
    # logsumexp over an empty set is -inf, and its gradient NaN: such rows get a constant instead.
    masked = logits.masked_fill(~mask, -torch.inf).where(some, 0)
    return torch.logsumexp(masked, dim=1).where(some.squeeze(1), EMPTY)
