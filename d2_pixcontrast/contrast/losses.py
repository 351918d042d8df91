"""Supervised pixel contrast."""

from typing import NamedTuple

import torch
from torch.nn import functional as F


class ContrastLoss(NamedTuple):
    """Result of :func:`pixel_contrast_loss`; the scalars carry no gradient.

    Attributes:
        loss: scalar, mean over the anchors that have a positive.
        num_anchors: scalar, how many these are.
        pos_sim: scalar, mean cosine between anchors and their positives (0 without any).
        neg_sim: the same for negatives.
    """

    loss: torch.Tensor
    num_anchors: torch.Tensor
    pos_sim: torch.Tensor
    neg_sim: torch.Tensor


def pixel_contrast_loss(
    anchors: torch.Tensor,
    labels: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
) -> ContrastLoss:
    """Contrast each anchor with all the others: Wang et al., ICCV 2021, equation (3).

    With s_ij = <a_i, a_j> / tau, P_i the other anchors of the same label and N_i those of other
    labels::

        L_i = -(tau / tau0) * mean_{p in P_i} [ s_ip - log(exp(s_ip) + sum_{n in N_i} exp(s_in)) ]

    Every positive has a denominator of its own, without the other positives. The mean runs over
    the anchors that have a positive; without any the loss is 0, connected to the graph.

    Args:
        anchors: (N, D) unit vectors. Half precision is widened to float32.
        labels: (N,) int64.
        mask: (N,) bool, False for rows that take no part; None = all take part.
        temperature: tau.
        base_temperature: tau0.
    """
    if anchors.dtype in (torch.float16, torch.bfloat16):
        anchors = anchors.float()
    if mask is None:
        mask = torch.ones_like(labels, dtype=torch.bool)
    with torch.autocast(anchors.device.type, enabled=False):
        cosine = anchors @ anchors.t()
        usable = mask[:, None] & mask[None, :]
        same = labels[:, None] == labels[None, :]
        positive = (usable & same).fill_diagonal_(False)  # an anchor is not its own positive
        negative = usable & ~same
        loss, num_anchors = _loss_of_pairs(cosine / temperature, positive, negative)
    with torch.no_grad():
        pos_sim = _masked_mean(cosine.detach(), positive)
        neg_sim = _masked_mean(cosine.detach(), negative)
    return ContrastLoss(loss * (temperature / base_temperature), num_anchors, pos_sim, neg_sim)


def _loss_of_pairs(logits, positive, negative):
    """Mean over rows with a positive of the mean of -log p over their positives.

    -log(exp(s_p) / (exp(s_p) + E)) = softplus(log E - s_p), E = sum over negatives of exp(s_n):
    finite for any temperature, and exactly 0 in a row without negatives.
    """
    has_negative = negative.any(dim=1, keepdim=True)
    # logsumexp over an empty set is -inf, and its gradient NaN: such rows get a constant instead.
    masked = logits.masked_fill(~negative, -torch.inf).where(has_negative, 0)
    log_negatives = torch.logsumexp(masked, dim=1, keepdim=True)
    pair_loss = F.softplus(log_negatives - logits).where(positive & has_negative, 0)
    positives = positive.sum(dim=1)
    row_loss = pair_loss.sum(dim=1) / positives.clamp(min=1)
    num_anchors = (positives > 0).sum()
    return row_loss.sum() / num_anchors.clamp(min=1), num_anchors


def _masked_mean(values, mask):
    return values.where(mask, 0).sum() / mask.sum().clamp(min=1)
