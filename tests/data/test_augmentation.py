"""Image and label stay aligned, padding is ignored, limits hold."""

import colorsys
import pickle

import numpy as np
import pytest
from detectron2.data import transforms as T

from d2_pixcontrast.data.augmentation import (
    ColorJitter,
    PadToSize,
    RandomScaleCrop,
    build_augmentations,
)
from d2_pixcontrast.data.color import ColorTransform, chroma_matrix
from d2_pixcontrast.data.resample import PadTransform, RegionTransform, resize_shortest_edge
from d2_pixcontrast.data.seeding import epoch_permutation, seeded


def _coordinates(height, width):
    """An image whose red is x and green y, and a label of blocks of 8x8 pixels."""
    ys, xs = np.mgrid[:height, :width]
    image = np.stack([xs, ys, np.zeros_like(xs)], -1).astype(np.uint8)
    return image, ((ys // 8) * 32 + xs // 8).astype(np.int32)


def _apply(augmentations, image, label, seed=0):
    inputs = T.AugInput(image, sem_seg=label)
    with seeded(seed, 0):
        transform = T.AugmentationList(augmentations)(inputs)
    return inputs.image, inputs.sem_seg, transform


@pytest.mark.parametrize("seed", range(20))
def test_image_and_label_stay_aligned(seed):
    image, label = _coordinates(120, 200)
    augmentations = [
        RandomScaleCrop((64, 96), (0.4, 2.0)),
        T.RandomFlip(horizontal=True),
        PadToSize((64, 96), [255, 255, 255], ignore_value=9999),
    ]
    out, ids, _ = _apply(augmentations, image, label, seed)
    assert out.shape == (64, 96, 3) and ids.shape == (64, 96)
    inside = ids != 9999
    assert ((out == 255).all(-1) == ~inside).all()
    # Every pixel's colour tells where it came from: its label must be that of the same place, up to
    # the interpolation's reach.
    ys, xs = out[..., 1][inside].astype(int), out[..., 0][inside].astype(int)
    rows, columns = ids[inside] // 32, ids[inside] % 32
    assert np.abs(ys - (rows * 8 + 3.5)).max() <= 5.5
    assert np.abs(xs - (columns * 8 + 3.5)).max() <= 5.5
    # Unbiased: half a pixel of shift between the two would show in the mean.
    assert abs((xs - (columns * 8 + 3.5)).mean()) < 0.3
    assert abs((ys - (rows * 8 + 3.5)).mean()) < 0.3


def test_region_at_scale_one_is_a_plain_crop():
    image, label = _coordinates(50, 60)
    transform = RegionTransform(7, 11, 20, 30, 20, 30)
    np.testing.assert_array_equal(transform.apply_image(image), image[7:27, 11:41])
    np.testing.assert_array_equal(transform.apply_segmentation(label), label[7:27, 11:41])
    np.testing.assert_array_equal(transform.apply_coords(np.array([[11.0, 7.0]])), [[0, 0]])


def test_region_equals_the_crop_of_the_resized_image():
    image = np.random.RandomState(0).randint(0, 256, (40, 60, 3), np.uint8)
    label = np.random.RandomState(1).randint(0, 9, (40, 60)).astype(np.int32)
    whole, part = RegionTransform(0, 0, 40, 60, 80, 120), RegionTransform(10, 20, 20, 30, 40, 60)
    inner = (slice(2, -2), slice(2, -2))  # at the rim the crop cannot look beyond
    expected = whole.apply_image(image)[20:60, 40:100]
    np.testing.assert_array_equal(part.apply_image(image)[inner], expected[inner])
    expected = whole.apply_segmentation(label)[20:60, 40:100]
    np.testing.assert_array_equal(part.apply_segmentation(label), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_resampled_labels_are_labels_of_the_input(dtype):
    label = np.array([[0, 7], [7, 0]], dtype)
    out = RegionTransform(0, 0, 2, 2, 7, 5).apply_segmentation(label)
    assert out.dtype == dtype and set(np.unique(out)) == {0, 7}


def test_strong_reduction_averages():
    checkerboard = np.indices((64, 64)).sum(0) % 2 * 255
    image = np.repeat(checkerboard[..., None], 3, -1).astype(np.uint8)
    out = RegionTransform(0, 0, 64, 64, 13, 13).apply_image(image)
    assert abs(out.astype(float) - 127.5).max() < 16


def test_scale_is_uniform_in_its_range_and_crops_are_everywhere():
    image, label = np.zeros((100, 100, 3), np.uint8), np.zeros((100, 100), np.int32)
    augmentation = RandomScaleCrop((50, 50), (0.5, 2.0))
    transforms = [
        _apply([augmentation], image, label, seed)[2].transforms[0] for seed in range(400)
    ]
    scales = np.array([t.out_height / t.height for t in transforms])
    assert 0.49 <= scales.min() < 0.55 and 1.9 < scales.max() <= 2.03
    assert abs(scales.mean() - 1.25) < 0.06
    places = [t.y / (100 - t.height) for t in transforms if t.height < 60]  # 0 to 1
    assert len(places) > 100 and min(places) < 0.03 and max(places) > 0.97
    assert abs(np.mean(places) - 0.5) < 0.1


def test_aspect_jitter_keeps_the_area():
    image, label = np.zeros((200, 300, 3), np.uint8), np.zeros((200, 300), np.int32)
    augmentation = RandomScaleCrop(None, (0.5, 2.0), aspect_range=(0.8, 1.25))
    sizes = [_apply([augmentation], image, label, seed)[0].shape[:2] for seed in range(300)]
    heights, widths = np.array(sizes).T / [[200], [300]]
    aspects, scales = widths / heights, np.sqrt(widths * heights)
    assert 0.79 < aspects.min() < 0.82 and 1.22 < aspects.max() < 1.26
    assert abs(np.corrcoef(aspects, scales)[0, 1]) < 0.2
    assert 0.49 < scales.min() < 0.55 and 1.9 < scales.max() < 2.01


def test_without_aspect_jitter_the_draws_are_those_of_scale_and_crop_alone():
    image, label = _coordinates(100, 120)
    with seeded(3, 0):
        scale, y, x = np.random.uniform(0.5, 2.0), None, None
        height, width = (min(round(50 / scale), side) for side in (100, 120))
        y, x = (np.random.randint(s - n + 1) for s, n in ((100, height), (120, width)))
    (region,) = _apply([RandomScaleCrop((50, 50), (0.5, 2.0))], image, label, 3)[2].transforms
    assert (region.y, region.x, region.height, region.width) == (y, x, height, width)


def test_short_edge_comes_first():
    image, label = np.zeros((100, 200, 3), np.uint8), np.zeros((100, 200), np.int32)
    out, ids, _ = _apply([RandomScaleCrop(None, (0.5, 0.5), base_short_edge=80)], image, label)
    assert out.shape == (40, 80, 3) and ids.shape == (40, 80)


def test_small_image_is_padded_with_ignore_and_mean_at_a_random_place():
    image, label = np.full((10, 12, 3), 200, np.uint8), np.zeros((10, 12), np.int32)
    augmentations = [RandomScaleCrop((20, 30)), PadToSize((20, 30), [1.4, 2.6, 3], 255)]
    places = set()
    for seed in range(30):
        out, ids, _ = _apply(augmentations, image, label, seed)
        padding = ids == 255
        assert (~padding).sum() == 120 and (ids[~padding] == 0).all()
        assert (out[padding] == [1, 3, 3]).all() and (out[~padding] == 200).all()
        places.add(tuple(np.argwhere(~padding)[0]))
    assert len(places) > 15


def test_pad_moves_points():
    points = PadTransform(1, 2, 3, 4, image_value=[0], label_value=255).apply_coords(
        np.zeros((1, 2))
    )
    np.testing.assert_array_equal(points, [[3, 1]])


def test_category_limit_prefers_varied_crops():
    label = np.zeros((100, 400), np.int32)
    label[:, 350:] = 1
    label[:50, :350] = 255  # ignored pixels do not count
    image = np.zeros((100, 400, 3), np.uint8)

    def varied(limit):
        shares = []
        for seed in range(40):
            _, ids, _ = _apply(
                [RandomScaleCrop((100, 100), max_category_area=limit)], image, label, seed
            )
            counts = np.bincount(ids[ids != 255])
            shares.append(counts.max() / counts.sum() <= 0.75)
        return np.mean(shares)

    assert varied(1.0) < 0.35
    assert varied(0.75) > 0.75


def test_void_image_is_cropped_all_the_same():
    image, label = np.zeros((50, 50, 3), np.uint8), np.full((50, 50), 255, np.int32)
    _, ids, _ = _apply([RandomScaleCrop((20, 20), max_category_area=0.5)], image, label)
    assert ids.shape == (20, 20) and (ids == 255).all()


def test_color_transform_against_its_formula():
    image = np.random.RandomState(0).randint(0, 256, (16, 16, 3), np.uint8)
    out = ColorTransform(10, 1.2, None).apply_image(image)
    expected = np.clip(np.clip(image + 10.0, 0, 255) * 1.2, 0, 255)
    assert np.abs(out - expected).max() <= 0.5
    matrix = chroma_matrix(1.3, 20)
    expected = np.clip(image.astype(float) @ matrix.T, 0, 255)
    difference = ColorTransform(0, 1, matrix).apply_image(image) - expected
    assert np.abs(difference).max() <= 1  # cv2 works with integers here


def test_saturation_zero_is_luma_and_grey_stays_grey():
    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(chroma_matrix(0, 0), np.tile(luma, (3, 1)), atol=1e-6)
    np.testing.assert_allclose(chroma_matrix(0, 0, "BGR"), np.tile(luma[::-1], (3, 1)), atol=1e-6)
    np.testing.assert_allclose(chroma_matrix(1.7, 33).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(luma @ chroma_matrix(1, 50), luma, atol=1e-6)
    np.testing.assert_allclose(chroma_matrix(1, 0), np.eye(3), atol=1e-6)


def test_hue_turns_one_way_and_back():
    turned = chroma_matrix(1, 30) @ [200, 60, 60]
    shift = colorsys.rgb_to_hsv(*turned)[0] * 360
    assert 15 < min(shift, 360 - shift) < 45
    np.testing.assert_allclose(chroma_matrix(1, -30) @ turned, [200, 60, 60], atol=1e-3)


def test_jitter_draws_within_its_ranges():
    augmentation = ColorJitter(20, (0.8, 1.2), prob=0.5)
    transforms = []
    for seed in range(200):
        with seeded(seed, 0):
            transforms.append(augmentation.get_transform(np.zeros((2, 2, 3), np.uint8)))
    idle = sum(isinstance(t, T.NoOpTransform) for t in transforms)
    assert 25 < idle < 80  # a quarter
    active = [t for t in transforms if isinstance(t, ColorTransform)]
    assert all(abs(t.offset) <= 20 and 0.8 <= t.factor <= 1.2 for t in active)
    assert all(t.matrix is None for t in active)


def test_jitter_of_colours_draws_within_its_ranges():
    """Of pure colours: the chroma plane tells how far a matrix turns and stretches them."""
    plane = np.array([[0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # of YIQ
    augmentation = ColorJitter(saturation=(0.5, 1.5), hue=36.0)
    angles, factors = [], []
    for seed in range(300):
        with seeded(seed, 0):
            transform = augmentation.get_transform(np.zeros((2, 2, 3), np.uint8))
        assert (transform.offset, transform.factor) == (0.0, 1.0)
        (x, y), (i, q) = plane @ [1, 0, 0], plane @ transform.matrix @ [1, 0, 0]
        angles.append(np.degrees(np.arctan2(x * q - y * i, x * i + y * q)))
        factors.append(np.hypot(i, q) / np.hypot(x, y))
    assert -37 < min(angles) < -33 and 33 < max(angles) < 37
    assert 0.49 < min(factors) < 0.53 and 1.47 < max(factors) < 1.51
    assert abs(np.mean(angles)) < 4 and abs(np.mean(factors) - 1) < 0.06
    assert abs(np.corrcoef(angles, factors)[0, 1]) < 0.2


@pytest.mark.parametrize("enabled", [True, False])
def test_every_key_reaches_its_place(small_cfg, enabled):
    small_cfg.INPUT.merge_from_list(
        ["CROP.ENABLED", enabled, "CROP.SIZE", [32, 48], "CROP.SINGLE_CATEGORY_MAX_AREA", 0.75]
        + ["SCALE_RANGE", (0.6, 1.4), "ASPECT_RANGE", (0.9, 1.1), "BASE_SHORT_EDGE", 99]
        + ["COLOR_JITTER.BRIGHTNESS", 12.0, "COLOR_JITTER.CONTRAST", (0.7, 1.3), "FORMAT", "BGR"]
        + ["COLOR_JITTER.SATURATION", (0.4, 1.6), "COLOR_JITTER.HUE", 17.0]
        + ["COLOR_JITTER.PROB", 0.25, "RANDOM_FLIP", "horizontal"]
    )
    small_cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 254
    crop, mirror, jitter, *padding = build_augmentations(small_cfg)
    assert crop.crop_size == ((32, 48) if enabled else None)
    assert (crop.scale_range, crop.aspect_range) == ((0.6, 1.4), (0.9, 1.1))
    assert (crop.base_short_edge, crop.max_category_area, crop.ignore_value) == (99, 0.75, 254)
    assert (mirror.prob, mirror.flip_pairs) == (0.5, [])
    assert (jitter.brightness, jitter.contrast, jitter.saturation) == (12, (0.7, 1.3), (0.4, 1.6))
    assert (jitter.hue, jitter.prob, jitter.image_format) == (17.0, 0.25, "BGR")
    assert len(padding) == enabled
    if enabled:
        assert (padding[0].size, padding[0].ignore_value) == ((32, 48), 254)
        assert padding[0].image_value == small_cfg.MODEL.PIXEL_MEAN


def test_jitter_leaves_labels_alone():
    image, label = _coordinates(16, 16)
    out, ids, _ = _apply([ColorJitter(50, (0.5, 0.6), (0, 0.1), 90)], image, label)
    np.testing.assert_array_equal(ids, label)
    assert (out != image).any() and out.dtype == np.uint8


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [(0, 1333, (300, 400)), (150, 0, (150, 200)), (600, 600, (450, 600)), (299, 0, (299, 399))],
)
def test_test_size(size, limit, expected):
    transform = resize_shortest_edge(300, 400, size, limit)
    assert transform.apply_image(np.zeros((300, 400, 3), np.uint8)).shape[:2] == expected


def test_seeded_restores_the_global_generators_and_reaches_all():
    import random

    import torch

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(7, 3):
        first = draw()
    assert draw() == expected
    with seeded(7, 3):
        assert draw() == first
    with seeded(7, 4):
        assert all(a != b for a, b in zip(draw(), first))
    with seeded(2**40, 2**40):  # any size
        draw()


def test_epoch_permutation():
    assert sorted(epoch_permutation(17, 0, 0)) == list(range(17))
    assert epoch_permutation(17, 0, 0).tolist() == epoch_permutation(17, 0, 0).tolist()
    assert epoch_permutation(17, 0, 0).tolist() != epoch_permutation(17, 0, 1).tolist()
    assert epoch_permutation(17, 0, 0).tolist() != epoch_permutation(17, 1, 0).tolist()


def test_augmentations_can_be_sent_to_workers():
    pickle.loads(pickle.dumps([RandomScaleCrop((2, 2)), PadToSize((2, 2), [0]), ColorJitter()]))


@pytest.mark.parametrize("matrix", [None, chroma_matrix(1.3, 20)])
def test_mirrored_views_get_the_colours_of_their_copies(matrix):
    mirrored = np.random.RandomState(0).randint(0, 256, (9, 7, 3), np.uint8)[:, ::-1]
    transform = ColorTransform(10, 1.2, matrix)
    expected = transform.apply_image(mirrored.copy())
    np.testing.assert_array_equal(transform.apply_image(mirrored), expected)
