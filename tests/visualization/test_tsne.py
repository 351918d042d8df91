import builtins

import numpy as np
import pytest
import torch

from d2_pixcontrast.visualization import project, sample_embeddings
from d2_pixcontrast.visualization.pixel_sample import smallest_keys
from d2_pixcontrast.visualization.tsne import class_cosines


def clusters(dim=60, per_class=20):
    rng = np.random.RandomState(0)
    classes = np.repeat(np.arange(3), per_class)
    return rng.randn(len(classes), dim) * 0.1 + np.eye(dim)[classes], classes


def test_same_input_same_points():
    pytest.importorskip("sklearn")
    embeddings, classes = clusters()
    first, second = project(embeddings, classes), project(embeddings, classes)
    assert np.array_equal(first.coordinates, second.coordinates)
    assert first.coordinates.shape == (60, 2)
    low, high = first.coordinates.min(axis=0), first.coordinates.max(axis=0)
    assert low + high == pytest.approx([1, 1]) and (high - low).max() == pytest.approx(1)
    assert np.array_equal(first.classes, classes)


def test_separates_clusters_whatever_their_length():
    pytest.importorskip("sklearn")
    embeddings, classes = clusters()
    scaled = embeddings * np.random.RandomState(1).uniform(0.1, 10, (60, 1))
    points = project(scaled, classes).coordinates
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (classes[distance.argmin(axis=1)] == classes).all()


@pytest.mark.parametrize("number", [4, 7])
def test_few_points(number):
    pytest.importorskip("sklearn")
    embeddings, classes = clusters()
    assert project(embeddings[:number], classes[:number]).coordinates.shape == (number, 2)


def test_bad_input():
    pytest.importorskip("sklearn")
    embeddings, classes = clusters()
    with pytest.raises(ValueError, match="at least 4"):
        project(embeddings[:3], classes[:3])
    embeddings[5, 5] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        project(embeddings, classes)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    original = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError("no sklearn")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ImportError, match=r'pip install "d2_pixcontrast\[vis\]"'):
        project(*clusters())


def test_class_cosines_equal_naive_loops():
    rng = np.random.RandomState(3)
    unit = rng.randn(30, 5)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    classes = np.repeat([0, 2, 5], [5, 10, 15])
    within, between = {}, {}
    for i in range(30):
        for j in range(30):
            a, b = classes[i], classes[j]
            if a != b:
                between.setdefault((a, b), []).append(unit[i] @ unit[j])
            elif i != j:
                within.setdefault(a, []).append(unit[i] @ unit[j])
    expected = [np.mean([np.mean(v) for v in pairs.values()]) for pairs in (within, between)]
    assert class_cosines(unit, classes) == pytest.approx(expected)


def test_class_cosines_without_pairs():
    assert np.isnan(class_cosines(np.eye(3), np.array([0, 1, 2]))[0])
    assert np.isnan(class_cosines(np.eye(3), np.array([0, 0, 0]))[1])


def test_smallest_keys_against_a_loop():
    random = np.random.RandomState(0)
    classes = random.choice([-1, 0, 1, 3, 255], 60, p=[0.1, 0.6, 0.05, 0.15, 0.1])
    keys = random.random_sample(60)
    expected = []
    for c in range(4):
        expected += sorted(np.flatnonzero(classes == c), key=lambda i: keys[i])[:10]
    assert smallest_keys(classes, keys, 4, per_class=10).tolist() == expected
    assert smallest_keys(classes[:0], keys[:0], 4, per_class=10).tolist() == []


class Strided(torch.nn.Module):
    """The classifier's input is the image at every fourth pixel, padded to a multiple of 8."""

    def __init__(self):
        super().__init__()
        self.sem_seg_head = torch.nn.Module()
        self.sem_seg_head.predictor = torch.nn.Conv2d(3, 2, 1)
        self.backbone = torch.nn.Module()
        self.backbone.size_divisibility = 8

    def forward(self, batch):
        image = batch[0]["image"].float()
        height, width = image.shape[-2:]
        padded = torch.nn.functional.pad(image[None], (0, -width % 8, 0, -height % 8), value=-1)
        self.sem_seg_head.predictor(padded[:, :, 2::4, 2::4])


def test_embeddings_are_those_of_their_labels():
    generator = torch.Generator().manual_seed(0)
    batches = []
    for height, width in ((20, 36), (16, 12)):
        label = torch.randint(3, (height, width), generator=generator)
        label[:4] = 255
        batches.append([{"image": label.repeat(3, 1, 1).to(torch.uint8), "label": label}])
    model = Strided()
    sample = sample_embeddings(model, batches, num_classes=3, per_class=1000)
    # The image holds the label, so each feature is its class.
    assert np.array_equal(sample.embeddings, np.tile(sample.classes[:, None], (1, 3)))
    assert len(sample.classes) == 4 * 9 + 3 * 3
    assert not model.sem_seg_head.predictor._forward_pre_hooks and not model.training


def position_batches():
    """Eight images whose channels are their number and the pixel's place in them."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(24), indexing="ij")
    for number in range(8):
        label = torch.randint(4, (32, 24), generator=generator)
        image = torch.stack([torch.full((32, 24), number), rows, columns]).to(torch.uint8)
        yield [{"image": image, "label": label}]


def test_pixels_are_drawn_evenly_from_all_images():
    options = {"num_classes": 3, "per_class": 40}
    sample = sample_embeddings(Strided(), position_batches(), **options)
    assert np.bincount(sample.classes).tolist() == [40, 40, 40]
    assert len(np.unique(sample.embeddings, axis=0)) == 120
    labels = [batch[0]["label"] for batch in position_batches()]
    for (number, row, column), c in zip(sample.embeddings.astype(int), sample.classes, strict=True):
        assert labels[number][row, column] == c
    # 15 of each image on average
    assert np.bincount(sample.embeddings[:, 0].astype(int), minlength=8).min() >= 5
    again = sample_embeddings(Strided(), position_batches(), **options)
    assert np.array_equal(again.embeddings, sample.embeddings)
    other = sample_embeddings(Strided(), position_batches(), seed=1, **options)
    assert not np.array_equal(other.embeddings, sample.embeddings)


def test_without_an_image_there_is_nothing_to_take():
    with pytest.raises(ValueError, match="no image"):
        sample_embeddings(Strided(), [], num_classes=3)
