"""pixel_contrast_loss with a memory, against naive loops and the dense formula."""

import pytest
import torch
from operator_record import Operators
from torch.nn import functional as F

from d2_pixcontrast.contrast import ClassEntries, ExtraNegatives, pixel_contrast_loss
from d2_pixcontrast.contrast.class_tiles import class_tiles


def unit(*shape, g, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, generator=g, dtype=dtype), dim=-1)


def random_case(n=20, classes=4, sizes=(7, 5), dim=6, seed=0, dtype=torch.float64, fill=None):
    """Anchors, labels, mask and a bank; empty slots hold vectors that must not matter."""
    g = torch.Generator().manual_seed(seed)
    anchors = unit(n, dim, g=g, dtype=dtype).requires_grad_()
    labels = torch.randint(classes, (n,), generator=g)
    mask = torch.rand(n, generator=g) < 0.8
    bank = []
    for size in sizes:
        filled = torch.randint(size + 1, (classes,), generator=g) if fill is None else fill
        bank.append(ClassEntries(unit(classes, size, dim, g=g, dtype=dtype), filled))
    return anchors, labels, mask, bank


def flat(bank):
    """Filled entries and their classes."""
    rows = [rows[c, :n] for rows, fill in bank for c, n in enumerate(fill.tolist())]
    classes = [c for _, fill in bank for c, n in enumerate(fill.tolist()) for _ in range(n)]
    return torch.cat(rows), torch.tensor(classes, dtype=torch.int64)


def naive_loss(anchors, labels, mask, bank, temperature, base, with_batch=False, extra=None):
    """The formula, one anchor and one positive at a time."""
    rows, classes = flat(bank)
    losses = []
    for i in range(len(anchors)):
        if not mask[i]:
            continue
        others = [j for j in range(len(anchors)) if with_batch and mask[j] and j != i]
        contrast = torch.cat([rows, anchors[others]])
        of = torch.cat([classes, labels[others]])
        logits = contrast @ anchors[i] / temperature
        positives, negatives = logits[of == labels[i]], logits[of != labels[i]]
        if extra is not None:
            negatives = torch.cat([negatives, extra.rows[extra.mask[i]] @ anchors[i] / temperature])
        if not len(positives):
            continue
        terms = [s - torch.logsumexp(torch.cat([s[None], negatives]), 0) for s in positives]
        losses.append(-(temperature / base) * sum(terms) / len(terms))
    return sum(losses) / len(losses) if losses else (anchors * 0).sum()


def dense_loss(anchors, labels, bank, temperature, base):
    """The formula with the whole matrix."""
    rows, classes = flat(bank)
    logits = anchors @ rows.t() / temperature
    positive = labels[:, None] == classes
    level = torch.logsumexp(logits.masked_fill(positive, -torch.inf), 1, keepdim=True)
    pairs = F.softplus(level - logits).where(positive, 0)
    return (temperature / base) * (pairs.sum(1) / positive.sum(1)).mean()


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.07, 1.0])
@pytest.mark.parametrize("chunk", [1, 3, 16, 1000])
@pytest.mark.parametrize("n, classes, sizes", [(20, 4, (7, 5)), (5, 9, (3,)), (150, 2, (11,))])
def test_equals_naive_loops(n, classes, sizes, chunk, temperature):
    anchors, labels, mask, bank = random_case(n, classes, sizes, seed=n)
    expected = naive_loss(anchors, labels, mask, bank, temperature, 0.07)
    (expected_grad,) = torch.autograd.grad(expected, anchors)
    result = pixel_contrast_loss(
        anchors, labels, mask=mask, bank=bank, temperature=temperature, chunk=chunk
    )
    (grad,) = torch.autograd.grad(result.loss, anchors)
    torch.testing.assert_close(result.loss, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-7, atol=1e-9)
    assert torch.all(grad[~mask] == 0)


def test_gradcheck():
    anchors, labels, mask, bank = random_case(9, dim=4)
    for temperature in (0.02, 0.3):  # with and without a running maximum
        assert torch.autograd.gradcheck(
            lambda a, t=temperature: (
                pixel_contrast_loss(a, labels, mask=mask, bank=bank, temperature=t, chunk=4).loss
            ),
            (anchors,),
            eps=1e-7,
            atol=1e-5,
        )


