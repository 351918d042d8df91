"""sample_hard_anchors: counts against a plain loop, and the properties of a draw."""

import pytest
import torch
from operator_record import Operators

from d2_pixcontrast.contrast import gather_pixels, random_keys, sample_hard_anchors

IGNORE = 255


def draw(labels, predictions, num_classes, seed=0, iteration=0, first_image=0, **options):
    images = torch.arange(len(labels)) + first_image
    pixels = labels[0].numel()
    return sample_hard_anchors(
        labels,
        predictions,
        random_keys(seed, iteration, images, pixels, 0),
        random_keys(seed, iteration, images, num_classes, 1),
        ignore_value=IGNORE,
        **options,
    )


def random_maps(batch=3, size=(16, 20), classes=5, seed=0, wrong=0.3):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (batch, *size), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.1] = IGNORE
    other = torch.randint(classes, labels.shape, generator=g)
    predictions = torch.where(torch.rand(labels.shape, generator=g) < wrong, other, labels)
    predictions[predictions == IGNORE] = 0
    return labels, predictions


def expected_views(labels, predictions, classes, max_samples, max_views):
    """{(image, class): (hard, easy)} by the published rules; None where groups are drawn."""
    groups = {}
    for b in range(len(labels)):
        for c in range(classes):
            here = labels[b] == c
            if here.sum() > max_views:
                hard = int((here & (predictions[b] != c)).sum())
                groups[b, c] = (hard, int(here.sum()) - hard)
    views = max(1, min(max_samples // max(len(groups), 1), max_views))
    result = {}
    for key, (hard, easy) in groups.items():
        if hard >= views / 2 and easy >= views / 2:
            keep = max(views // 2, 1) if views == 1 else views // 2
        elif hard >= views / 2:
            keep = views - easy
        else:
            keep = hard
        result[key] = (keep, views - keep)
    return result, len(groups) > max_samples


def counts_of(sample, labels):
    pixels = labels[0].numel()
    found = {}
    for i in range(len(sample.index)):
        if sample.mask[i]:
            key = (int(sample.index[i]) // pixels, int(sample.labels[i]))
            hard, easy = found.get(key, (0, 0))
            found[key] = (hard + int(sample.hard[i]), easy + int(not sample.hard[i]))
    return found


@pytest.mark.parametrize("wrong", [0.0, 0.02, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(
    "max_samples, max_views", [(64, 10), (1024, 100), (17, 1), (30, 3), (15, 5), (45, 3), (80, 9)]
)
def test_counts_follow_the_published_rules(wrong, max_samples, max_views):
    labels, predictions = random_maps(size=(30, 40), wrong=wrong)
    if wrong == 1.0:
        predictions = (labels.where(labels != IGNORE, 0) + 1) % 5
    sample = draw(labels, predictions, 5, max_samples=max_samples, max_views=max_views)
    expected, drawn = expected_views(labels, predictions, 5, max_samples, max_views)
    assert not drawn
    assert counts_of(sample, labels) == expected


def test_slots_point_at_pixels_of_their_class():
    labels, predictions = random_maps(seed=4)
    sample = draw(labels, predictions, 5, max_samples=200, max_views=20)
    flat_labels, flat_predictions = labels.flatten(), predictions.flatten()
    index = sample.index[sample.mask]
    assert sample.mask.any()
    assert torch.equal(flat_labels[index], sample.labels[sample.mask])
    wrong = flat_predictions[index] != flat_labels[index]
    assert torch.equal(wrong, sample.hard[sample.mask])
    assert index.unique().numel() == index.numel()  # without replacement


def test_every_class_counts_class_zero_too():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, 4:] = 1
    sample = draw(labels, labels, 2, max_samples=16, max_views=4)
    assert set(sample.labels[sample.mask].tolist()) == {0, 1}


def test_a_group_needs_more_than_max_views_pixels():
    labels = torch.full((1, 10, 10), IGNORE)
    labels[0, 0, :5] = 2
    assert not draw(labels, labels, 3, max_views=5).mask.any()
    labels[0, 1, 0] = 2
    assert draw(labels, labels, 3, max_views=5).mask.sum() == 5


def test_more_groups_than_samples():
    """Each drawn group gives one view: the published code divided to zero here."""
    labels = torch.arange(12).repeat_interleave(12).view(1, 12, 12).repeat(4, 1, 1)
    chosen = []
    for iteration in range(3):
        sample = draw(labels, labels, 12, iteration=iteration, max_samples=10, max_views=2)
        assert sample.mask.all()
        pixels = labels[0].numel()
        groups = {
            (int(i) // pixels, int(c)) for i, c in zip(sample.index, sample.labels, strict=True)
        }
        assert len(groups) == 10
        chosen.append(groups)
    assert chosen[0] != chosen[1]


def test_one_view_takes_the_hard_pixel():
    """The published code gave max_views = 1 easy anchors only."""
    labels = torch.zeros(1, 6, 6, dtype=torch.long)
    predictions = labels.clone()
    predictions[0, 2, 3] = 1
    sample = draw(labels, predictions, 2, max_views=1, max_samples=8)
    assert sample.mask.sum() == 1 and sample.hard[sample.mask].all()
    assert sample.index[sample.mask].item() == 2 * 6 + 3


@pytest.mark.parametrize("value", [IGNORE, -1, 7, 10**12])
def test_labels_outside_the_classes_belong_to_no_group(value):
    labels = torch.full((2, 9, 9), value)
    sample = draw(labels, torch.zeros_like(labels), 5, max_views=3)
    assert not sample.mask.any()
    assert sample.index.min() >= 0 and sample.index.max() < labels.numel()


def test_an_image_gets_the_same_pixels_wherever_it_is():
    labels, predictions = random_maps(batch=4)
    options = dict(max_samples=4000, max_views=20)
    whole = draw(labels, predictions, 5, **options)
    second = draw(labels[2:], predictions[2:], 5, first_image=2, **options)
    pixels = labels[0].numel()
    of_whole = {int(i) for i in whole.index[whole.mask] if i >= 2 * pixels}
    of_second = {int(i) + 2 * pixels for i in second.index[second.mask]}
    assert of_whole == of_second


@pytest.mark.parametrize("by", ["iteration", "seed"])
@pytest.mark.parametrize("hard", [False, True])
def test_draws_differ_by_iteration_and_seed_and_cover_all_pixels(by, hard):
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    predictions, hits = labels + hard, torch.zeros(64)
    for number in range(200):
        sample = draw(labels, predictions, 1, max_samples=16, max_views=16, **{by: number})
        assert bool(sample.hard[sample.mask].all()) == hard
        hits[sample.index[sample.mask]] += 1
    assert hits.sum() == 200 * 16
    # Binomial(200, 1/4): mean 50, standard deviation 6.
    assert hits.min() > 50 - 6 * 5 and hits.max() < 50 + 6 * 5


def test_sampling_waits_for_nothing_and_loops_over_neither_images_nor_classes():
    counts = []
    for batch, classes in ((2, 3), (7, 40)):
        maps = random_maps(batch=batch, classes=classes)
        with Operators() as operators:
            draw(*maps, classes, max_samples=100, max_views=5)
        operators.assert_no_sync()
        counts.append(len(operators.names))
    assert counts[0] == counts[1]


def test_gather_pixels():
    embeddings = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    index = torch.tensor([0, 7, 20, 39])
    expected = torch.stack([embeddings[i // 20, :, (i % 20) // 5, i % 5] for i in index.tolist()])
    assert torch.equal(gather_pixels(embeddings, index), expected)
