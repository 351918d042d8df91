"""Contrast within and between sets of rows, against loops and against the dense loss."""

import pytest
import torch
from operator_record import Operators
from torch.nn import functional as F

from d2_pixcontrast.contrast import LabelledRows, cross_contrast_loss, pixel_contrast_loss

CLASSES, DIM = 5, 4


def make(seed=0, count=17, absent=(), dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(count, DIM, generator=g, dtype=dtype), dim=1)
    labels = torch.randint(CLASSES, (count,), generator=g)
    weight = torch.rand(count, generator=g) + 0.1
    weight[torch.rand(count, generator=g) < 0.2] = 0
    for c in absent:
        weight[labels == c] = 0
    return LabelledRows(rows.requires_grad_(), labels, weight)


def naive(anchors, others, temperature):
    itself = others is None
    others = anchors if itself else others
    there = [j for j in range(len(others.rows)) if others.weight[j] > 0]
    total, weights, pos, neg = 0.0, 0.0, [], []
    for i in range(len(anchors.rows)):
        same = [j for j in there if others.labels[j] == anchors.labels[i]]
        positives = [j for j in same if not (itself and j == i)]
        if anchors.weight[i] == 0 or not positives:
            continue
        cosine = {j: anchors.rows[i] @ others.rows[j] for j in there}
        negatives = [j for j in there if j not in same]
        below = sum((cosine[j] / temperature).exp() for j in negatives)
        terms = []
        for j in positives:
            own = (cosine[j] / temperature).exp()
            terms.append(-(own / (own + below)).log())
        total = total + anchors.weight[i].double() * sum(terms) / len(terms)
        weights += float(anchors.weight[i])
        pos += [cosine[j].detach() for j in positives]
        neg += [cosine[j].detach() for j in negatives]
    return total / weights, sum(pos) / len(pos), sum(neg) / len(neg)


@pytest.mark.parametrize("budget", [1, 60, 10**6])
@pytest.mark.parametrize("between", [False, True])
def test_loss_gradient_and_scalars_are_those_of_a_loop(between, budget):
    for seed in range(3):
        anchors = make(seed, absent=[1])
        others = make(seed + 10, count=12, absent=[3]) if between else None
        inputs = [anchors.rows, others.rows] if between else [anchors.rows]
        result = cross_contrast_loss(
            anchors, others, num_classes=CLASSES, temperature=0.3, budget=budget
        )
        loss, pos_sim, neg_sim = naive(anchors, others, 0.3)
        torch.testing.assert_close(result.loss, loss, rtol=1e-6, atol=0)
        torch.testing.assert_close([result.pos_sim, result.neg_sim], [pos_sim, neg_sim])
        torch.testing.assert_close(
            torch.autograd.grad(result.loss, inputs),
            torch.autograd.grad(loss, inputs),
            rtol=1e-5,
            atol=1e-7,
        )


def test_equal_weights_are_the_dense_loss_without_tau0():
    rows = make(count=40)
    rows = rows._replace(weight=torch.ones(40))
    expected = pixel_contrast_loss(rows.rows, rows.labels, temperature=0.1, base_temperature=0.1)
    actual = cross_contrast_loss(rows, num_classes=CLASSES, temperature=0.1)
    torch.testing.assert_close(actual.loss, expected.loss)
    assert actual.num_anchors == expected.num_anchors
    torch.testing.assert_close(actual.pos_sim, expected.pos_sim)
    torch.testing.assert_close(actual.neg_sim, expected.neg_sim)


def test_gradcheck():
    anchors, others = make(0), make(1, count=6)

    def loss(a, b):
        return cross_contrast_loss(
            anchors._replace(rows=a), others._replace(rows=b), num_classes=CLASSES, budget=12
        ).loss

    assert torch.autograd.gradcheck(loss, (anchors.rows, others.rows))


@pytest.mark.parametrize("case", ["empty", "one class", "no positive"])
def test_nothing_to_contrast_is_zero_and_connected(case):
    rows = make(count=5)
    if case == "empty":
        rows = rows._replace(weight=torch.zeros(5))
    elif case == "one class":
        rows = rows._replace(labels=torch.zeros_like(rows.labels))
    else:
        rows = rows._replace(labels=torch.arange(5))
    for others in (None, rows._replace(weight=torch.zeros(5))):
        result = cross_contrast_loss(rows, others, num_classes=CLASSES)
        (grad,) = torch.autograd.grad(result.loss, rows.rows)
        assert result.loss == 0 and torch.all(grad == 0)
        assert all(torch.isfinite(value) for value in result)


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0), (0, None)])
def test_no_rows_at_all_are_zero_and_connected(sizes):
    sets = [None if size is None else make(count=5) for size in sizes]
    cut = [s and type(s)(*(part[:n] for part in s)) for s, n in zip(sets, sizes)]
    result = cross_contrast_loss(*cut, num_classes=CLASSES)
    assert [value.item() for value in result] == [0, 0, 0, 0]
    rows = [s.rows for s in sets if s is not None]
    assert not any(grad.any() for grad in torch.autograd.grad(result.loss, rows))


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_extreme_temperatures_stay_finite(temperature):
    """The published code subtracts no maximum: exp(1000) is inf."""
    rows = make(dtype=torch.float32)
    result = cross_contrast_loss(rows, num_classes=CLASSES, temperature=temperature)
    (grad,) = torch.autograd.grad(result.loss, rows.rows)
    assert torch.isfinite(result.loss) and result.loss > 0 and grad.isfinite().all()


def test_blocks_bound_the_memory_and_nothing_waits():
    rows = make(count=600, dtype=torch.float32)
    with Operators() as record:
        loss = cross_contrast_loss(rows, num_classes=CLASSES, budget=6000).loss
        loss.backward()
    record.assert_no_sync()
    assert record.largest <= 6000  # the matrix has 360000


def test_autocast_changes_nothing():
    rows = make(dtype=torch.float32)
    expected = cross_contrast_loss(rows, num_classes=CLASSES).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cross_contrast_loss(rows, num_classes=CLASSES).loss, expected)
