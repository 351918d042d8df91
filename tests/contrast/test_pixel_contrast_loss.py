"""pixel_contrast_loss against naive loops, and what it must survive."""

import math

import pytest
import torch
from torch.nn import functional as F

from d2_pixcontrast.contrast import ExtraNegatives, MemoryBank, Mining, pixel_contrast_loss


def naive_loss(anchors, labels, mask, temperature, base_temperature):
    """The formula, one anchor and one positive at a time."""
    rows = [i for i in range(len(labels)) if mask[i]]
    losses = []
    for i in rows:
        positives = [j for j in rows if j != i and labels[j] == labels[i]]
        negatives = [j for j in rows if labels[j] != labels[i]]
        if not positives:
            continue
        terms = []
        for p in positives:
            s_p = (anchors[i] @ anchors[p]) / temperature
            denominator = torch.exp(s_p)
            for n in negatives:
                denominator = denominator + torch.exp(anchors[i] @ anchors[n] / temperature)
            terms.append(s_p - torch.log(denominator))
        losses.append(-(temperature / base_temperature) * sum(terms) / len(terms))
    return sum(losses) / len(losses) if losses else (anchors * 0).sum()


def random_anchors(n, classes, seed=0, dim=8, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    anchors = F.normalize(torch.randn(n, dim, generator=g, dtype=dtype), dim=1)
    labels = torch.randint(classes, (n,), generator=g)
    mask = torch.rand(n, generator=g) < 0.8
    return anchors.requires_grad_(), labels, mask


@pytest.mark.parametrize("n, classes", [(2, 1), (7, 2), (12, 3), (20, 15), (16, 1)])
@pytest.mark.parametrize("temperature, base", [(0.1, 0.07), (0.5, 0.5)])
def test_equals_naive_loops(n, classes, temperature, base):
    anchors, labels, mask = random_anchors(n, classes, seed=n)
    expected = naive_loss(anchors, labels, mask, temperature, base)
    (expected_grad,) = torch.autograd.grad(expected, anchors)
    result = pixel_contrast_loss(
        anchors, labels, mask=mask, temperature=temperature, base_temperature=base
    )
    (grad,) = torch.autograd.grad(result.loss, anchors)
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-11)


def test_gradcheck():
    anchors, labels, mask = random_anchors(9, 3, dim=4)
    assert torch.autograd.gradcheck(
        lambda a: pixel_contrast_loss(a, labels, mask=mask, temperature=0.3).loss, (anchors,)
    )


def test_masked_rows_take_no_part():
    anchors, labels, mask = random_anchors(20, 3)
    whole = pixel_contrast_loss(anchors, labels, mask=mask).loss
    alone = pixel_contrast_loss(anchors[mask], labels[mask]).loss
    torch.testing.assert_close(whole, alone)
    (grad,) = torch.autograd.grad(whole, anchors)
    assert torch.all(grad[~mask] == 0) and torch.any(grad[mask] != 0)


def test_single_anchor_of_a_class_serves_as_negative_only():
    anchors, _, _ = random_anchors(5, 1)
    labels = torch.tensor([0, 0, 0, 0, 1])
    result = pixel_contrast_loss(anchors, labels)
    assert result.num_anchors == 4
    without = pixel_contrast_loss(anchors[:4], labels[:4])
    assert result.loss > without.loss


@pytest.mark.parametrize("case", ["no rows", "all distinct", "one class"])
def test_nothing_to_contrast_is_zero_and_connected(case):
    anchors, labels, _ = random_anchors(6, 1)
    mask = torch.full((6,), case != "no rows")
    if case == "all distinct":
        labels = torch.arange(6)
    result = pixel_contrast_loss(anchors, labels, mask=mask)
    assert result.loss == 0  # exactly: one class has no negatives, so -log(1)
    (grad,) = torch.autograd.grad(result.loss, anchors)
    assert torch.all(grad == 0)


@pytest.mark.parametrize("mode", ["all", "semi_hard"])
@pytest.mark.parametrize("with_bank", [False, True])
def test_no_anchors_at_all_are_zero_and_connected(mode, with_bank):
    """What ``anchors[valid]`` of a batch without labels is."""
    anchors, labels, _ = random_anchors(6, 1)
    bank = MemoryBank(3, anchors.shape[1], region_size=4, pixel_size=4)
    extra = ExtraNegatives(anchors, torch.zeros(0, 6, dtype=torch.bool))
    result = pixel_contrast_loss(
        anchors[:0],
        labels[:0],
        bank=bank.entries() if with_bank else None,
        extra=extra,
        mining=Mining(mode),
        row_keys=labels[:0],
    )
    (grad,) = torch.autograd.grad(result.loss, anchors)
    assert torch.all(grad == 0) and [value.item() for value in result] == [0, 0, 0, 0]
    assert result.num_anchors.dtype == pixel_contrast_loss(anchors, labels).num_anchors.dtype


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_finite_at_any_temperature_in_fp32(temperature):
    anchors, labels, mask = random_anchors(64, 4, dim=4, dtype=torch.float32)
    with torch.no_grad():
        anchors[1], labels[1] = -anchors[0], labels[0]  # the worst positive there is
    expected = naive_loss(anchors.detach().double(), labels, mask, temperature, temperature)
    loss = pixel_contrast_loss(
        anchors, labels, mask=mask, temperature=temperature, base_temperature=temperature
    ).loss
    (grad,) = torch.autograd.grad(loss, anchors)
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(loss.detach().double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_half_precision_is_widened():
    anchors, labels, _ = random_anchors(32, 2, dtype=torch.float32)
    exact = pixel_contrast_loss(anchors.half().float(), labels).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pixel_contrast_loss(anchors.half(), labels).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact)


def test_scalars():
    anchors = torch.eye(4)[[0, 0, 1, 1]]
    result = pixel_contrast_loss(anchors, torch.tensor([0, 0, 1, 1]), temperature=1.0)
    assert result.pos_sim == 1 and result.neg_sim == 0 and result.num_anchors == 4
    expected = (1.0 / 0.07) * -(1 - math.log(math.e + 2))
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)
