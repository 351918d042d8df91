"""Term PixelContrast with boundary-aware negatives beside those of its contrast set."""

import itertools
import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from operator_record import Operators

from d2_pixcontrast import add_pixcontrast_config
from d2_pixcontrast.contrast import Bane, MemoryBank, Mining, ProjectionHead
from d2_pixcontrast.modeling.terms import PixelContrast, TermInputs, TrainingProgress

IGNORE, CLASSES, CHANNELS, DIM = 255, 3, 6, 4
SHAPES = {"res5": ShapeSpec(channels=CHANNELS, stride=8)}
LOSS = "loss_pixel_contrast"
BANE = Bane()


def make_term(memory=False, bane=BANE, **options):
    torch.manual_seed(0)
    bank = None
    if memory:
        bank = MemoryBank(CLASSES, DIM, region_size=8, pixel_size=20, dtype=torch.float64)
    return PixelContrast(
        projector=ProjectionHead(CHANNELS, dim=DIM),
        in_features=["res5"],
        num_classes=CLASSES,
        warmup=0.0,
        **{"max_views": 5, "max_samples": 12, "bank": bank, "bane": bane, **options},
    ).double()


def make_inputs(iteration=0, batch=2, first_image=0, wrong=0.4):
    g = torch.Generator().manual_seed(1000 * iteration + first_image)
    features = torch.randn(batch, CHANNELS, 8, 8, generator=g, dtype=torch.float64)
    labels = torch.randint(CLASSES, (batch, 4, 4), generator=g)
    labels = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    other = torch.randint(CLASSES, labels.shape, generator=g)
    guess = other.where(torch.rand(labels.shape, generator=g) < wrong, labels)
    labels[:, 0] = IGNORE
    return TermInputs(
        features={"res5": features.requires_grad_()},
        logits=torch.nn.functional.one_hot(guess, CLASSES).movedim(-1, 1).double(),
        labels=labels,
        ignore_value=IGNORE,
        progress=TrainingProgress(iteration=iteration, max_iter=10, seed=3),
        first_image=first_image,
    )


def loop_loss(term, inputs):
    """The whole loss pair by pair; which pixels BANE takes is asked of the term."""
    size = torch.Size((8, 8))
    sample = term._sample(inputs, size)
    slots = term._boundary_negatives(inputs, size)
    with torch.no_grad():
        embeddings = term.projector(inputs.features["res5"])
    rows = embeddings.movedim(1, -1).reshape(-1, DIM)
    labels = inputs.labels.flatten()
    predictions = inputs.logits.argmax(1).flatten()
    anchors = [(int(i), int(c)) for i, c, m in zip(sample.index, sample.labels, sample.mask) if m]
    contrast = [] if term.bank else [(rows[i], c, i) for i, c in anchors]
    if term.bank:
        for store in term.bank.entries():
            for c in range(CLASSES):
                contrast += [(store.rows[c, k], c, None) for k in range(store.fill[c])]
    extra = [int(i) for i, m in zip(slots.index, slots.mask) if m]
    losses = []
    for i, c in anchors:
        negatives = [row for row, other, _ in contrast if other != c]
        for j in extra:
            confused = term.bane.target == "confused"
            if (predictions[j] == c) if confused else (labels[j] != c):
                assert labels[j] != c and predictions[j] != labels[j]
                negatives.append(rows[j])
        total = sum(math.exp(rows[i] @ n / term.temperature) for n in negatives)
        terms = [
            math.log1p(total / math.exp(rows[i] @ row / term.temperature))
            for row, other, place in contrast
            if other == c and place != i
        ]
        if terms:
            losses.append(sum(terms) / len(terms))
    scale = term.temperature / term.base_temperature * term.loss_weight
    return scale * sum(losses) / len(losses), len(extra)


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("target", ["other", "confused"])
@pytest.mark.parametrize("limit", [3, 1000])
def test_equals_a_loop_over_pairs(memory, target, limit):
    term = make_term(memory, Bane(target=target, max_negatives=limit))
    if memory:
        term(make_inputs(0))
    inputs = make_inputs(1)
    expected, number = loop_loss(term, inputs)
    losses, scalars = term(inputs)
    assert losses[LOSS].item() == pytest.approx(expected, rel=1e-9)
    assert scalars["contrast/num_bane"] == number
    assert number == 3 if limit == 3 else 10 < number < 100


def test_the_share_decides_how_many():
    numbers = []
    for percent in (10.0, 50.0, 100.0):
        _, scalars = make_term(bane=Bane(keep_percent=percent))(make_inputs())
        numbers.append(int(scalars["contrast/num_bane"]))
    inputs = make_inputs()
    wrong = (inputs.logits.argmax(1) != inputs.labels) & (inputs.labels != IGNORE)
    assert numbers[0] < numbers[1] < numbers[2] == wrong.sum()


