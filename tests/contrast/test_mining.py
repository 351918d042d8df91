"""Mining against naive choices."""

import math

import pytest
import torch
from operator_record import Operators
from test_streaming_loss import random_case
from torch.nn import functional as F

from d2_pixcontrast.contrast import Mining, mined_loss, pixel_contrast_loss, random_keys
from d2_pixcontrast.contrast.mining import choose, chosen_pairs

MODES = ["random", "hardest", "semi_hard"]


def random_hardness(n=6, columns=60, seed=0):
    g = torch.Generator().manual_seed(seed)
    hardness = torch.randn(n, columns, generator=g)
    absent = torch.rand(n, columns, generator=g) < torch.linspace(0, 1, n)[:, None]
    return hardness.masked_fill(absent, -torch.inf), random_keys(seed, 0, torch.arange(n), 1)[:, 0]


def naive_pool(row, mining):
    """Columns that may be chosen."""
    candidates = [j for j in range(len(row)) if row[j] > -math.inf]
    if mining.mode == "random":
        return set(candidates)
    ranked = sorted(candidates, key=lambda j: -row[j])
    if mining.mode == "hardest":
        return set(ranked)
    return set(ranked[: math.ceil(round(len(candidates) * mining.hard_fraction, 9))])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fraction", [0.1, 0.35, 1.0])
@pytest.mark.parametrize("limit", [1, 5, 40, 100])
def test_choice_is_of_the_right_size_from_the_right_pool(mode, fraction, limit):
    hardness, keys = random_hardness()
    mining = Mining(mode, hard_fraction=fraction)
    index, mask = choose(hardness, mining, limit, keys)
    for i, row in enumerate(hardness.tolist()):
        chosen = index[i, mask[i]].tolist()
        pool = naive_pool(row, mining)
        assert len(set(chosen)) == len(chosen) == min(limit, len(pool))
        assert set(chosen) <= pool
        if mode == "hardest" and chosen:
            rest = pool - set(chosen)
            assert min(row[j] for j in chosen) >= max((row[j] for j in rest), default=-math.inf)


@pytest.mark.parametrize("mode", ["random", "semi_hard"])
def test_draws_are_even_and_depend_on_the_key(mode):
    hardness = torch.arange(100.0).expand(300, 100)
    keys = random_keys(0, 0, torch.arange(300), 1)[:, 0]
    mining = Mining(mode, hard_fraction=0.4)
    index, mask = choose(hardness, mining, 10, keys)
    assert mask.all()
    hits = torch.bincount(index.flatten(), minlength=100)
    pool = 100 if mode == "random" else 40
    assert torch.all(hits[: 100 - pool] == 0)
    # Binomial(300, 10 / pool).
    expected = 3000 / pool
    assert (hits[100 - pool :] - expected).abs().max() < 5 * (expected * (1 - 10 / pool)) ** 0.5
    again, _ = choose(hardness, mining, 10, keys)
    assert torch.equal(again, index)
    # Two rows share 10 * 10 / pool of their columns on average, as independent draws do.
    shared = [len(set(index[i].tolist()) & set(index[i + 1].tolist())) for i in range(299)]
    assert abs(sum(shared) / 299 - 100 / pool) < 0.3
    assert not torch.equal(choose(hardness, mining, 10, keys, stream=1)[0], index)


def restricted_loss(anchors, labels, mask, bank, mining, keys, temperature):
    """The dense formula over the pairs that chosen_pairs takes from the whole matrix."""
    rows = torch.cat([rows.flatten(0, 1) for rows, _ in bank])
    classes = torch.cat([torch.arange(len(f)).repeat_interleave(r.shape[1]) for r, f in bank])
    filled = torch.cat([(torch.arange(r.shape[1]) < f[:, None]).flatten() for r, f in bank])
    logits = anchors @ rows.t() / temperature
    same = labels[:, None] == classes
    positive, negative = chosen_pairs(
        logits.detach(), same & filled & mask[:, None], ~same & filled & mask[:, None], mining, keys
    )
    losses = []
    for i in range(len(anchors)):
        if positive[i].any():
            s = logits[i][positive[i]]
            if negative[i].any():
                losses.append(F.softplus(torch.logsumexp(logits[i][negative[i]], 0) - s).mean())
            else:
                losses.append(s.sum() * 0)
    return (temperature / 0.07) * sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("budget, chunk", [(1, 1), (200, 12), (1 << 23, 1 << 17)])
