"""Term Contextrast as a whole, against loops over levels, classes and pixels."""

import pytest
import torch
import torch.distributed as dist
from detectron2.layers import ShapeSpec
from operator_record import Operators
from ranks import run_ranks

from d2_pixcontrast.compat import create_ddp_model
from d2_pixcontrast.contrast import (
    Bane,
    ProjectionHead,
    class_anchors,
    nearest_resize,
    sample_boundary_negatives,
    update_anchors,
)
from d2_pixcontrast.modeling.terms import Contextrast, TermInputs, TrainingProgress, build_terms

IGNORE, CLASSES, DIM = 255, 4, 5
# The first level has fewer channels than the embedding, the last one more.
CHANNELS, STRIDES, WEIGHTS = (3, 4, 7), (2, 4, 4), (0.2, 0.5, 1.0)
NAMES = ["res2", "res3", "res5"]
SHAPES = {n: ShapeSpec(channels=c, stride=s) for n, c, s in zip(NAMES, CHANNELS, STRIDES)}
SIZE = (16, 24)


def make_term(**options):
    torch.manual_seed(0)
    options = {"bane": Bane(keep_percent=100.0), "max_positives": 1000, **options}
    term = Contextrast(
        projectors=[ProjectionHead(c, dim=DIM) for c in CHANNELS],
        in_features=NAMES,
        num_classes=CLASSES,
        level_weights=WEIGHTS,
        **options,
    )
    for projector in term.projectors:
        torch.nn.init.normal_(projector.out.bias)
    return term.double()


def make_inputs(seed=0, batch=2, wrong=0.3, first_image=0, ignore=IGNORE):
    """Class 2 is one pixel that the coarser grids miss; class 3 is nowhere."""
    g = torch.Generator().manual_seed(seed)
    labels = nearest_resize(torch.randint(2, (batch, 4, 6), generator=g), SIZE)
    labels[:, 2, 2] = 2  # on the grid of stride 2 alone
    labels[:, -3:] = ignore
    other = torch.randint(CLASSES, labels.shape, generator=g)
    guess = other.where(torch.rand(labels.shape, generator=g) < wrong, labels.clamp(max=3))
    logits = torch.nn.functional.one_hot(guess[:, ::2, ::2], CLASSES).movedim(-1, 1).double()
    features = {
        n: torch.randn(batch, c, SIZE[0] // s, SIZE[1] // s, generator=g, dtype=torch.float64)
        for n, c, s in zip(NAMES, CHANNELS, STRIDES)
    }
    return TermInputs(
        features={n: f.requires_grad_() for n, f in features.items()},
        logits=logits,
        labels=labels,
        ignore_value=ignore,
        progress=TrainingProgress(iteration=5, max_iter=10, seed=3),
        first_image=first_image,
    )


def naive(term, inputs):
    """The loss by its definition; which pixels BANE keeps is asked of its sampler."""
    levels = []
    for number, (name, projector) in enumerate(zip(NAMES, term.projectors)):
        maps = projector(inputs.features[name])
        size = maps.shape[-2:]
        labels = nearest_resize(inputs.labels, size)
        predictions = nearest_resize(inputs.logits.argmax(1), size)
        chosen = None
        if term.bane is not None:
            keys = inputs.random_keys(size.numel(), 100 + 3 * number + 1)
            options = dict(keep_percent=term.bane.keep_percent, target=term.bane.target)
            chosen = sample_boundary_negatives(
                labels,
                predictions,
                keys,
                num_classes=CLASSES,
                ignore_value=inputs.ignore_value,
                **options,
            ).mask
        pixels = [
            (
                maps[b, :, y, x],
                int(labels[b, y, x]),
                int(predictions[b, y, x]),
                chosen is not None and bool(chosen[b, y, x]),
            )
            for b in range(len(labels))
            for y in range(size[0])
            for x in range(size[1])
            if labels[b, y, x] != inputs.ignore_value
        ]
        of_class = {n: [z for z, label, *_ in pixels if label == n] for n in range(CLASSES)}
        means = {n: sum(rows) / len(rows) for n, rows in of_class.items() if rows}
        levels.append((pixels, of_class, means))
    total, deepest = 0.0, levels[-1][2]
    for weight, (pixels, of_class, means) in zip(WEIGHTS, levels):
        losses = []
        for n, anchor in means.items():
            if n in deepest:
                anchor = term.low_weight * anchor + (1 - term.low_weight) * deepest[n]
            anchor = anchor / anchor.norm() if term.normalize else anchor
            anchor = anchor.detach() if term.detach else anchor
            negatives = []
            if term.bane is not None:
                confused = term.bane.target == "confused"
                negatives = [
                    z
                    for z, label, predicted, kept in pixels
                    if kept and (predicted == n if confused else label != n)
                ]
            negatives = negatives or [z for z, label, *_ in pixels if label != n]
            below = sum((anchor @ z / term.temperature).exp() for z in negatives)
            own = [(anchor @ z / term.temperature).exp() for z in of_class[n]]
            losses.append(-sum((p / (p + below)).log() for p in own) / len(own))
        total = total + weight * sum(losses) / len(losses)
    return term.loss_weight * total


def gradients(loss, term, inputs):
    targets = [*inputs.features.values(), *term.parameters()]
    return torch.autograd.grad(loss, targets)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bane": Bane(keep_percent=50.0)},
        {"bane": Bane(keep_percent=100.0, target="confused")},
        {"bane": None},
        {"normalize": False, "low_weight": 0.2, "temperature": 0.5, "loss_weight": 1.0},
        {"detach": True},
    ],
    ids=str,
)
def test_loss_and_gradient_are_those_of_loops(options):
    term, inputs = make_term(**options), make_inputs()
    losses, scalars = term(inputs)
    expected = naive(term, inputs)
    assert scalars["contextrast/num_anchors/res2"] == 3  # class 2 is on this grid alone
    assert scalars["contextrast/num_anchors/res5"] == 2
    torch.testing.assert_close(losses["loss_contextrast"], expected)
    torch.testing.assert_close(
        gradients(losses["loss_contextrast"], term, inputs), gradients(expected, term, inputs)
    )