def test_gradients_reach_the_negatives():
    """With a memory the features of other pixels have no other way to the loss."""
    term = make_term(memory=True, max_samples=4, max_views=4)
    term.projector.eval()  # batch statistics would connect every pixel
    term(make_inputs(0))
    inputs = make_inputs(1)
    size = torch.Size((8, 8))
    sample, slots = term._sample(inputs, size), term._boundary_negatives(inputs, size)
    losses, _ = term(inputs)
    losses[LOSS].backward()
    reached = inputs.features["res5"].grad.abs().sum(1).flatten() > 0
    expected = torch.zeros_like(reached)
    expected[sample.index[sample.mask]] = True
    anchors = int(expected.sum())
    expected[slots.index[slots.mask]] = True
    assert expected.sum() > anchors > 0
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("memory", [False, True])
def test_without_errors_the_loss_is_the_contrast_sets(memory):
    plain, with_bane = make_term(memory, bane=None), make_term(memory)
    for iteration in range(2):
        losses = [term(make_inputs(iteration, wrong=0.0)) for term in (plain, with_bane)]
    assert losses[0][0][LOSS] == losses[1][0][LOSS] > 0
    assert "contrast/num_bane" not in losses[0][1]
    assert losses[1][1]["contrast/num_bane"] == 0


def test_positives_anchors_and_memory_stay_as_they_are():
    plain, with_bane = make_term(True, bane=None), make_term(True)
    for iteration in range(2):
        results = [term(make_inputs(iteration)) for term in (plain, with_bane)]
    (losses, scalars), (more, more_scalars) = results
    assert more[LOSS] > losses[LOSS] > 0  # further negatives only add to the denominators
    for name, value in scalars.items():
        assert torch.equal(value, more_scalars[name])
    for one, other in zip(plain.bank.buffers(), with_bane.bank.buffers()):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", ["all", "random", "hardest", "semi_hard"])
@pytest.mark.parametrize("memory, with_batch", [(False, False), (True, False), (True, True)])
def test_every_combination_trains(mode, memory, with_batch):
    mining = Mining(mode, num_positives=3, num_negatives=4, hard_fraction=0.5)
    for sampler, target in itertools.product(("per_image", "per_class"), ("other", "confused")):
        term = make_term(
            memory, Bane(target=target), sampler=sampler, with_batch=with_batch, mining=mining
        )
        for iteration in range(2):
            losses, scalars = term(make_inputs(iteration))
            losses[LOSS].backward()
        assert losses[LOSS] > 0
        assert all(torch.isfinite(p.grad).all() for p in term.parameters())
        assert not any(value.requires_grad for value in scalars.values())


@pytest.mark.parametrize("memory", [False, True])
def test_an_all_void_batch_is_zero_and_connected(memory):
    term, inputs = make_term(memory), make_inputs()
    inputs.labels.fill_(IGNORE)
    losses, scalars = term(inputs)
    losses[LOSS].backward()
    assert losses[LOSS] == 0 and scalars["contrast/num_bane"] == 0
    assert all(p.grad is not None and torch.all(p.grad == 0) for p in term.parameters())


def test_an_image_gives_the_same_negatives_on_any_rank():
    term, size = make_term(), torch.Size((8, 8))
    first, second = make_inputs(first_image=0), make_inputs(first_image=2)
    both = make_inputs(batch=4)
    both.labels = torch.cat([first.labels, second.labels])
    both.logits = torch.cat([first.logits, second.logits])
    whole = term._boundary_negatives(both, size)
    parts = [term._boundary_negatives(inputs, size) for inputs in (first, second)]
    places = [set(s.index[s.mask].tolist()) for s in parts]
    assert places[0] and places[1]
    assert set(whole.index[whole.mask].tolist()) == places[0] | {i + 128 for i in places[1]}


def test_the_draw_of_slots_is_independent_of_the_ties():
    """Three columns are certain, half of the fourth is drawn; its pixels fill no more slots."""
    term, drawn = make_term(bane=Bane(max_negatives=7)), 0
    for iteration in range(200):
        inputs = make_inputs(iteration, batch=1)
        inputs.labels.fill_(0)
        inputs.logits[:, 1] = 9
        inputs.logits[:, :, :, 0] = inputs.logits.new_tensor([9, 0, 0])[:, None]
        slots = term._boundary_negatives(inputs, torch.Size((8, 8)))
        assert slots.mask.all() and (slots.index % 8).max() <= 4
        drawn += int((slots.index % 8 == 4).sum())
    # 7 slots for 24 + 4 pixels: 1 a draw; the standard deviation of 200 draws is 11.5.
    assert abs(drawn - 200) < 4 * 11.5


def test_no_sync():
    term, inputs = make_term(True), make_inputs()
    with Operators() as operators:
        term(inputs)[0][LOSS].backward()
    operators.assert_no_sync()


def config(negatives="bane", **bane):
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    cfg.MODEL.PIXEL_CONTRAST.NEGATIVES = negatives
    for key, value in bane.items():
        cfg.MODEL.PIXEL_CONTRAST.BANE[key] = value
    return cfg


def test_the_config_decides():
    assert PixelContrast(config("contrast_set"), SHAPES).bane is None
    assert PixelContrast(config(), SHAPES).bane == Bane(50.0, "other", 2048)
    cfg = config(KEEP_PERCENT=20.0, TARGET="confused", MAX_NEGATIVES=7)
    assert PixelContrast(cfg, SHAPES).bane == Bane(20.0, "confused", 7)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"negatives": "boundary"}, "NEGATIVES is 'boundary'; known are .*'bane'"),
        ({"KEEP_PERCENT": 0.0}, r"KEEP_PERCENT .*\(0, 100\], got 0.0"),
        ({"KEEP_PERCENT": 101.0}, r"KEEP_PERCENT .*\(0, 100\], got 101.0"),
        ({"TARGET": "own"}, "TARGET is 'own'; known are .*'confused'"),
        ({"MAX_NEGATIVES": 0}, "MAX_NEGATIVES .* got 0"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        PixelContrast(config(**options), SHAPES)
