"""Balanced sampling of pixels from groups."""

import pytest
import torch
from operator_record import Operators

from d2_pixcontrast.contrast import random_keys, sample_balanced

IGNORE = 255


def draw(labels, classes=6, seed=0, **options):
    batch, pixels = len(labels), labels[0].numel()
    images = torch.arange(batch)
    return sample_balanced(
        labels,
        random_keys(seed, 0, images, pixels),
        random_keys(seed, 0, images, classes, stream=1),
        ignore_value=IGNORE,
        **options,
    )


def random_labels(seed, batch=3, size=(9, 11), classes=6):
    """Skewed: class c is about twice as frequent as class c + 1."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.rand(batch, *size, generator=g).log2().neg().long()
    return labels.where(labels < classes, IGNORE)


def naive_counts(labels, classes, limit, max_views, min_pixels, equal):
    """Pixels of each group, by handing out one pixel after the other in rounds."""
    sizes = {}
    for image in range(len(labels)):
        for c in range(classes):
            size = int((labels[image] == c).sum())
            if size >= min_pixels:
                sizes[image, c] = size
    if not sizes:
        return {}
    limit = min(limit, labels.numel())
    views = limit
    if equal:
        views = min(min(sizes.values()), limit // len(sizes))
    while sum(min(size, views) for size in sizes.values()) > limit:
        views -= 1
    views = max(1, min(views, max_views))
    return {group: min(size, views) for group, size in sizes.items()}


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("min_pixels", [1, 5])
@pytest.mark.parametrize("limit, max_views", [(40, 100), (200, 7), (1000, 1000), (18, 3)])
def test_every_group_gives_what_it_has_up_to_a_common_number(limit, max_views, min_pixels, equal):
    for seed in range(5):
        labels = random_labels(seed)
        sample = draw(
            labels, max_samples=limit, max_views=max_views, min_pixels=min_pixels, equal=equal
        )
        assert len(sample.index) == min(limit, labels.numel())
        found = {}
        for index, label, mask, views in zip(*(part.tolist() for part in sample)):
            assert 0 <= label < 6 and views >= 1
            if mask:
                image = index // labels[0].numel()
                assert int(labels.flatten()[index]) == label
                found.setdefault((image, label), []).append((index, views))
        for members in found.values():
            assert len({index for index, _ in members}) == len(members)
            assert {views for _, views in members} == {len(members)}
        counts = {group: len(members) for group, members in found.items()}
        assert counts == naive_counts(labels, 6, limit, max_views, min_pixels, equal)


def test_one_rare_group_limits_all_with_the_published_rule_only():
    labels = torch.zeros(1, 20, 20, dtype=torch.long)
    labels[0, :, 10:] = 1
    labels[0, 0, :5] = 2
    assert draw(labels, max_samples=300, equal=True).mask.sum() == 15
    sample = draw(labels, max_samples=300)
    assert [int((sample.mask & (sample.labels == c)).sum()) for c in range(4)] == [147, 147, 5, 0]


def test_groups_over_the_batch():
    labels = random_labels(0)
    keys = random_keys(0, 0, torch.arange(3), 99)
    options = dict(ignore_value=IGNORE, max_samples=60)
    sample = sample_balanced(labels.flatten(0, 1)[None], keys, torch.arange(6)[None], **options)
    assert torch.equal(labels.flatten()[sample.index][sample.mask], sample.labels[sample.mask])
    counts = torch.bincount(sample.labels[sample.mask], minlength=6)
    sizes = torch.stack([(labels == c).sum() for c in range(6)])
    assert torch.equal(counts, sizes.clamp(max=int(counts.max()))) and counts.max() > counts.min()


def test_more_groups_than_slots_are_drawn_from():
    labels = torch.arange(6).repeat(3, 4)[:, None]
    drawn = set()
    for seed in range(20):
        sample = draw(labels, seed=seed, max_samples=4)
        assert sample.mask.all() and torch.all(sample.views == 1)
        image = sample.index // labels[0].numel()
        groups = {*zip(image.tolist(), sample.labels.tolist())}
        assert len(groups) == 4
        drawn |= groups
    assert len(drawn) == 18


@pytest.mark.parametrize("fill", [IGNORE, -1, 6])
def test_no_group(fill):
    sample = draw(torch.full((2, 4, 5), fill), max_samples=10)
    assert not sample.mask.any()
    assert torch.all((sample.labels >= 0) & (sample.labels < 6))
    assert torch.all((sample.index >= 0) & (sample.index < 40))


def test_every_pixel_of_a_group_is_drawn_as_often():
    labels = torch.zeros(1, 4, 5, dtype=torch.long)
    counts = torch.zeros(20)
    for seed in range(300):
        counts[draw(labels, seed=seed, max_samples=20, max_views=5).index[:5]] += 1
    assert counts.sum() == 1500 and counts.min() > 45 and counts.max() < 110  # 75 +- 7.5


def test_no_host_sync():
    with Operators() as record:
        draw(random_labels(0), max_samples=50, max_views=7, min_pixels=5)
        draw(random_labels(0), max_samples=50, equal=True)
    record.assert_no_sync()