@pytest.mark.parametrize("bane", [None, Bane(keep_percent=50.0)])
def test_an_ignore_value_among_the_classes(bane):
    term, inputs = make_term(bane=bane), make_inputs(ignore=1)
    losses, scalars = term(inputs)
    assert scalars["contextrast/num_anchors/res2"] == 2  # not class 1, which is most of it
    torch.testing.assert_close(losses["loss_contextrast"], naive(term, inputs))


def test_without_errors_the_negatives_are_those_of_the_ablation():
    bane, random, inputs = make_term(), make_term(bane=None), make_inputs()
    inputs.logits = torch.nn.functional.one_hot(
        inputs.labels[:, ::2, ::2].clamp(max=CLASSES - 1), CLASSES
    ).movedim(-1, 1)
    losses, scalars = bane(inputs)
    torch.testing.assert_close(losses, random(inputs)[0])
    anchors = sum(scalars[f"contextrast/num_anchors/{name}"] for name in NAMES)
    assert scalars["contextrast/num_bane"] == 0
    assert scalars["contextrast/num_fallback"] == anchors == 3 + 2 + 2


def test_caps_bound_positives_and_negatives():
    term, full = make_term(max_positives=12, bane=Bane(max_negatives=2)), make_term()
    losses, scalars = term(make_inputs())
    assert scalars["contextrast/num_bane"] == 3 * 2
    assert full(make_inputs())[1]["contextrast/num_bane"] > 3 * 2
    # The rare class is not crowded out.
    assert scalars["contextrast/num_anchors/res2"] == 3 and losses["loss_contextrast"] > 0


def test_levels_draw_from_streams_of_their_own():
    term, inputs = make_term(), make_inputs()
    keys = [level[3:] for level in (term._level(i, inputs) for i in range(3))]
    flat = [key for level in keys for key in level]
    assert all(not torch.equal(a, b) for a in flat for b in flat if a is not b and len(a) == len(b))


def test_half_precision_features_and_no_host_sync():
    term, inputs = make_term().float(), make_inputs()
    inputs.features = {n: f.detach().bfloat16() for n, f in inputs.features.items()}
    with Operators() as record, torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = term(inputs)
        losses["loss_contextrast"].backward()
    record.assert_no_sync()
    assert losses["loss_contextrast"].dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in term.parameters())


