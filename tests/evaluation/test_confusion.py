import math

import numpy as np
import pytest
import torch

from d2_pixcontrast.evaluation import ConfusionCounter, confusion_matrix, scores

IGNORE = 255


def naive_confusion(labels, predictions, num_classes):
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for label, prediction in zip(labels.flatten().tolist(), predictions.flatten().tolist()):
        if label != IGNORE:
            matrix[label][prediction] += 1
    return matrix


def naive_scores(matrix):
    classes = range(len(matrix))
    total = sum(map(sum, matrix))
    iou, acc, weighted = [], [], 0.0
    for c in classes:
        true_positive = matrix[c][c]
        truth = sum(matrix[c])
        predicted = sum(matrix[row][c] for row in classes)
        union = truth + predicted - true_positive
        iou.append(true_positive / union if union else math.nan)
        acc.append(true_positive / truth if truth else math.nan)
        weighted += truth / total * iou[-1] if truth else 0.0
    expected = {
        "mIoU": np.nanmean(iou),
        "fwIoU": weighted,
        "mACC": np.nanmean(acc),
        "pACC": sum(matrix[c][c] for c in classes) / total,
    }
    expected |= {f"IoU-{c}": iou[c] for c in classes} | {f"ACC-{c}": acc[c] for c in classes}
    return {key: 100 * value for key, value in expected.items()}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("num_classes", [1, 2, 7])
def test_equals_naive_loops(num_classes, dtype):
    generator = torch.Generator().manual_seed(num_classes)
    labels = torch.randint(num_classes, (3, 9, 11), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
    predictions = torch.randint(num_classes, (3, 9, 11), generator=generator)

    confusion = confusion_matrix(labels.to(dtype), predictions, num_classes, IGNORE)

    expected = naive_confusion(labels, predictions, num_classes)
    assert confusion.dtype == torch.int64
    assert confusion.tolist() == expected
    result = scores(confusion)
    assert all(type(value) is float for value in result.values())
    assert result == pytest.approx(naive_scores(expected), rel=1e-12)


def test_class_absent_from_both_is_left_out():
    result = scores(torch.tensor([[8, 2, 0], [1, 9, 0], [0, 0, 0]]))
    assert math.isnan(result["IoU-2"]) and math.isnan(result["ACC-2"])
    assert result["mIoU"] == pytest.approx(100 * (8 / 11 + 9 / 12) / 2)
    assert result["mACC"] == pytest.approx(100 * (0.8 + 0.9) / 2)
    assert result["fwIoU"] == pytest.approx(100 * (8 / 11 + 9 / 12) / 2)


def test_predicted_class_absent_from_the_ground_truth_counts_as_zero():
    # Detectron2 0.5 says 66.0 here (it divides by 3 as well), main 99.0 (it divides by 2).
    result = scores(torch.tensor([[99, 0, 1], [0, 99, 1], [0, 0, 0]]))
    assert result["IoU-2"] == 0.0 and math.isnan(result["ACC-2"])
    assert result["mIoU"] == pytest.approx(66.0)
    assert result["mACC"] == pytest.approx(99.0)


def test_class_names_and_their_number():
    assert "IoU-tree" in scores(torch.eye(2), ["tree", "sky"])
    with pytest.raises(ValueError):
        scores(torch.eye(2), ["tree"])


def test_only_void_pixels_give_nan():
    void = torch.full((4, 4), IGNORE)
    confusion = confusion_matrix(void, torch.zeros_like(void), 3, IGNORE)
    assert confusion.sum() == 0
    assert all(math.isnan(value) for value in scores(confusion).values())


@pytest.mark.parametrize("ignore_value", [-1, 0, 255, 65535])
def test_ignore_value_may_be_any_id(ignore_value):
    labels = torch.tensor([ignore_value, 1, 2])
    confusion = confusion_matrix(labels, torch.tensor([1, 1, 1]), 3, ignore_value)
    assert confusion.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("label, prediction", [(3, 0), (-1, 0), (0, 3), (0, -1), (300, 2)])
def test_id_outside_the_classes_raises(label, prediction):
    with pytest.raises(ValueError, match="1 pixels .* outside the 3 classes 0..2"):
        confusion_matrix(torch.tensor([label, 0]), torch.tensor([prediction, 0]), 3, IGNORE)


def test_prediction_under_a_void_label_may_be_anything():
    assert confusion_matrix(torch.tensor([IGNORE]), torch.tensor([77]), 3, IGNORE).sum() == 0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        confusion_matrix(torch.zeros(2, 3), torch.zeros(3, 2), 2, IGNORE)


def test_counter_adds_up():
    counter = ConfusionCounter(2, IGNORE)
    counter.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    counter.update(torch.tensor([[1, IGNORE]]), torch.tensor([[1, 1]]))
    assert counter.matrix().tolist() == [[1, 0], [1, 1]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_the_gpu_without_a_sync():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (40, 50), generator=generator)
    predictions = torch.randint(5, (40, 50), generator=generator)
    counter = ConfusionCounter(5, 4, "cuda")
    on_gpu = labels.cuda(), predictions.cuda()
    counter.update(*on_gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        counter.update(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(counter.matrix().cpu(), 2 * confusion_matrix(labels, predictions, 5, 4))
