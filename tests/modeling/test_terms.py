"""The contract of terms, and PixelContrast as a whole against its parts."""

import dataclasses

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from d2_pixcontrast.contrast import (
    Bane,
    Mining,
    nearest_resize,
    pixel_contrast_loss,
    random_keys,
    sample_hard_anchors,
)
from d2_pixcontrast.modeling import TERM_REGISTRY, TermInputs, TrainingProgress
from d2_pixcontrast.modeling.terms import build_terms

CLASSES, IGNORE = 8, 255
SHAPES = {
    "res2": ShapeSpec(channels=6, stride=4),
    "res5": ShapeSpec(channels=10, stride=16),
    "decoder": ShapeSpec(channels=12, stride=4),
    "res3": ShapeSpec(channels=7, stride=8),
    "res4": ShapeSpec(channels=9, stride=16),
}
NODES = {
    "PixelContrast": "PIXEL_CONTRAST",
    "Contextrast": "CONTEXTRAST",
    "MultiScaleContrast": "MULTI_SCALE_CONTRAST",
}


def term_inputs(labels=None, progress=1.0, batch=2, size=(48, 64), seed=0, first_image=0):
    g = torch.Generator().manual_seed(seed)
    features = {
        name: torch.randn(
            batch, s.channels, size[0] // s.stride, size[1] // s.stride, generator=g
        ).requires_grad_()
        for name, s in SHAPES.items()
    }
    logits = torch.randn(batch, CLASSES, size[0] // 4, size[1] // 4, generator=g)
    if labels is None:
        # Blocks, so that classes survive on the small grids.
        small = torch.randint(CLASSES, (batch, 3, 4), generator=g)
        labels = nearest_resize(small, size)
    return TermInputs(
        features=features,
        logits=logits.requires_grad_(),
        labels=labels,
        ignore_value=IGNORE,
        progress=TrainingProgress(iteration=int(1000 * progress), max_iter=1000),
        first_image=first_image,
    )


def term_of(cfg, name="PixelContrast", **options):
    cfg.MODEL.SEM_SEG_HEAD.TERMS = [name]
    for key, value in options.items():
        cfg.MODEL[NODES[name]][key] = value
    return build_terms(cfg, SHAPES)[name]


ALL_TERMS = sorted(name for name, _ in TERM_REGISTRY)
LABELS = {
    "usual": None,
    "all void": torch.full((2, 48, 64), IGNORE),
    "one class": torch.zeros(2, 48, 64, dtype=torch.long),
    "one pixel": torch.full((2, 48, 64), IGNORE).index_put(
        (torch.tensor([0]), torch.tensor([20]), torch.tensor([20])), torch.tensor(3)
    ),
}


@pytest.mark.parametrize("name", ALL_TERMS)
@pytest.mark.parametrize("progress", [0.0, 1.0])
@pytest.mark.parametrize("labels", LABELS)
def test_losses_keys_and_edges_are_the_same_in_every_step(small_cfg, name, progress, labels):
    term = term_of(small_cfg, name)
    inputs = term_inputs(LABELS[labels], progress)
    losses, scalars = term(inputs)
    assert tuple(losses) == term.loss_names
    for value in losses.values():
        assert value.shape == () and torch.isfinite(value)
    sum(losses.values()).backward()
    for key, parameter in term.named_parameters():
        assert parameter.grad is not None, f"DDP would wait for {key}"
        assert torch.isfinite(parameter.grad).all()
    for key in term.in_features:  # whose stage no one else may read
        assert inputs.features[key].grad is not None, f"DDP would wait for the stage of {key}"
        assert torch.isfinite(inputs.features[key].grad).all()
    assert all(not s.requires_grad and s.shape == () for s in scalars.values())


@pytest.mark.parametrize("name", ALL_TERMS)
def test_warm_up_lets_no_nan_pass(small_cfg, name):
    """The published code multiplies with 0, which NaN survives."""
    term = term_of(small_cfg, name, WARMUP=0.125)
    inputs = term_inputs(progress=0.124)
    with torch.no_grad():
        for feature in inputs.features.values():
            feature[0, 0, 0, 0] = float("nan")
            feature[0, 0, 0, 1] = float("inf")
    losses, _ = term(inputs)
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    gradients = [
        p.grad for p in (*term.parameters(), *(inputs.features[n] for n in term.in_features))
    ]
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
    on, _ = term(term_inputs(progress=0.125))
    assert sum(on.values()) > 0


def test_pixel_contrast_equals_its_parts(small_cfg):
    """Sampling on the features' own grid, all embeddings computed, then the loss of the rows."""
    term = term_of(small_cfg, IN_FEATURES=["res2", "res5"], MAX_VIEWS=4, MAX_SAMPLES=64).double()
    inputs = term_inputs(first_image=6)
    inputs.features = {k: v.double() for k, v in inputs.features.items()}
    losses, scalars = term(inputs)

    size = (12, 16)
    upsampled = torch.nn.functional.interpolate(
        inputs.features["res5"], size, mode="bilinear", align_corners=False
    )
    embeddings = term.projector(torch.cat([inputs.features["res2"], upsampled], dim=1))
    images = torch.arange(2) + 6
    labels = nearest_resize(inputs.labels, size)
    sample = sample_hard_anchors(
        labels,
        inputs.logits.argmax(1),
        random_keys(0, 1000, images, 12 * 16, 0),
        random_keys(0, 1000, images, CLASSES, 1),
        ignore_value=IGNORE,
        max_samples=64,
        max_views=4,
    )
    rows = embeddings.permute(0, 2, 3, 1).reshape(-1, embeddings.shape[1])[sample.index]
    expected = pixel_contrast_loss(rows, sample.labels, mask=sample.mask)
    assert sample.mask.sum() > 8
    torch.testing.assert_close(losses["loss_pixel_contrast"], 0.1 * expected.loss)
    assert scalars["contrast/num_anchors"] == sample.mask.sum()
    torch.testing.assert_close(scalars["contrast/pos_sim"], expected.pos_sim.float())
    assert 0 < scalars["contrast/hard_ratio"] <= 1


def test_pixel_contrast_moves_embeddings_of_a_class_together(small_cfg):
    term = term_of(small_cfg, IN_FEATURES=["decoder"], MAX_VIEWS=8, BASE_TEMPERATURE=0.1)
    optimizer = torch.optim.Adam(term.parameters(), 1e-2)
    gaps = []
    for _ in range(60):
        inputs = term_inputs()
        classes = torch.nn.functional.one_hot(inputs.labels_at((12, 16)), 12).movedim(-1, 1)
        inputs.features["decoder"] = inputs.features["decoder"] + 2 * classes
        losses, scalars = term(inputs)
        gaps.append(float(scalars["contrast/pos_sim"] - scalars["contrast/neg_sim"]))
        optimizer.zero_grad()
        losses["loss_pixel_contrast"].backward()
        optimizer.step()
    assert gaps[-1] > gaps[0] + 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"IN_FEATURES": ["res9"]}, r"PIXEL_CONTRAST.IN_FEATURES is \['res9'\]; there are"),
        ({"IN_FEATURES": []}, "IN_FEATURES"),
        ({"TEMPERATURE": 0.0}, r"PIXEL_CONTRAST.TEMPERATURE has to be above 0, got 0.0"),
        ({"LOSS_WEIGHT": -1.0}, "LOSS_WEIGHT"),
        ({"MAX_SAMPLES": 0}, "MAX_SAMPLES"),
        ({"MAX_VIEWS": 0}, "MAX_VIEWS"),
        ({"WARMUP": 5000.0}, "WARMUP is a fraction"),
    ],
)
def test_impossible_settings(small_cfg, options, message):
    with pytest.raises(ValueError, match=message):
        term_of(small_cfg, **options)