def test_every_key_reaches_its_place(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.TERMS = ["Contextrast"]
    values = {
        "LOSS_WEIGHT": 0.3,
        "IN_FEATURES": NAMES,
        "LEVEL_WEIGHTS": (0.2, 0.4, 0.6),
        "PROJECTOR.DIM": 24,
        "TEMPERATURE": 0.07,
        "WARMUP": 0.35,
        "ANCHORS.LOW_WEIGHT": 0.45,
        "ANCHORS.NORMALIZE": False,
        "ANCHORS.DETACH": True,
        "ANCHORS.ALL_RANKS": True,
        "MAX_POSITIVES": 321,
        "BANE.KEEP_PERCENT": 33.0,
        "BANE.TARGET": "confused",
        "BANE.MAX_NEGATIVES": 123,
    }
    pairs = [part for k, v in values.items() for part in (f"MODEL.CONTEXTRAST.{k}", v)]
    small_cfg.merge_from_list(pairs)
    term = build_terms(small_cfg, SHAPES)["Contextrast"]
    assert (term.loss_weight, term.in_features, term.level_weights) == (0.3, NAMES, (0.2, 0.4, 0.6))
    assert (term.temperature, term.warmup, term.max_positives) == (0.07, 0.35, 321)
    assert (term.low_weight, term.normalize, term.detach, term.all_ranks) == (
        *(0.45, False, True, True),
    )
    assert term.bane == Bane(keep_percent=33.0, target="confused", max_negatives=123)
    assert {projector.out.out_channels for projector in term.projectors} == {24}


def test_similarities_weigh_levels_by_their_anchors():
    """Three anchors of the first level and two of each other one, as the classes are present."""
    term, inputs = make_term(), make_inputs()
    _, scalars = term(inputs)
    levels = [term._level(i, inputs) for i in range(3)]
    anchors = term._anchors(levels)
    slots = [term._boundary_slots(level) for level in levels]
    each = [term._level_loss(*parts) for parts in zip(levels, *anchors, slots)]
    for key in ("pos_sim", "neg_sim"):
        first, second, third = (float(getattr(result, key)) for result in each)
        expected = (3 * first + 2 * second + 2 * third) / 7
        assert float(scalars[f"contextrast/{key}"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"IN_FEATURES": ["res2", "res5"]}, r"IN_FEATURES \['res2', 'res5'\] and LEVEL_WEIGHTS"),
        ({"IN_FEATURES": ["res2", "res9"]}, r"CONTEXTRAST.IN_FEATURES is \['res2', 'res9'\]"),
        ({"LEVEL_WEIGHTS": (0.1, 0.0, 1.0)}, "CONTEXTRAST.LEVEL_WEIGHTS has to be above 0, got 0"),
        ({"LOSS_WEIGHT": 0.0}, "CONTEXTRAST.LOSS_WEIGHT"),
        ({"TEMPERATURE": -0.1}, "CONTEXTRAST.TEMPERATURE"),
        ({"MAX_POSITIVES": 7}, "CONTEXTRAST.MAX_POSITIVES is 7; the 8 classes"),
        ({"ANCHORS.LOW_WEIGHT": 1.5}, r"ANCHORS.LOW_WEIGHT has to be in \[0, 1\], got 1.5"),
        ({"NEGATIVES": "hard"}, r"CONTEXTRAST.NEGATIVES is 'hard'; known are \['bane', 'random'\]"),
        ({"BANE.KEEP_PERCENT": 0.0}, r"BANE.KEEP_PERCENT is a share in \(0, 100\], got 0"),
        ({"BANE.TARGET": "all"}, "BANE.TARGET is 'all'"),
        ({"BANE.MAX_NEGATIVES": 0}, "BANE.MAX_NEGATIVES"),
        ({"WARMUP": 2.0}, "WARMUP"),
    ],
)
def test_impossible_settings(small_cfg, options, message):
    small_cfg.MODEL.SEM_SEG_HEAD.TERMS = ["Contextrast"]
    options = {"IN_FEATURES": NAMES, "LEVEL_WEIGHTS": WEIGHTS, **options}
    pairs = [part for k, v in options.items() for part in (f"MODEL.CONTEXTRAST.{k}", v)]
    small_cfg.merge_from_list(pairs)
    with pytest.raises(ValueError, match=message):
        build_terms(small_cfg, SHAPES)


# Two ranks.


def shard(rank):
    """Rank 1 has no pixel with a class."""
    inputs = make_inputs(seed=rank, first_image=2 * rank)
    if rank == 1:
        inputs.labels[:] = IGNORE
    return inputs


def all_ranks_term():
    """Norm layers frozen: batch statistics would differ between shards and the whole."""
    return make_term(all_ranks=True).eval()


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        term = all_ranks_term()
        model = create_ddp_model(term)
        losses, _ = model(shard(rank))
        losses["loss_contextrast"].backward()
        torch.save((losses, [p.grad for p in term.parameters()]), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def one_process():
    """Both shards against the anchors of the whole batch; the mean of their losses."""
    term, shards = all_ranks_term(), [shard(0), shard(1)]
    levels = [[term._level(i, inputs) for i in range(3)] for inputs in shards]
    pairs = [[lv.embeddings.class_sums(lv.labels, CLASSES) for lv in part] for part in levels]
    sums, counts = (
        torch.stack([a[i] + b[i] for a, b in zip(*pairs, strict=True)]) for i in range(2)
    )
    anchors = update_anchors(class_anchors(sums, counts), low_weight=term.low_weight)
    losses = []
    for part in levels:
        slots = [term._boundary_slots(level) for level in part]
        results = [term._level_loss(*x) for x in zip(part, *anchors, slots, strict=True)]
        losses.append(0.1 * sum(w * r.loss for w, r in zip(WEIGHTS, results)))
    (sum(losses) / 2).backward()
    return losses, [p.grad for p in term.parameters()]


def test_anchors_over_all_ranks_train_as_one_process_with_all_images(tmp_path):
    run_ranks(worker, (str(tmp_path),), 2)
    losses, expected = one_process()
    assert losses[0] > 0 and losses[1] == 0
    for rank in range(2):
        found, grads = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found["loss_contextrast"].detach(), losses[rank].detach())
        torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-9)
