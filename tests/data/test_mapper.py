"""What the mapper hands to the model and to the evaluator."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from PIL import Image

from d2_pixcontrast import add_pixcontrast_config
from d2_pixcontrast.data import DataError, SemSegMapper


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = (32, 48)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    return cfg


@pytest.fixture
def sample(tmp_path):
    """A dataset dict of a 60x40 image with the ids 0..3 and 255."""
    rng = np.random.RandomState(0)
    label = rng.choice([0, 1, 2, 3, 255], (40, 60)).astype(np.uint8)
    Image.fromarray(rng.randint(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(label).save(tmp_path / "label.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "label.png"),
        "image_id": "image",
    }


def test_train_sample(cfg, sample):
    before = dict(sample)
    out = SemSegMapper(cfg, is_train=True)(sample)
    assert sample == before
    assert out["image"].shape == (3, 32, 48) and out["image"].dtype == torch.uint8
    assert out["sem_seg"].shape == (32, 48) and out["sem_seg"].dtype == torch.int64
    assert out["image"].is_contiguous() and out["sem_seg"].is_contiguous()
    assert (out["height"], out["width"]) == (40, 60)
    assert out["file_name"] == sample["file_name"] and out["image_id"] == "image"
    assert set(out["sem_seg"].unique().tolist()) <= {0, 1, 2, 3, 255}


@pytest.mark.parametrize("ignore_value", [-1, 65535])
def test_padding_fits_whatever_the_label_file_has(cfg, sample, ignore_value):
    """An 8-bit file cannot hold the ignore value of the data set, the padding has to."""
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = ignore_value
    cfg.INPUT.CROP.SIZE = (200, 200)
    label = np.asarray(Image.open(sample["sem_seg_file_name"]))
    Image.fromarray(np.minimum(label, 3)).save(sample["sem_seg_file_name"])
    out = SemSegMapper(cfg, is_train=True)(sample)
    assert set(out["sem_seg"].unique().tolist()) == {0, 1, 2, 3, ignore_value}


def test_test_sample_has_the_label_in_its_own_size(cfg, sample):
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 20, 0
    out = SemSegMapper(cfg, is_train=False)(sample)
    assert out["image"].shape == (3, 20, 30)
    assert (out["height"], out["width"]) == (40, 60)
    assert "sem_seg" not in out  # the model would move it to the device
    expected = np.asarray(Image.open(sample["sem_seg_file_name"]))
    assert out["label"].dtype == torch.int64
    np.testing.assert_array_equal(out["label"].numpy(), expected)


def test_test_image_as_it_is(cfg, sample):
    out = SemSegMapper(cfg, is_train=False)(sample)
    expected = np.asarray(Image.open(sample["file_name"]))
    np.testing.assert_array_equal(out["image"].permute(1, 2, 0).numpy(), expected)
    cfg.INPUT.FORMAT = "BGR"
    out = SemSegMapper(cfg, is_train=False)(sample)
    np.testing.assert_array_equal(out["image"].permute(1, 2, 0).numpy(), expected[..., ::-1])


def test_the_original_is_kept_for_other_scales(cfg, sample):
    cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.AUG.ENABLED = 20, True
    out = SemSegMapper(cfg, is_train=False)(sample)
    original = np.asarray(Image.open(sample["file_name"]))
    np.testing.assert_array_equal(out["original_image"].permute(1, 2, 0).numpy(), original)
    from_array = SemSegMapper(cfg, is_train=False).test_image(original)
    assert all(torch.equal(from_array[key], out[key]) for key in ("image", "original_image"))
    for key, value in (("INPUT.MIN_SIZE_TEST", 40), ("TEST.AUG.ENABLED", False)):
        cfg.merge_from_list([key, value])
        assert "original_image" not in SemSegMapper(cfg, is_train=False)(sample)
        cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 20])


@pytest.mark.parametrize("size", [(24, 24), (50, 33), (40, 60)])
def test_test_images_of_one_size(cfg, sample, size):
    """Whatever MIN_SIZE_TEST says; image and label file keep theirs."""
    cfg.INPUT.FIXED_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST = list(size), 20
    out = SemSegMapper(cfg, is_train=False)(sample)
    assert out["image"].shape == (3, *size) and out["image"].dtype == torch.uint8
    assert (out["height"], out["width"]) == (40, 60) and out["label"].shape == (40, 60)
    original = np.asarray(Image.open(sample["file_name"]))
    mean = out["image"].float().mean(dim=(1, 2)).numpy()
    np.testing.assert_allclose(mean, original.mean(axis=(0, 1)), atol=3)  # all of it, squeezed
    if size == (40, 60):
        np.testing.assert_array_equal(out["image"].permute(1, 2, 0).numpy(), original)
    assert SemSegMapper(cfg, is_train=True)(sample)["image"].shape == (3, 32, 48)


def test_test_images_of_one_size_keep_the_original_for_other_scales(cfg, sample):
    cfg.INPUT.FIXED_SIZE_TEST, cfg.TEST.AUG.ENABLED = [24, 30], True
    out = SemSegMapper(cfg, is_train=False)(sample)
    original = np.asarray(Image.open(sample["file_name"]))
    np.testing.assert_array_equal(out["original_image"].permute(1, 2, 0).numpy(), original)


def test_test_sample_without_label(cfg, sample):
    del sample["sem_seg_file_name"]
    assert "label" not in SemSegMapper(cfg, is_train=False)(sample)


def test_padding_has_mean_and_ignore(cfg, sample):
    cfg.INPUT.CROP.SIZE, cfg.INPUT.SCALE_RANGE = (80, 80), (1.0, 1.0)
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 50.0
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 9
    label = np.zeros((40, 60), np.uint8)
    Image.fromarray(label).save(sample["sem_seg_file_name"])
    out = SemSegMapper(cfg, is_train=True)(sample)
    padding = out["sem_seg"] == 9
    assert padding.sum() == 80 * 80 - 40 * 60
    assert (out["image"][:, padding] == torch.tensor([[124], [116], [104]])).all()


def test_all_void_sample_is_legal(cfg, sample):
    Image.new("L", (60, 40), 255).save(sample["sem_seg_file_name"])
    assert (SemSegMapper(cfg, is_train=True)(sample)["sem_seg"] == 255).all()


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (Image.new("L", (60, 40), 4), r"label\.png has value 4 in 2400 pixels"),
        (Image.new("L", (40, 60), 0), r"image\.png is 60x40 .*label\.png is 40x60"),
        (Image.new("RGB", (60, 40)), r"label\.png has mode RGB"),
        (None, r"label\.png does not exist"),
    ],
)
def test_bad_label_is_named(cfg, sample, tmp_path, is_train, label, message):
    (tmp_path / "label.png").unlink()
    if label:
        label.save(tmp_path / "label.png")
    with pytest.raises(DataError, match=message):
        SemSegMapper(cfg, is_train=is_train)(sample)


def test_users_augmentations_work(cfg, sample):
    mapper = SemSegMapper(
        is_train=True,
        augmentations=[T.ResizeShortestEdge(20), T.RandomFlip(), T.RandomBrightness(0.5, 1.5)],
        image_format="RGB",
        num_classes=4,
        ignore_value=255,
    )
    out = mapper(sample)
    assert out["image"].shape == (3, 20, 30) and out["sem_seg"].shape == (20, 30)


def test_ids_beyond_8_bit_survive(cfg, sample):
    ids = np.random.RandomState(0).choice([0, 1, 700, 65535], (40, 60)).astype(np.uint16)
    Image.fromarray(ids).save(sample["sem_seg_file_name"])
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 800, 65535
    out = SemSegMapper(cfg, is_train=True)(sample)
    assert set(out["sem_seg"].unique().tolist()) == {0, 1, 700, 65535}


def test_no_crop(cfg, sample):
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.SCALE_RANGE = False, (1.5, 1.5)
    out = SemSegMapper(cfg, is_train=True)(sample)
    assert out["image"].shape == (3, 60, 90) and out["sem_seg"].shape == (60, 90)


@pytest.mark.parametrize(
    ("key", "value"),
    [("CROP.TYPE", "relative"), ("RANDOM_FLIP", "sideways"), ("FORMAT", "YUV-BT.601")],
)
def test_unknown_option_is_named(cfg, key, value):
    cfg.merge_from_list([f"INPUT.{key}", value])
    with pytest.raises(ValueError, match=rf'INPUT\.{key} is "{value}"'):
        SemSegMapper(cfg, is_train=True)
