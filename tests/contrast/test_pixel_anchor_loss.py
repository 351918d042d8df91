"""Contextrast's loss against loops over anchors, positives and negatives."""

import math

import pytest
import torch
from operator_record import Operators
from torch.nn import functional as F

from d2_pixcontrast.contrast import AnchorNegatives, PixelSample, pixel_anchor_loss

CLASSES, DIM = 5, 4


def make(seed=0, slots=24, negatives=9, dtype=torch.float64):
    """Anchors of all classes but 3; no sampled pixel of class 1; no negative for class 2."""
    g = torch.Generator().manual_seed(seed)

    def units(n):
        return F.normalize(torch.randn(n, DIM, generator=g, dtype=dtype), dim=1).requires_grad_()

    labels = torch.randint(CLASSES, (slots,), generator=g)
    labels[labels == 1] = 0
    mask = torch.rand(slots, generator=g) > 0.2
    sample = PixelSample(torch.arange(slots), labels, mask, torch.ones_like(labels))
    present = torch.tensor([True, True, True, False, True])
    serves = torch.rand(CLASSES, negatives, generator=g) > 0.5
    serves[2] = False
    return units(CLASSES), units(slots), units(negatives), sample, present, serves


def loss_of(anchors, rows, extra, sample, present, serves, with_negatives, **options):
    negatives = AnchorNegatives(anchors @ extra.t(), serves) if with_negatives else None
    return pixel_anchor_loss(anchors @ rows.t(), sample, present, negatives=negatives, **options)


def naive(anchors, rows, extra, sample, present, serves, with_negatives, temperature):
    losses, unserved = [], 0
    pos_sims, neg_sims = [], []
    slots = [j for j in range(len(rows)) if sample.mask[j]]
    for n in range(CLASSES):
        positives = [rows[j] for j in slots if sample.labels[j] == n]
        if not present[n] or not positives:
            continue
        negatives = [extra[e] for e in range(len(extra)) if with_negatives and serves[n, e]]
        if not negatives:
            unserved += 1
            negatives = [rows[j] for j in slots if sample.labels[j] != n]
        below = sum(((anchors[n] @ z) / temperature).exp() for z in negatives)
        terms = []
        for z in positives:
            own = ((anchors[n] @ z) / temperature).exp()
            terms.append((own / (own + below)).log())
        losses.append(-sum(terms) / len(terms))
        pos_sims.append(sum(anchors[n] @ z for z in positives) / len(positives))
        neg_sims.append(sum(anchors[n] @ z for z in negatives) / max(len(negatives), 1))
    mean = [sum(values) / len(values) for values in (losses, pos_sims, neg_sims)]
    return mean[0], len(losses), unserved, mean[1], mean[2]


@pytest.mark.parametrize("with_negatives", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_gradient_and_scalars_are_those_of_a_loop(with_negatives, temperature):
    for seed in range(4):
        parts = make(seed)
        result = loss_of(*parts, with_negatives, temperature=temperature)
        expected = naive(*parts, with_negatives, temperature)
        assert (int(result.num_anchors), int(result.num_unserved)) == expected[1:3]
        assert expected[1] == 3 and expected[2] == (1 if with_negatives else 3)
        torch.testing.assert_close(result.loss, expected[0])
        torch.testing.assert_close(result.pos_sim, expected[3].detach())
        torch.testing.assert_close(result.neg_sim, expected[4].detach())
        inputs = parts[: 3 if with_negatives else 2]
        torch.testing.assert_close(
            torch.autograd.grad(result.loss, inputs), torch.autograd.grad(expected[0], inputs)
        )


def test_gradcheck():
    *rows, sample, present, serves = make()

    def loss(*rows):
        return loss_of(*rows, sample, present, serves, True).loss

    assert torch.autograd.gradcheck(loss, rows)


def test_a_sample_of_the_positives_estimates_the_mean_over_all():
    anchors, rows, extra, sample, present, serves = make(slots=60)
    full = sample._replace(labels=torch.zeros_like(sample.labels), mask=torch.ones(60).bool())
    serves = torch.ones_like(serves)
    losses = []
    for seed in range(600):
        g = torch.Generator().manual_seed(seed)
        drawn = torch.zeros(60).index_fill(0, torch.randperm(60, generator=g)[:6], 1).bool()
        part = full._replace(mask=drawn)
        losses.append(loss_of(anchors, rows, extra, part, present, serves, True).loss.item())
    whole = loss_of(anchors, rows, extra, full, present, serves, True).loss.item()
    error = torch.tensor(losses).std().item() / math.sqrt(len(losses))
    assert error < 0.05 * whole
    assert abs(sum(losses) / len(losses) - whole) < 4 * error


@pytest.mark.parametrize("case", ["no pixel", "no anchor", "one class"])
def test_nothing_to_contrast_is_zero_and_connected(case):
    anchors, rows, extra, sample, present, serves = make()
    if case == "no pixel":
        sample = sample._replace(mask=torch.zeros_like(sample.mask))
    elif case == "no anchor":
        present = torch.zeros_like(present)
    else:
        sample = sample._replace(labels=torch.zeros_like(sample.labels))
        serves = torch.zeros_like(serves)
    result = loss_of(anchors, rows, extra, sample, present, serves, True)
    result.loss.backward()
    assert result.loss == 0 and result.num_anchors == (case == "one class")
    for tensor in (anchors, rows, extra):
        assert torch.all(tensor.grad == 0)
    assert all(torch.isfinite(value) for value in result)


def test_extreme_temperatures_stay_finite():
    parts = make(dtype=torch.float32)
    for temperature in (1e-3, 1e3):
        result = loss_of(*parts, True, temperature=temperature)
        result.loss.backward()
        assert torch.isfinite(result.loss) and parts[0].grad.isfinite().all()


def test_no_host_sync():
    parts = make()
    with Operators() as record:
        loss_of(*parts, True).loss.backward()
    record.assert_no_sync()