def test_hardest_in_a_bank_equals_the_dense_formula(budget, chunk, temperature, monkeypatch):
    """Positives and negatives each with their own number; chunks of anchors, and blocks of the
    bank, change nothing."""
    monkeypatch.setattr(mined_loss, "_CPU_BUDGET", budget)
    monkeypatch.setattr(mined_loss, "_CHUNK", chunk)
    anchors, labels, mask, bank = random_case(40, 4, (9, 6), seed=3)
    mining = Mining("hardest", num_positives=4, num_negatives=7)
    keys = torch.zeros_like(labels)
    expected = restricted_loss(anchors, labels, mask, bank, mining, keys, temperature)
    (expected_grad,) = torch.autograd.grad(expected, anchors)
    result = pixel_contrast_loss(
        anchors, labels, mask=mask, bank=bank, mining=mining, temperature=temperature
    )
    (grad,) = torch.autograd.grad(result.loss, anchors)
    torch.testing.assert_close(result.loss, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "modes",
    [
        *(("all", "hardest"), ("hardest", "all"), ("hardest", "hardest")),
        *(("semi_hard", "semi_hard"), ("all", "semi_hard")),  # with room for the whole pool
    ],
)
@pytest.mark.parametrize("with_batch", [False, True])
def test_positives_may_have_a_mode_of_their_own(modes, with_batch):
    """Against a loop over anchors that sorts: of bank and batch each."""
    anchors, labels, mask, bank = random_case(20, 3, (9, 6), seed=7)
    numbers = (99, 99) if "semi_hard" in modes else (2, 3)
    mining = Mining(modes[0], *numbers, hard_fraction=0.4, positive_mode=modes[1])
    options = {"mask": mask, "bank": bank, "with_batch": with_batch, "mining": mining}
    keys = random_keys(0, 0, torch.arange(20), 1)[:, 0]
    result = pixel_contrast_loss(anchors, labels, row_keys=keys, temperature=0.3, **options)
    stores = [
        [(rows[c, m], c) for c in range(len(fill)) for m in range(fill[c])] for rows, fill in bank
    ]
    sets = [stores[0] + stores[1]]
    if with_batch:
        sets.append([(anchors[j], int(labels[j])) for j in range(20) if mask[j]])

    def hardest(logits, mode, limit):
        """The first ones, of a sorted list."""
        pool = math.ceil(round(0.4 * len(logits), 9))
        return logits[: {"all": None, "hardest": limit, "semi_hard": pool}[mode]]

    losses = []
    for i in [i for i in range(20) if mask[i]]:
        chosen = {"positive": [], "negative": []}
        for entries in sets:
            logits = [((anchors[i] @ row).item() / 0.3, c) for row, c in entries]
            same = [s for s, c in logits if c == labels[i] and not math.isclose(s, 1 / 0.3)]
            other = [s for s, c in logits if c != labels[i]]
            chosen["positive"] += hardest(sorted(same), modes[1], numbers[0])
            chosen["negative"] += hardest(sorted(other, reverse=True), modes[0], numbers[1])
        total = sum(math.exp(s) for s in chosen["negative"])
        pairs = [math.log(math.exp(s) + total) - s for s in chosen["positive"]]
        losses += [sum(pairs) / len(pairs)] if pairs else []
    assert result.loss.item() == pytest.approx(0.3 / 0.07 * sum(losses) / len(losses))


@pytest.mark.parametrize("mode", ["random", "semi_hard"])
@pytest.mark.parametrize("budget", [1, 1 << 23])
def test_every_anchor_draws_from_a_bank_with_its_own_key(mode, budget, monkeypatch):
    """Equal anchors: equal keys give equal choices, other keys other ones."""
    monkeypatch.setattr(mined_loss, "_CPU_BUDGET", budget)
    _, _, _, bank = random_case(1, 2, (40,), seed=1, fill=torch.tensor([40, 40]))
    anchors = torch.nn.functional.normalize(torch.ones(4, 6, dtype=torch.float64), dim=1)
    labels, mask = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool)
    mining = Mining(mode, num_positives=5, num_negatives=5, hard_fraction=0.5)
    for key in (1, 2, 3):
        keys = torch.tensor([7, key * 1_000_003, 7, key * 5_000_011])
        logs = mined_loss.mined_log_negatives(anchors, labels, bank, mining, keys, temperature=0.1)
        sums, counts = mined_loss.mined_positive_losses(
            *(anchors, torch.zeros(4).double(), labels, mask, bank, mining, keys), temperature=0.1
        )
        assert counts.tolist() == [5] * 4
        for values in (logs, sums):
            assert values[0] == values[2]
            assert len(values.unique()) == 3


