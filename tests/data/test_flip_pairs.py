"""Classes with a side in a mirrored image."""

import uuid

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from d2_pixcontrast.data import DataError, build_augmentations, build_train_loader
from d2_pixcontrast.data.flip_pairs import RandomMirror, common_flip_pairs, exchange, flip_pairs


@pytest.fixture
def named():
    """Makes the metadata of a data set with these pairs, and returns its name."""
    names = []

    def make(pairs):
        names.append(f"pairs_{uuid.uuid4().hex}")
        if pairs is not None:
            MetadataCatalog.get(names[-1]).set(flip_pairs=pairs)
        return names[-1]

    yield make
    for name in names:
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("pairs", [[(0, 0)], [(0, 1), (1, 2)], [(0, 9)], [(0, 1, 2)]])
def test_wrong_flip_pairs_are_named(named, pairs):
    assert flip_pairs(named(None), 4) == []
    name = named(pairs)
    with pytest.raises(DataError, match=rf"flip_pairs .* of {name}"):
        flip_pairs(name, 4)


def test_training_sets_have_to_agree(named):
    one, same, other, none = named([(0, 1)]), named([[1, 0]]), named([(0, 2)]), named(None)
    assert common_flip_pairs([one, same], 4) == [(0, 1)]
    assert common_flip_pairs([none], 4) == common_flip_pairs([], 4) == []
    for second in (other, none):
        with pytest.raises(DataError, match=rf"{one} and {second} have different flip_pairs"):
            common_flip_pairs([one, second], 4)


def test_exchange_leaves_other_ids_alone():
    labels = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)
    found = exchange(labels, [(0, 1), (3, 2)])
    assert found.tolist() == [[1, 0, 3], [2, 255, 0]] and found.dtype == np.uint8
    assert labels[0, 0] == 0


@pytest.mark.parametrize("pairs", [[], [(1, 2)]])
def test_draws_and_images_are_detectron2s(pairs):
    image = np.random.RandomState(0).randint(0, 256, (4, 6, 3), np.uint8)
    results = []
    for flip in (RandomMirror(pairs), T.RandomFlip(horizontal=True)):
        np.random.seed(5)
        results.append([flip.get_transform(image).apply_image(image) for _ in range(20)])
        results.append(np.random.rand())
    np.testing.assert_array_equal(results[0], results[2])
    assert results[1] == results[3]
    assert 0 < sum((one == image).all() for one in results[0]) < 20


def test_a_mirrored_left_arm_is_a_right_one(small_cfg, tmp_path, named):
    """Left is where the image is dark: in every sample of the loader, mirrored or not."""
    name = named([(1, 2)])
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    labels = np.full((64, 64), 1, np.uint8)
    labels[:, 32:], labels[0], labels[1] = 2, 255, 0
    for kind, array in (("image", image), ("label", labels)):
        Image.fromarray(array).save(tmp_path / f"{kind}.png")
    sample = {
        k: str(tmp_path / f"{v}.png")
        for k, v in (("file_name", "image"), ("sem_seg_file_name", "label"))
    }
    DatasetCatalog.register(name, lambda: [sample])
    small_cfg.DATASETS.TRAIN = (name,)
    small_cfg.INPUT.SCALE_RANGE = (1.0, 1.0)
    small_cfg.INPUT.CROP.SIZE = (64, 64)
    small_cfg.INPUT.COLOR_JITTER.PROB = 0.0
    small_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    small_cfg.SOLVER.IMS_PER_BATCH = 16
    small_cfg.SEED = 0
    try:
        batch = next(iter(build_train_loader(small_cfg)))
    finally:
        DatasetCatalog.remove(name)
    mirrored = 0
    for mapped in batch:
        picture, found = mapped["image"][0].numpy(), mapped["sem_seg"].numpy()
        bright = picture[10, 0] > 128
        mirrored += bright
        near, far = found[2:, :32], found[2:, 32:]
        # The dark half has id 1 before; its mirror image is on the other side and has id 2.
        assert np.unique(near) == [1] and np.unique(far) == [2], bright
        assert np.unique(found[0]) == [255] and np.unique(found[1]) == [0]
    assert 0 < mirrored < 16


def test_lip_trains_with_its_pairs(small_cfg):
    small_cfg.DATASETS.TRAIN = ("lip_sem_seg_train",)
    small_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 20
    (flip,) = [a for a in build_augmentations(small_cfg) if isinstance(a, RandomMirror)]
    assert flip.flip_pairs == [(14, 15), (16, 17), (18, 19)]
