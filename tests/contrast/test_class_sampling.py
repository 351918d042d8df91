"""sample_class_anchors and sample_group_pixels."""

import pytest
import torch
from operator_record import Operators

from d2_pixcontrast.contrast import random_keys, sample_class_anchors, sample_group_pixels

IGNORE = 255


def draw(labels, predictions, num_classes=4, iteration=0, per_class=10):
    images, pixels = torch.arange(len(labels)), labels[0].numel()
    return sample_class_anchors(
        labels,
        predictions,
        random_keys(0, iteration, images, pixels, 0),
        random_keys(0, iteration, images, pixels, 1),
        num_classes=num_classes,
        ignore_value=IGNORE,
        per_class=per_class,
    )


@pytest.mark.parametrize("per_class", [1, 7, 10, 50, 2000])
@pytest.mark.parametrize("wrong", [0.0, 0.02, 0.5, 1.0])
def test_numbers_and_places(per_class, wrong):
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (3, 12, 15), generator=g)
    labels[0, :3] = IGNORE
    labels[labels == 3] = 2
    labels[1, 5, 5] = 3  # one pixel of class 3
    predictions = labels.where(torch.rand(labels.shape, generator=g) >= wrong, 9)
    sample = draw(labels, predictions, per_class=per_class)
    index = sample.index[sample.mask]
    assert index.unique().numel() == index.numel()
    assert torch.equal(labels.flatten()[index], sample.labels[sample.mask])
    assert torch.equal((labels != predictions).flatten()[index], sample.hard[sample.mask])
    for c in range(4):
        of_class = sample.mask & (sample.labels == c)
        assert of_class.sum() == min(per_class, (labels == c).sum())
        errors = ((labels == c) & (predictions != c)).sum()
        assert sample.hard[of_class].sum() >= min(errors, max(per_class // 2, 1))


def test_the_other_half_is_drawn_from_all_the_rest():
    """30 of 100 pixels are wrong: 5 hard ones are set, 5 more are drawn from 25 wrong, 70 right."""
    labels = torch.zeros(1, 10, 10, dtype=torch.int64)
    predictions = labels.clone()
    predictions[0, :3] = 1
    hits = torch.zeros(100)
    for iteration in range(400):
        sample = draw(labels, predictions, 1, iteration)
        hits[sample.index[sample.mask]] += 1
    # A wrong pixel: 1/6 + 5/6 * 5/95, a right one: 5/95; standard deviations 8 and 4.5.
    assert (hits[:30] / 400 - (1 / 6 + 5 / 6 * 5 / 95)).abs().max() < 5 * 8 / 400
    assert (hits[30:] / 400 - 5 / 95).abs().max() < 5 * 4.5 / 400
    assert abs(hits[30:].mean() / 400 - 5 / 95) < 0.004


def test_group_pixels():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (2, 5, 6), generator=g)
    labels[1] = IGNORE
    labels[1, 0, :2] = 0
    keys = random_keys(0, 0, torch.arange(2), 30)
    index, mask = sample_group_pixels(labels, keys, num_classes=3, ignore_value=IGNORE, per_group=5)
    assert index.shape == mask.shape == (2, 3, 5)
    for b in range(2):
        for c in range(3):
            found = index[b, c, mask[b, c]]
            assert len(found) == min(5, (labels[b] == c).sum())
            assert len(found.unique()) == len(found)
            assert torch.all(found // 30 == b) and torch.all(labels.flatten()[found] == c)
    assert index.min() >= 0 and index.max() < 60


def test_no_sync():
    labels = torch.randint(4, (2, 8, 8))
    with Operators() as operators:
        draw(labels, labels)
    operators.assert_no_sync()