def test_unknown_and_repeated_terms(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.TERMS = ["PixelContrastt"]
    with pytest.raises(ValueError, match=r"TERMS is 'PixelContrastt'; did you mean PixelContrast"):
        build_terms(small_cfg, SHAPES)
    small_cfg.MODEL.SEM_SEG_HEAD.TERMS = ["PixelContrast", "PixelContrast"]
    with pytest.raises(ValueError, match="twice"):
        build_terms(small_cfg, SHAPES)


def test_predictions_and_labels_on_another_grid():
    inputs = term_inputs()
    predictions = inputs.logits.argmax(1)
    assert torch.equal(inputs.predictions_at((12, 16)), predictions)
    assert torch.equal(inputs.predictions_at((3, 4)), predictions[:, ::4, ::4])
    assert torch.equal(inputs.labels_at((48, 64)), inputs.labels)
    assert torch.equal(inputs.labels_at((3, 4)), inputs.labels[:, ::16, ::16])
    assert inputs.labels_at((3, 4)) is inputs.labels_at((3, 4))  # computed once


@pytest.mark.parametrize("align_corners", [False, True])
def test_features_are_joined_with_the_heads_corners(align_corners):
    inputs = dataclasses.replace(term_inputs(), align_corners=align_corners)
    names = ["res2", "res5"]
    shallow, deep = (inputs.features[name] for name in names)
    deep = F.interpolate(deep, shallow.shape[-2:], mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(inputs.concatenated(names), torch.cat([shallow, deep], 1))
    assert inputs.concatenated(["res5"]) is inputs.features["res5"]
    assert not term_inputs().align_corners


def test_every_key_of_pixel_contrast_reaches_its_place(small_cfg):
    options = {
        **{"LOSS_WEIGHT": 0.3, "IN_FEATURES": ["res5", "res4"], "TEMPERATURE": 0.2, "WARMUP": 0.35},
        **{"BASE_TEMPERATURE": 0.4, "SAMPLER": "per_class", "MAX_SAMPLES": 77, "MAX_VIEWS": 11},
        **{"ANCHORS_PER_CLASS": 13, "NEGATIVES": "bane"},
    }
    node = small_cfg.MODEL.PIXEL_CONTRAST
    node.PROJECTOR.merge_from_list(["TYPE", "linear", "DIM", 24])
    node.MEMORY.merge_from_list(["ENABLED", True, "REGION_SIZE", 21, "PIXEL_SIZE", 22])
    node.MEMORY.merge_from_list(["PIXELS_PER_GROUP", 3, "DTYPE", "bfloat16", "WITH_BATCH", True])
    mining = {"MODE": "semi_hard", "POSITIVE_MODE": "random", "NUM_POSITIVES": 31}
    mining |= {"NUM_NEGATIVES": 32, "HARD_FRACTION": 0.15}
    node.MINING.merge_from_list([part for pair in mining.items() for part in pair])
    bane = {"KEEP_PERCENT": 33.0, "TARGET": "confused", "MAX_NEGATIVES": 123}
    node.BANE.merge_from_list([part for pair in bane.items() for part in pair])
    term = term_of(small_cfg, **options)
    assert {key: getattr(term, key.lower()) for key in options if key != "NEGATIVES"} == {
        key: value for key, value in options.items() if key != "NEGATIVES"
    }
    assert term.mining == Mining("semi_hard", 31, 32, 0.15, "random") and term.with_batch
    assert term.bane == Bane(33.0, "confused", 123)
    region, pixel = term.bank.entries()
    assert region.rows.shape == (CLASSES, 21, 24) and pixel.rows.shape == (CLASSES, 22, 24)
    assert region.rows.dtype == torch.bfloat16 and term.bank.pixels_per_group == 3
    assert [m.kernel_size for m in term.projector.modules() if isinstance(m, nn.Conv2d)] == [(1, 1)]


def test_every_key_of_multi_scale_contrast_reaches_its_place(small_cfg):
    options = {
        **{"LOSS_WEIGHT": 0.3, "IN_FEATURES": ["res2", "res3", "res5"], "TEMPERATURE": 0.2},
        **{"SCALE_WEIGHTS": (0.9, 0.5, 0.2), "CROSS_FEATURES": ["res5"], "CROSS_WEIGHT": 0.6},
        **{"WARMUP": 0.35, "MAX_SAMPLES": 77, "MAX_VIEWS": 11, "MIN_PIXELS": 3, "BALANCE": "min"},
    }
    small_cfg.MODEL.MULTI_SCALE_CONTRAST.PROJECTOR.DIM = 24
    term = term_of(small_cfg, "MultiScaleContrast", **options)
    assert {key: getattr(term, key.lower()) for key in options} == options
    assert {projector.out.out_channels for projector in term.projectors} == {24}