@pytest.mark.parametrize("mode", MODES)
def test_with_room_for_all_every_mode_is_the_whole_loss(mode):
    anchors, labels, mask, bank = random_case(30, 4, (9, 6), seed=4)
    keys = random_keys(0, 0, torch.arange(30), 1)[:, 0]
    mining = Mining(mode, num_positives=99, num_negatives=999, hard_fraction=1.0)
    for options in ({"bank": bank}, {}, {"bank": bank, "with_batch": True}):
        results = [
            pixel_contrast_loss(anchors, labels, mask=mask, row_keys=keys, **options, **extra)
            for extra in ({}, {"mining": mining})
        ]
        grads = [torch.autograd.grad(result.loss, anchors) for result in results]
        torch.testing.assert_close(results[0], results[1])
        torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck_and_chunk_invariance(mode, monkeypatch):
    anchors, labels, mask, bank = random_case(12, 3, (8, 5), dim=4, seed=5)
    keys = random_keys(1, 0, torch.arange(12), 1)[:, 0]
    mining = Mining(mode, num_positives=2, num_negatives=3, hard_fraction=0.5)

    def loss(a):
        return pixel_contrast_loss(
            a, labels, mask=mask, bank=bank, mining=mining, row_keys=keys, temperature=0.3
        ).loss

    assert torch.autograd.gradcheck(loss, (anchors,))
    whole = loss(anchors)
    monkeypatch.setattr(mined_loss, "_CPU_BUDGET", 1)
    torch.testing.assert_close(loss(anchors), whole)


@pytest.mark.parametrize("mode", MODES)
def test_mining_in_the_batch(mode):
    anchors, labels, mask, _ = random_case(30, 3, seed=6)
    keys = random_keys(2, 0, torch.arange(30), 1)[:, 0]
    mining = Mining(mode, num_positives=2, num_negatives=3, hard_fraction=0.5)
    logits = (anchors @ anchors.t() / 0.1).detach()
    usable = mask[:, None] & mask & ~torch.eye(30, dtype=torch.bool)
    same = labels[:, None] == labels
    positive, negative = chosen_pairs(logits, usable & same, usable & ~same, mining, keys)
    assert torch.all(positive.sum(1)[mask] == 2) and torch.all(negative.sum(1)[mask] == 3)
    assert not (positive & ~(usable & same)).any() and not (negative & ~(usable & ~same)).any()
    level = torch.logsumexp(logits.masked_fill(~negative, -torch.inf), 1, keepdim=True)
    pairs = F.softplus(level - logits).where(positive, 0).sum(1) / 2
    result = pixel_contrast_loss(anchors, labels, mask=mask, mining=mining, row_keys=keys)
    torch.testing.assert_close(result.loss.detach(), pairs[mask].mean() * 0.1 / 0.07)


@pytest.mark.parametrize("mode", MODES)
def test_mining_an_empty_bank_is_zero_and_connected(mode):
    anchors, labels, mask, bank = random_case(sizes=(5,), fill=torch.zeros(4, dtype=torch.int64))
    result = pixel_contrast_loss(
        anchors, labels, mask=mask, bank=bank, mining=Mining(mode), row_keys=labels
    )
    assert result.loss == 0 and result.num_anchors == 0
    assert torch.all(torch.autograd.grad(result.loss, anchors)[0] == 0)


@pytest.mark.parametrize("mode", MODES)
def test_mining_waits_for_nothing_and_its_backward_does_not_see_the_bank(mode):
    anchors, labels, mask, bank = random_case(30, 4, (9, 6))
    mining = Mining(mode, num_positives=2, num_negatives=3)
    with Operators() as operators:
        result = pixel_contrast_loss(
            anchors, labels, mask=mask, bank=bank, mining=mining, row_keys=labels
        )
    operators.assert_no_sync()
    (expected,) = torch.autograd.grad(result.loss, anchors, retain_graph=True)
    for rows, _ in bank:
        rows.normal_()
    assert torch.equal(torch.autograd.grad(result.loss, anchors)[0], expected)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"mode": "hard"}, "MODE is 'hard'"),
        ({"positive_mode": "hard"}, "POSITIVE_MODE is 'hard'"),
        ({"num_positives": 0}, "NUM_POSITIVES \\(0\\)"),
        ({"num_negatives": -1}, "NUM_NEGATIVES \\(-1\\)"),
        ({"hard_fraction": 0.0}, "HARD_FRACTION"),
        ({"hard_fraction": 1.5}, "HARD_FRACTION"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        Mining(**options).check()


def test_modes_that_draw_need_keys():
    anchors, labels, _, bank = random_case()
    for mining in (Mining("random"), Mining("all", positive_mode="semi_hard")):
        with pytest.raises(ValueError, match="row_keys"):
            pixel_contrast_loss(anchors, labels, bank=bank, mining=mining)
    pixel_contrast_loss(anchors, labels, bank=bank, mining=Mining("hardest", positive_mode="all"))
