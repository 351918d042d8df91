"""sample_boundary_negatives against a loop over images, classes and pixels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_record import Operators

from d2_pixcontrast.contrast import random_keys, sample_boundary_negatives

IGNORE = 255


def draw(labels, predictions, num_classes=4, iteration=0, first_image=0, **options):
    images = torch.arange(len(labels)) + first_image
    return sample_boundary_negatives(
        labels,
        predictions,
        random_keys(0, iteration, images, labels[0].numel(), 0),
        num_classes=num_classes,
        ignore_value=IGNORE,
        **options,
    )


def random_maps(batch=2, size=(9, 11), classes=4, wrong=0.5, cell=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    coarse = (batch, *(-(-n // cell) for n in size))

    def enlarge(values):
        fine = values.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        return fine[:, : size[0], : size[1]].contiguous()

    labels = enlarge(torch.randint(classes, coarse, generator=g))
    other = enlarge(torch.randint(classes, coarse, generator=g))
    predictions = other.where(torch.rand(labels.shape, generator=g) < wrong, labels)
    labels[torch.rand(labels.shape, generator=g) < 0.1] = IGNORE
    return labels, predictions


def error_maps(labels, predictions, classes, target):
    """{(image, class): set of (row, column)}."""
    maps = {}
    for b in range(len(labels)):
        for i in range(labels.shape[1]):
            for j in range(labels.shape[2]):
                label, guess = int(labels[b, i, j]), int(predictions[b, i, j])
                if label != IGNORE and 0 <= label < classes and label != guess:
                    of = label if target == "other" else guess
                    maps.setdefault((b, of), set()).add((i, j))
    return maps


def distances(pixels, size):
    """{pixel: squared distance to the nearest place of the grid outside the set}."""
    outside = [(i, j) for i in range(size[0]) for j in range(size[1]) if (i, j) not in pixels]
    return {
        (i, j): min(((i - y) ** 2 + (j - x) ** 2 for y, x in outside), default=math.inf)
        for i, j in pixels
    }


def assert_equals_the_loop(labels, predictions, classes, percent, target):
    """Exactly so many of each map, none of them farther away than one that is left out."""
    result = draw(labels, predictions, classes, keep_percent=percent, target=target)
    maps = error_maps(labels, predictions, classes, target)
    size = labels.shape[1:]
    for b in range(len(labels)):
        for c in range(classes):
            pixels = maps.get((b, c), set())
            found = {tuple(p) for p in (result.group[b] == c).nonzero().tolist()}
            assert found == pixels
            expected = distances(pixels, size)
            for pixel in pixels:
                assert result.distance[b][pixel] == pytest.approx(math.sqrt(expected[pixel]))
            kept = [expected[p] for p in pixels if result.mask[b][p]]
            left = [expected[p] for p in pixels if not result.mask[b][p]]
            assert len(kept) == math.ceil(len(pixels) * percent / 100 - 1e-9)
            assert max(kept, default=0) <= min(left, default=math.inf)
    assert not result.mask[result.group < 0].any()
    assert torch.all(result.distance[result.group < 0] == 0)


@pytest.mark.parametrize("target", ["other", "confused"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    classes=st.integers(1, 5),
    wrong=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    percent=st.sampled_from([0.1, 10.0, 30.0, 50.0, 99.0, 100.0]),
    cell=st.sampled_from([1, 4]),
    seed=st.integers(0, 99),
)
def test_equals_a_loop(target, size, classes, wrong, percent, cell, seed):
    labels, predictions = random_maps(2, size, classes, wrong, cell, seed)
    assert_equals_the_loop(labels, predictions, classes, percent, target)


def test_both_targets_on_a_case_by_hand():
    """Class 0 is taken for 1 in three columns and for 2 in two more."""
    labels = torch.zeros(1, 4, 9, dtype=torch.int64)
    predictions = torch.tensor([0, 1, 1, 1, 2, 2, 0, 0, 0]).expand(1, 4, 9)
    other = draw(labels, predictions, 3, keep_percent=40.0)
    row = torch.tensor([0, 1, 2, 3, 2, 1, 0, 0, 0.0])
    assert torch.equal(other.distance[0], row.expand(4, 9))
    assert torch.equal(other.mask[0], (row == 1).expand(4, 9))
    assert other.serves(torch.arange(3)).sum(1).tolist() == [0, 8, 8]
    confused = draw(labels, predictions, 3, keep_percent=40.0, target="confused")
    row = torch.tensor([0, 1, 2, 1, 1, 1, 0, 0, 0.0])
    assert torch.equal(confused.distance[0], row.expand(4, 9))
    assert confused.mask.sum() == math.ceil(0.4 * 12) + math.ceil(0.4 * 8)
    assert not confused.mask[0, :, 2].any()
    assert confused.serves(torch.arange(3)).sum(1).tolist() == [0, 5, 4]


@pytest.mark.parametrize("target", ["other", "confused"])
def test_serves_follows_the_definition(target):
    labels, predictions = random_maps(3, seed=5)
    result = draw(labels, predictions, target=target)
    slots = result.slots(1000, random_keys(0, 0, torch.arange(3), labels[0].numel(), 1))
    anchors = torch.tensor([2, 0, 3, 2, 1])
    whole, listed = result.serves(anchors), slots.serves(anchors)
    for pixel in range(labels.numel()):
        label, guess = labels.flatten()[pixel], predictions.flatten()[pixel]
        chosen = result.mask.flatten()[pixel]
        for row, anchor in enumerate(anchors):
            expected = chosen and (anchor != label if target == "other" else anchor == guess)
            assert whole[row, pixel] == expected
            assert not (whole[row, pixel] and anchor == label)  # never of its own class
    for row in range(len(anchors)):
        expected = set(whole[row].nonzero().flatten().tolist())
        assert set(slots.index[listed[row]].tolist()) == expected


def test_ignored_pixels_are_outside_of_every_map():
    """A hole of ignored pixels is a boundary like any other."""
    labels = torch.zeros(1, 9, 9, dtype=torch.int64)
    labels[0, 4, 4] = IGNORE
    result = draw(labels, torch.ones_like(labels), 2, keep_percent=5.0)
    assert result.group[0, 4, 4] == -1 and result.distance[0, 4, 4] == 0
    assert set(map(tuple, result.mask[0].nonzero().tolist())) == {(3, 4), (5, 4), (4, 3), (4, 5)}


@pytest.mark.parametrize("value", [IGNORE, -1, 7, 10**12])
@pytest.mark.parametrize("target", ["other", "confused"])
def test_ids_outside_the_classes_belong_to_no_map(value, target):
    odd, zeros = torch.full((2, 5, 6), value), torch.zeros(2, 5, 6, dtype=torch.int64)
    for maps in ((odd, zeros), (zeros, odd)):
        result = draw(*maps, target=target)
        assert not result.mask.any()
        assert torch.all(result.group == -1) and torch.all(result.distance == 0)


@pytest.mark.parametrize("target", ["other", "confused"])
def test_no_error_chooses_nothing(target):
    labels, _ = random_maps()
    predictions = labels.where(labels != IGNORE, 0)
    result = draw(labels, predictions, target=target)
    assert not result.mask.any()
    slots = result.slots(10, random_keys(0, 0, torch.arange(2), labels[0].numel()))
    assert slots.index.shape == (10,) and not slots.mask.any()
    assert not slots.serves(torch.arange(4)).any()


def hits(labels, predictions, draws=300, **options):
    return sum(draw(labels, predictions, 2, i, **options).mask[0].double() for i in range(draws))


def test_ties_are_drawn_fairly():
    """An error that covers the image is one tie; its border is no boundary."""
    labels = torch.zeros(1, 6, 8, dtype=torch.int64)
    share = hits(labels, torch.ones_like(labels), keep_percent=25.0) / 300
    # Binomial(300, 1/4): standard deviation 0.025.
    assert (share - 0.25).abs().max() < 5 * 0.025
    assert share.mean() == pytest.approx(0.25)


def test_only_the_farthest_kept_distance_is_drawn():
    labels = torch.zeros(1, 2, 10, dtype=torch.int64)
    predictions = torch.ones_like(labels)
    predictions[0, :, 0] = 0
    share = hits(labels, predictions, keep_percent=50.0) / 300  # 9 of 18
    assert torch.all(share[:, 1:5] == 1) and torch.all(share[:, [0, 6, 7, 8, 9]] == 0)
    assert share[:, 5].sum() == pytest.approx(1) and share[:, 5].min() > 0.35


def test_an_image_gets_the_same_pixels_wherever_it_is_and_others_in_another_iteration():
    labels, predictions = random_maps(batch=4, size=(20, 20), wrong=0.9, cell=10)
    whole = draw(labels, predictions, keep_percent=20.0)
    again = draw(labels, predictions, keep_percent=20.0)
    shard = draw(labels[2:], predictions[2:], first_image=2, keep_percent=20.0)
    later = draw(labels, predictions, iteration=1, keep_percent=20.0)
    assert torch.equal(whole.mask, again.mask)
    assert torch.equal(whole.mask[2:], shard.mask)
    assert not torch.equal(whole.mask, later.mask)


def test_slots_are_a_fair_draw_without_replacement():
    labels, predictions = random_maps(batch=2, size=(6, 6), wrong=1.0, cell=1)
    result = draw(labels, predictions)
    chosen = result.mask.flatten()
    number = int(chosen.sum())
    assert number > 12
    counts = torch.zeros(len(chosen))
    for iteration in range(400):
        slots = result.slots(10, random_keys(1, iteration, torch.arange(2), 36))
        assert slots.mask.all() and len(slots.index.unique()) == 10
        assert torch.equal(slots.group, result.group.flatten()[slots.index])
        counts[slots.index] += 1
    assert torch.all(counts[~chosen] == 0)
    share = 10 / number
    deviation = math.sqrt(share * (1 - share) / 400)
    assert (counts[chosen] / 400 - share).abs().max() < 4.5 * deviation


def test_fewer_than_the_limit_leaves_slots_empty():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    predictions = labels.clone()
    predictions[0, 1, 1:3] = 1
    result = draw(labels, predictions, 2, keep_percent=100.0)
    keys = random_keys(0, 0, torch.arange(1), 16)
    slots = result.slots(5, keys)
    assert slots.mask.sum() == 2 and set(slots.index[slots.mask].tolist()) == {5, 6}
    assert slots.index.shape == (5,) and slots.index.max() < 16
    assert result.slots(100, keys).index.shape == (16,)  # no more than there are pixels


def test_many_maps_on_a_large_grid_keep_their_order():
    """Map, distance and key together need more than 63 bits here; nearness must not suffer."""
    labels = torch.full((1, 1, 40_000), 899)
    labels[0, 0, 20_000:] = 898
    predictions = labels.clone()
    predictions[0, 0, 1:-1] = 0
    result = draw(labels, predictions, 2**20, keep_percent=25.0)
    for label in (898, 899):
        distance = result.distance[result.group == label]
        kept = result.mask[result.group == label]
        assert len(distance) == 19_999 and kept.sum() == 5_000
        assert distance[kept].max() <= distance[~kept].min()


def test_the_number_kept_is_not_rounded_up_by_an_error_of_floating_point():
    """0.07 * 100 is 7.000000000000001."""
    labels = torch.zeros(1, 10, 10, dtype=torch.int64)
    result = draw(labels, torch.ones_like(labels), 2, keep_percent=7.0)
    assert result.mask.sum() == 7


def test_an_ignore_value_among_the_classes():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, :2] = 1
    keys = torch.zeros(1, 16, dtype=torch.int64)
    result = sample_boundary_negatives(
        labels, torch.full_like(labels, 2), keys, num_classes=3, ignore_value=1, keep_percent=50.0
    )
    assert torch.equal(result.group[0, :, 0], torch.tensor([-1, -1, 0, 0]))
    assert torch.equal(result.mask[0, :, 0], torch.tensor([False, False, True, False]))


@pytest.mark.parametrize("percent", [0.0, -1.0, 100.5, math.nan])
def test_keep_percent_out_of_range(percent):
    maps = random_maps()
    with pytest.raises(ValueError, match=rf"KEEP_PERCENT .*\(0, 100\].* {percent}"):
        draw(*maps, keep_percent=percent)


def test_unknown_target_and_limit():
    maps = random_maps()
    with pytest.raises(ValueError, match="TARGET is 'own'; known are .*'other', 'confused'"):
        draw(*maps, target="own")
    with pytest.raises(ValueError, match="MAX_NEGATIVES .* 0"):
        draw(*maps).slots(0, torch.zeros(2, 99, dtype=torch.int64))


def test_no_sync():
    labels, predictions = random_maps()
    keys = random_keys(0, 0, torch.arange(2), labels[0].numel())
    with Operators() as operators:
        result = sample_boundary_negatives(
            labels, predictions, keys, num_classes=4, ignore_value=IGNORE
        )
        result.slots(7, keys).serves(torch.arange(4))
    operators.assert_no_sync()
