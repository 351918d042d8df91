"""Boundary IoU against one class, one pixel and one neighbour at a time."""

import itertools
import math

import pytest
import torch

from d2_pixcontrast.evaluation import BoundaryCounter, class_map, near_boundary
from d2_pixcontrast.evaluation.boundary_iou import boundary_distance

IGNORE = 255


def naive_region(ids, void, index, distance):
    """Pixels of class ``index`` with another class or the outside within ``distance``."""
    height, width = len(ids), len(ids[0])
    region = set()
    for y, x in itertools.product(range(height), range(width)):
        if void[y][x] or ids[y][x] != index:
            continue
        for row, column in itertools.product(
            range(y - distance, y + distance + 1), range(x - distance, x + distance + 1)
        ):
            inside = 0 <= row < height and 0 <= column < width
            if not inside or (not void[row][column] and ids[row][column] != index):
                region.add((y, x))
    return region


def naive_scores(pairs, num_classes, width):
    both, either = [0] * num_classes, [0] * num_classes
    for label, prediction in pairs:
        void = (label == IGNORE).tolist()
        distance = width if width >= 1 else max(round(width * math.hypot(*label.shape)), 1)
        for index in range(num_classes):
            truth = naive_region(label.tolist(), void, index, distance)
            predicted = naive_region(prediction.tolist(), void, index, distance)
            both[index] += len(truth & predicted)
            either[index] += len(truth | predicted)
    return [100 * b / e if e else math.nan for b, e in zip(both, either)]


def blobs(height, width, classes, seed):
    """A label of a few regions, and a prediction that is off by a pixel or two."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(classes, (-(-height // 6) + 1, -(-width // 6) + 1), generator=generator)
    label = coarse.repeat_interleave(6, 0).repeat_interleave(6, 1)
    shift = int(torch.randint(3, (1,), generator=generator))
    prediction = label[shift : shift + height, 1 : 1 + width].clone()
    label = label[:height, :width].clone()
    label[height // 3 : height // 3 + 4, 2:9] = IGNORE
    return label, prediction


@pytest.mark.parametrize("width", [1, 2, 5, 25, 0.02, 0.1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_equals_naive_loops(width, dtype):
    pairs = [blobs(17, 23, 5, seed=0), blobs(24, 11, 5, seed=1)]
    counter = BoundaryCounter(6, IGNORE, width)
    for label, prediction in pairs:
        counter.update(label.to(dtype), prediction.to(dtype))
    found = counter.scores()
    expected = naive_scores(pairs, 6, width)
    assert [found[f"BIoU-{index}"] for index in range(6)] == pytest.approx(expected, nan_ok=True)
    assert math.isnan(found["BIoU-5"])
    present = [value for value in expected if not math.isnan(value)]
    assert found["mBIoU"] == pytest.approx(sum(present) / len(present))
    assert all(type(value) is float for value in found.values())


def test_many_classes():
    pairs = [blobs(30, 40, 200, seed=3)]
    counter = BoundaryCounter(200, IGNORE, 2)
    counter.update(*pairs[0])
    expected = naive_scores(pairs, 200, 2)
    found = [counter.scores()[f"BIoU-{index}"] for index in range(200)]
    assert found == pytest.approx(expected, nan_ok=True)


def test_what_is_far_from_boundaries_does_not_count():
    label = torch.zeros(40, 40, dtype=torch.int64)
    label[:, 20:] = 1
    prediction = label.clone()
    prediction[10, 10] = 1  # makes a boundary of its own in the prediction alone
    counter = BoundaryCounter(2, IGNORE, 2)
    counter.update(label, label)
    assert counter.scores()["mBIoU"] == 100
    counter.update(label, prediction)
    assert counter.scores()["BIoU-0"] < 100


def test_void_makes_no_boundary_and_what_is_predicted_there_does_not_matter():
    label = torch.zeros(20, 20, dtype=torch.int64)
    label[5:15, 5:15] = IGNORE
    prediction = torch.zeros_like(label)
    prediction[6:12, 6:12] = 1
    near = near_boundary(label.short(), label == IGNORE, 2)
    assert near.sum() == 20 * 20 - 16 * 16  # the image's border alone
    counter = BoundaryCounter(2, IGNORE, 2)
    counter.update(label, prediction)
    assert counter.scores()["BIoU-0"] == 100 and math.isnan(counter.scores()["BIoU-1"])


@pytest.mark.parametrize("value", [IGNORE, 1])
def test_all_void_and_one_class(value):
    label = torch.full((4, 6), value)
    counter = BoundaryCounter(3, IGNORE, 3)
    counter.update(label, torch.ones_like(label))
    expected = math.nan if value == IGNORE else 100.0
    assert counter.scores()["mBIoU"] == pytest.approx(expected, nan_ok=True)


def test_width_in_pixels_and_as_a_share_of_the_diagonal():
    assert boundary_distance(0.02, 1024, 2048) == 46
    assert boundary_distance(0.02, 10, 10) == 1
    assert boundary_distance(3.0, 10, 10) == 3
    for width in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"TEST.BOUNDARY_IOU.WIDTH is {width}"):
            BoundaryCounter(3, IGNORE, width)


@pytest.mark.parametrize("classes", [1, 3, 300])
def test_class_map_is_argmax_and_takes_the_first_of_equal_scores(classes):
    scores = torch.randint(5, (classes, 13, 9), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(class_map(scores).long(), scores.argmax(dim=0))
    assert torch.equal(class_map(scores.half()).long(), scores.argmax(dim=0))


@pytest.mark.parametrize("classes", [1, 3, 255, 256, 300])
@pytest.mark.parametrize("place", [0, -1])
def test_where_a_score_is_nan_there_is_no_class(classes, place):
    scores = torch.zeros(classes, 2, 3)
    scores[-1] = 1
    scores[place, 0, 0] = math.nan
    expected = torch.full((2, 3), classes - 1)
    expected[0, 0] = classes
    assert torch.equal(class_map(scores).long(), expected)
