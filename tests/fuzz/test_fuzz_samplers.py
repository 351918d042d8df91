"""Samplers and the distance transform on every label map: what they promise of any of them."""

import torch
from fuzz_cases import batches, cases
from hypothesis import given
from hypothesis import strategies as st

from d2_pixcontrast.contrast import (
    distance_to_boundary,
    sample_balanced,
    sample_boundary_negatives,
    sample_class_anchors,
    sample_group_pixels,
    sample_hard_anchors,
)

NUMBERS = st.sampled_from([1, 3, 20, 500])


def assert_pixels(index, mask, labels, flat, known):
    """Filled slots hold known pixels of their class, none of them twice; all are in range."""
    assert ((index >= 0) & (index < flat.numel())).all()
    chosen = index[mask]
    assert known[chosen].all()
    assert torch.equal(flat[chosen], labels[mask])
    assert len(chosen.unique()) == len(chosen)


@cases("samplers")
@given(
    batch=batches(),
    max_samples=NUMBERS,
    max_views=NUMBERS,
    min_pixels=NUMBERS,
    equal=st.booleans(),
    percent=st.sampled_from([0.001, 30.0, 100.0]),
    target=st.sampled_from(["other", "confused"]),
)
def test_samplers(batch, max_samples, max_views, min_pixels, equal, percent, target):
    grid = batch.grids[0]
    count, classes = grid[0] * grid[1], batch.num_classes
    labels, predictions = batch.at(grid), batch.logits(grid).argmax(1)
    flat, known = labels.flatten(), batch.known(labels).flatten()
    pixel_keys, other_keys = batch.keys(count, 1), batch.keys(count, 2)
    group_keys = batch.keys(classes, 3)
    wrong = (labels != predictions).flatten()
    ignore = {"ignore_value": batch.ignore_value}

    limits = {"max_samples": max_samples, "max_views": max_views}
    hard = sample_hard_anchors(labels, predictions, pixel_keys, group_keys, **ignore, **limits)
    per_class = sample_class_anchors(
        labels,
        predictions,
        pixel_keys,
        other_keys,
        num_classes=classes,
        per_class=min(max_views, 20),
        **ignore,
    )
    for sample in (hard, per_class):
        assert_pixels(sample.index, sample.mask, sample.labels, flat, known)
        assert torch.equal(sample.hard, sample.mask & wrong[sample.index])
    assert hard.index.shape == (max_samples,)
    # Every class that is there is served by its sampler.
    assert set(per_class.labels[per_class.mask].tolist()) == set(flat[known].tolist())

    balanced = sample_balanced(
        labels, pixel_keys, group_keys, min_pixels=min_pixels, equal=equal, **limits, **ignore
    )
    assert_pixels(balanced.index, balanced.mask, balanced.labels, flat, known)
    assert balanced.mask.sum() <= max_samples and (balanced.views >= 1).all()
    groups = [image[batch.known(image)].bincount(minlength=1) for image in labels]
    assert bool(balanced.mask.any()) == any(int(g.max()) >= min_pixels for g in groups)

    index, mask = sample_group_pixels(
        labels, pixel_keys, num_classes=classes, per_group=max_views, **ignore
    )
    assert index.shape == mask.shape == (len(labels), classes, max_views)
    of_class = torch.arange(classes)[None, :, None].expand_as(index)
    assert_pixels(index.flatten(), mask.flatten(), of_class.flatten(), flat, known)
    expected = sum(int(g.clamp(max=max_views).sum()) for g in groups)
    assert mask.sum() == expected

    negatives = sample_boundary_negatives(
        labels,
        predictions,
        pixel_keys,
        num_classes=classes,
        keep_percent=percent,
        target=target,
        **ignore,
    )
    chosen = negatives.mask.flatten()
    assert (known & wrong)[chosen].all()
    assert bool(chosen.any()) == bool((known & wrong).any())
    if percent == 100:
        assert torch.equal(chosen, known & wrong)
    slots = negatives.slots(max_samples, other_keys)
    assert slots.mask.sum() == min(int(chosen.sum()), max_samples)
    assert chosen[slots.index[slots.mask]].all()


@cases("distance")
@given(batch=batches())
def test_distance_transform(batch):
    regions = batch.labels
    distance = distance_to_boundary(regions)
    assert distance.shape == regions.shape and distance.dtype == torch.float32
    assert not distance.isnan().any()
    assert (distance[regions < 0] == 0).all()
    assert (distance[regions >= 0] >= 1).all()
    for image, own in zip(regions, distance):
        inside = own[image >= 0]
        assert inside.isinf().all() if len(image.unique()) == 1 else inside.isfinite().all()
    for dims in ([1], [2], [1, 2]):
        assert torch.equal(distance_to_boundary(regions.flip(dims)).flip(dims), distance)
    turned = distance_to_boundary(regions.transpose(1, 2)).transpose(1, 2)
    assert torch.equal(turned, distance)
    # The pixel below or beside a boundary is at distance 1.
    edge = (regions[:, 1:] != regions[:, :-1]) & (regions[:, 1:] >= 0)
    assert (distance[:, 1:][edge] == 1).all()