@pytest.mark.parametrize("temperature", [0.01, 0.024, 0.026, 0.1])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_float32_is_exact_to_1e_5(temperature, spread):
    """Where all negatives are far away, a constant shift alone would underflow to no negatives."""
    anchors, labels, _, bank = random_case(64, 5, (40, 30), dim=16, fill=torch.tensor([30] * 5))
    centres = unit(5, 16, g=torch.Generator().manual_seed(3)) * spread
    with torch.no_grad():
        anchors.copy_(F.normalize(anchors - centres[labels], dim=1))  # far from their own class
        bank = [ClassEntries(F.normalize(r + centres[:, None], dim=2), f) for r, f in bank]
    expected = dense_loss(anchors, labels, bank, temperature, 0.07)
    (expected_grad,) = torch.autograd.grad(expected, anchors)
    single = anchors.detach().float().requires_grad_()
    bank = [ClassEntries(rows.float(), fill) for rows, fill in bank]
    loss = pixel_contrast_loss(single, labels, bank=bank, temperature=temperature, chunk=16).loss
    loss.backward()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=0)
    scale = expected_grad.abs().max()
    assert (single.grad.double() - expected_grad).abs().max() < 1e-5 * scale


def test_negatives_that_underflow_still_count():
    """Cosine -1 to the negative, -0.9 to the positive: exp(-200) is 0, the loss is not."""
    anchors = torch.tensor([[1.0, 0.0]], requires_grad=True)
    positive = [-0.9, (1 - 0.81) ** 0.5]
    bank = [ClassEntries(torch.tensor([[positive], [[-1.0, 0.0]]]), torch.tensor([1, 1]))]
    labels = torch.tensor([0])
    loss = pixel_contrast_loss(anchors, labels, bank=bank, temperature=0.01).loss
    exact = [ClassEntries(bank[0].rows.double(), bank[0].fill)]
    expected = naive_loss(anchors.double(), labels, [True], exact, 0.01, 0.07)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_the_backward_does_not_see_what_is_written_after_the_forward():
    anchors, labels, mask, bank = random_case()
    (expected,) = torch.autograd.grad(
        pixel_contrast_loss(anchors, labels, mask=mask, bank=bank).loss, anchors
    )
    loss = pixel_contrast_loss(anchors, labels, mask=mask, bank=bank).loss
    for rows, fill in bank:
        rows.normal_()
        fill.zero_()
    (grad,) = torch.autograd.grad(loss, anchors)
    assert torch.equal(grad, expected)


def test_what_empty_slots_hold_does_not_matter():
    """The published bank counted random or zero entries, the latter with class 0."""
    anchors, labels, mask, bank = random_case()
    results = []
    for value in (0.0, 1.0):
        for rows, fill in bank:
            rows[torch.arange(rows.shape[1]) >= fill[:, None]] = value
        result = pixel_contrast_loss(anchors, labels, mask=mask, bank=bank)
        results.append((*result, torch.autograd.grad(result.loss, anchors)[0]))
    for a, b in zip(*results):
        assert torch.equal(a, b)


def test_an_anchor_without_an_entry_of_its_class_takes_no_part():
    fill = torch.tensor([0, 3, 2, 0])
    anchors, labels, mask, bank = random_case(sizes=(5,), fill=fill)
    result = pixel_contrast_loss(anchors, labels, mask=mask, bank=bank)
    counted = mask & (fill[labels] > 0)
    assert result.num_anchors == counted.sum() and counted.sum() < mask.sum()
    (grad,) = torch.autograd.grad(result.loss, anchors)
    assert torch.all(grad[~counted] == 0) and torch.all(grad[counted].norm(dim=1) > 0)


@pytest.mark.parametrize("fill", [[0, 0, 0, 0], [0, 5, 0, 0]])
def test_an_empty_bank_and_one_without_negatives_give_zero_connected(fill):
    anchors, labels, mask, bank = random_case(sizes=(5,), fill=torch.tensor(fill))
    for options in ({}, {"temperature": 0.01}):
        result = pixel_contrast_loss(anchors, labels, mask=mask, bank=bank, **options)
        assert result.loss == 0
        assert result.num_anchors == (mask & (torch.tensor(fill)[labels] > 0)).sum()
        (grad,) = torch.autograd.grad(result.loss, anchors)
        assert torch.all(grad == 0)


def test_no_self_mask_on_the_bank():
    """Entry i of the bank is not anchor i: the published code left it out all the same."""
    g = torch.Generator().manual_seed(0)
    anchors = unit(4, 5, g=g)
    bank = [ClassEntries(anchors.view(2, 2, 5).clone(), torch.tensor([2, 2]))]
    labels = torch.tensor([0, 0, 1, 1])
    loss = pixel_contrast_loss(anchors, labels, bank=bank).loss
    torch.testing.assert_close(loss, naive_loss(anchors, labels, [True] * 4, bank, 0.1, 0.07))
    assert pixel_contrast_loss(anchors, labels, bank=bank).pos_sim > 0.5


def test_one_entry_of_a_class_is_enough():
    """0 / 0 in the published code, where the self-mask took the only positive."""
    anchors, labels, _, bank = random_case(6, 3, (4,), fill=torch.tensor([1, 1, 1]))
    result = pixel_contrast_loss(anchors, labels, bank=bank)
    assert result.num_anchors == 6 and result.loss > 0


