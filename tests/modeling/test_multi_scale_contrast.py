"""Term MultiScaleContrast as a whole, against loops over scales, groups and pixels."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from operator_record import Operators
from torch import nn

from d2_pixcontrast.contrast import ProjectionHead, nearest_resize
from d2_pixcontrast.modeling.terms import (
    MultiScaleContrast,
    TermInputs,
    TrainingProgress,
    build_terms,
)

IGNORE, CLASSES, DIM = 255, 4, 5
CHANNELS, STRIDES, WEIGHTS = (3, 4, 7), (2, 4, 4), (1.0, 0.7, 0.1)
NAMES = ["res2", "res3", "res5"]
SHAPES = {n: ShapeSpec(channels=c, stride=s) for n, c, s in zip(NAMES, CHANNELS, STRIDES)}
SIZE = (16, 16)


def make_term(**options):
    torch.manual_seed(0)
    options = {"cross_features": ["res5", "res3"], "cross_weight": 0.5, **options}
    term = MultiScaleContrast(
        projectors=[ProjectionHead(c, dim=DIM, norm_last=True) for c in CHANNELS],
        in_features=NAMES,
        num_classes=CLASSES,
        scale_weights=WEIGHTS,
        **options,
    )
    return term.double()


def make_inputs(seed=0, batch=2):
    """The last class is there; class 1 of the first image is too small for a group."""
    g = torch.Generator().manual_seed(seed)
    labels = nearest_resize(torch.randint(2, (batch, 2, 2), generator=g) * 2 + 1, SIZE)
    labels[0][labels[0] == 1] = 0
    labels[0, :4, :8] = 1
    labels[:, -3:] = IGNORE
    features = {
        n: torch.randn(batch, c, SIZE[0] // s, SIZE[1] // s, generator=g, dtype=torch.float64)
        for n, c, s in zip(NAMES, CHANNELS, STRIDES)
    }
    return TermInputs(
        features={n: f.requires_grad_() for n, f in features.items()},
        logits=torch.zeros(batch, CLASSES, *SIZE),
        labels=labels,
        ignore_value=IGNORE,
        progress=TrainingProgress(iteration=5, max_iter=10, seed=3),
    )


def naive_groups(term, inputs):
    """{name: {(image, class): rows}} of all groups, whole."""
    scales = {}
    for name, projector in zip(NAMES, term.projectors):
        maps = projector(inputs.features[name])
        labels = nearest_resize(inputs.labels, maps.shape[-2:])
        groups = {}
        for b in range(len(labels)):
            for y in range(labels.shape[1]):
                for x in range(labels.shape[2]):
                    if labels[b, y, x] != IGNORE:
                        groups.setdefault((b, int(labels[b, y, x])), []).append(maps[b, :, y, x])
        scales[name] = {k: rows for k, rows in groups.items() if len(rows) >= term.min_pixels}
    return scales


def naive_contrast(anchors, others, temperature):
    """Every group of the anchors counts the same."""
    losses = []
    for (_, c), rows in anchors.items():
        for anchor in rows:
            positives = [z for (_, m), zs in others.items() if m == c for z in zs]
            positives = [z for z in positives if z is not anchor]
            negatives = [z for (_, m), zs in others.items() if m != c for z in zs]
            if not positives:
                continue
            below = sum((anchor @ z / temperature).exp() for z in negatives)
            own = [(anchor @ z / temperature).exp() for z in positives]
            loss = -sum((p / (p + below)).log() for p in own) / len(own)
            losses.append((loss, 1 / len(rows)))
    return sum(loss * w for loss, w in losses) / sum(w for _, w in losses)


def test_losses_and_gradients_are_those_of_loops():
    term, inputs = make_term(), make_inputs()
    losses, scalars = term(inputs)
    scales = naive_groups(term, inputs)
    sizes = {name: {k: len(rows) for k, rows in groups.items()} for name, groups in scales.items()}
    assert (1, 3) in sizes["res2"] and (0, 1) in sizes["res2"]  # the last class takes part
    assert (0, 1) not in sizes["res5"]  # 2 pixels
    assert scalars["multi_scale/num_anchors/res2"] == sum(sizes["res2"].values())
    within = sum(w * naive_contrast(scales[n], scales[n], 0.1) for n, w in zip(NAMES, WEIGHTS))
    across = sum(naive_contrast(scales["res2"], scales[n], 0.1) for n in ("res5", "res3"))
    expected = {
        "loss_multiscale_contrast": 0.1 * within,
        "loss_crossscale_contrast": 0.1 * 0.5 * across,
    }
    torch.testing.assert_close(losses, expected)
    targets = [*inputs.features.values(), *term.parameters()]
    for name in term.loss_names:
        grads = [
            torch.autograd.grad(x[name], targets, retain_graph=True, materialize_grads=True)
            for x in (losses, expected)
        ]
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-9)


def test_the_projector_has_its_norm_after_the_relu(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.TERMS = ["MultiScaleContrast"]
    node = small_cfg.MODEL.MULTI_SCALE_CONTRAST
    node.IN_FEATURES, node.SCALE_WEIGHTS, node.CROSS_FEATURES = NAMES, WEIGHTS, ["res5"]
    term = build_terms(small_cfg, SHAPES)["MultiScaleContrast"]
    for projector, channels in zip(term.projectors, CHANNELS):
        assert [type(m) for m in projector.hidden] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
        assert projector.hidden[0].out_channels == channels and projector.dim == 256


def test_balance_min_is_the_published_rule():
    """One rare group limits all others."""
    inputs = make_inputs()
    _, scalars = make_term(balance="min")(inputs)
    for name, groups in naive_groups(make_term(), inputs).items():
        smallest = min(map(len, groups.values()))
        assert scalars[f"multi_scale/num_anchors/{name}"] == smallest * len(groups)


def test_caps_bound_the_samples():
    groups = len(naive_groups(make_term(), make_inputs())["res2"])
    _, scalars = make_term(max_views=4)(make_inputs())
    assert scalars["multi_scale/num_anchors/res2"] == 4 * groups
    _, scalars = make_term(max_samples=3 * groups)(make_inputs())
    assert scalars["multi_scale/num_anchors/res2"] == 3 * groups


def test_without_cross_features_there_is_one_loss():
    term = make_term(cross_features=[])
    assert term.loss_names == ("loss_multiscale_contrast",)
    losses, _ = term(make_inputs())
    off, _ = make_term(cross_features=[], warmup=0.9)(make_inputs())
    assert set(losses) == set(off) == {"loss_multiscale_contrast"}


def test_half_precision_features_and_no_host_sync():
    term, inputs = make_term().float(), make_inputs()
    inputs.features = {n: f.detach().bfloat16() for n, f in inputs.features.items()}
    with Operators() as record, torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = term(inputs)
        sum(losses.values()).backward()
    record.assert_no_sync()
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in term.parameters())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"IN_FEATURES": ["res2", "res5"]}, r"IN_FEATURES \['res2', 'res5'\] and SCALE_WEIGHTS"),
        ({"IN_FEATURES": []}, r"MULTI_SCALE_CONTRAST.IN_FEATURES is \[\]; there are"),
        ({"SCALE_WEIGHTS": (1.0, -1.0, 1.0)}, "SCALE_WEIGHTS has to be above 0, got -1"),
        ({"CROSS_FEATURES": ["res2"]}, r"CROSS_FEATURES is \['res2'\]; the finest scale res2 can"),
        ({"CROSS_FEATURES": ["res4"]}, r"contrasted with \['res3', 'res5'\]"),
        ({"BALANCE": "max"}, r"BALANCE is 'max'; known are \['weight', 'min'\]"),
        ({"TEMPERATURE": 0.0}, "MULTI_SCALE_CONTRAST.TEMPERATURE"),
        ({"MAX_SAMPLES": 0}, "MULTI_SCALE_CONTRAST.MAX_SAMPLES"),
        ({"MIN_PIXELS": 0}, "MULTI_SCALE_CONTRAST.MIN_PIXELS"),
        ({"CROSS_WEIGHT": 0.0}, "MULTI_SCALE_CONTRAST.CROSS_WEIGHT"),
    ],
)
def test_impossible_settings(small_cfg, options, message):
    small_cfg.MODEL.SEM_SEG_HEAD.TERMS = ["MultiScaleContrast"]
    usual = {"IN_FEATURES": NAMES, "SCALE_WEIGHTS": WEIGHTS, "CROSS_FEATURES": ["res5"]}
    pairs = [
        part
        for key, value in {**usual, **options}.items()
        for part in (f"MODEL.MULTI_SCALE_CONTRAST.{key}", value)
    ]
    small_cfg.merge_from_list(pairs)
    with pytest.raises(ValueError, match=message):
        build_terms(small_cfg, SHAPES)