@pytest.mark.parametrize("seed", range(3))
def test_bank_and_batch(seed):
    anchors, labels, mask, bank = random_case(seed=seed)
    expected = naive_loss(anchors, labels, mask, bank, 0.1, 0.07, with_batch=True)
    (expected_grad,) = torch.autograd.grad(expected, anchors)
    result = pixel_contrast_loss(anchors, labels, mask=mask, bank=bank, with_batch=True)
    (grad,) = torch.autograd.grad(result.loss, anchors)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("with_batch", [False, True])
def test_extra_negatives_join_and_get_a_gradient(with_batch):
    anchors, labels, mask, bank = random_case(seed=2)
    g = torch.Generator().manual_seed(5)
    extra = ExtraNegatives(unit(6, 6, g=g).requires_grad_(), torch.rand(20, 6, generator=g) < 0.4)
    extra.mask[3] = False
    expected = naive_loss(anchors, labels, mask, bank, 0.1, 0.07, with_batch, extra)
    expected_grads = torch.autograd.grad(expected, (anchors, extra.rows))
    result = pixel_contrast_loss(
        anchors, labels, mask=mask, bank=bank, with_batch=with_batch, extra=extra
    )
    grads = torch.autograd.grad(result.loss, (anchors, extra.rows))
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(grads, expected_grads)


def test_extra_negatives_are_all_there_are():
    anchors, labels, _, bank = random_case(fill=torch.tensor([3, 0, 0, 0]), sizes=(4,))
    extra = ExtraNegatives(anchors.detach()[:2], torch.ones(20, 2, dtype=torch.bool))
    expected = naive_loss(anchors, labels, [True] * 20, bank, 0.1, 0.07, extra=extra)
    loss = pixel_contrast_loss(anchors, labels, bank=bank, extra=extra).loss
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("with_batch", [False, True])
def test_similarities(with_batch):
    anchors, labels, mask, bank = random_case()
    rows, classes = flat(bank)
    cosine, same = anchors.detach() @ rows.t(), labels[:, None] == classes
    usable = mask[:, None].expand_as(same)
    if with_batch:
        cosine = torch.cat([cosine, anchors.detach() @ anchors.detach().t()], 1)
        batch = labels[:, None] == labels
        same = torch.cat([same, batch], 1)
        usable = torch.cat([usable, mask[:, None] & mask & ~torch.eye(20, dtype=torch.bool)], 1)
    result = pixel_contrast_loss(anchors, labels, mask=mask, bank=bank, with_batch=with_batch)
    torch.testing.assert_close(result.pos_sim, cosine[usable & same].mean())
    torch.testing.assert_close(result.neg_sim, cosine[usable & ~same].mean())
    assert not result.pos_sim.requires_grad and not result.neg_sim.requires_grad


def test_half_precision_anchors_and_bfloat16_banks_are_widened():
    anchors, labels, _, bank = random_case(dtype=torch.float32)
    half = anchors.detach().half()
    bank16 = [ClassEntries(rows.bfloat16(), fill) for rows, fill in bank]
    bank32 = [ClassEntries(rows.float(), fill) for rows, fill in bank16]
    exact = pixel_contrast_loss(half.float(), labels, bank=bank32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = pixel_contrast_loss(half, labels, bank=bank16)
    assert result.loss.dtype == torch.float32
    for a, b in zip(result, exact):
        torch.testing.assert_close(a, b)


def test_the_whole_matrix_is_never_built_and_logarithms_are_for_positives_only():
    n, classes, size, dim, chunk = 200, 20, 300, 8, 64
    anchors, labels, mask, bank = random_case(n, classes, (size, size), dim, dtype=torch.float32)
    with Operators() as operators:
        result = pixel_contrast_loss(anchors, labels, mask=mask, bank=bank, chunk=chunk)
        result.loss.backward()
    operators.assert_no_sync()
    tiles = n // 32 + classes
    assert operators.largest < 2 * tiles * 32 * 300 < n * classes * size
    assert operators.numel["softplus"] <= tiles * 32 * 2 * size < n * classes * 2 * size / 2


def test_class_tiles():
    g = torch.Generator().manual_seed(1)
    for n, classes, tile in ((1, 1, 4), (50, 3, 4), (50, 80, 4), (64, 2, 64), (5, 2, 64)):
        labels = torch.randint(classes, (n,), generator=g)
        mask = torch.rand(n, generator=g) < 0.7
        tiles = class_tiles(labels, mask, classes, tile)
        found = tiles.index[tiles.valid]
        assert sorted(found.tolist()) == mask.nonzero().flatten().tolist()
        of_row = tiles.classes[:, None].expand_as(tiles.index)
        assert torch.equal(labels[found], of_row[tiles.valid])
