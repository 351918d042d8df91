"""Test-time augmentation and sliding windows against sums written out by hand."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from d2_pixcontrast.data.resample import RegionTransform
from d2_pixcontrast.modeling.inference import (
    MultiScaleFlip,
    SlidingWindow,
    window_starts,
    with_sliding_window,
    with_test_time_augmentation,
)

MEAN = [10.25, 20.5, 30.0]


class Pointwise(nn.Module):
    """Logits are a linear function of the pixel, resized like a model's; it keeps its inputs."""

    def __init__(self, classes=4):
        super().__init__()
        self.weight = torch.randn(classes, 3, generator=torch.Generator().manual_seed(1)) / 50
        self.seen = []

    def forward(self, batched_inputs):
        outputs = []
        for inputs in batched_inputs:
            image = inputs["image"]
            self.seen.append(image.clone())
            logits = torch.einsum("kc,chw->khw", self.weight, image.float())
            size = inputs["height"], inputs["width"]
            logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)
            outputs.append({"sem_seg": logits[0]})
        return outputs


class Place(nn.Module):
    """Logits depend on the place in the window: a mean over windows is not a single one's."""

    def forward(self, batched_inputs):
        (inputs,) = batched_inputs
        image = inputs["image"]
        assert image.shape[-2:] == (inputs["height"], inputs["width"])
        rows = torch.arange(image.shape[1], dtype=torch.float32)[:, None]
        columns = torch.arange(image.shape[2], dtype=torch.float32)
        return [{"sem_seg": torch.stack([image[0] + rows, image[1] - 2 * columns * rows])}]


def picture(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def resized(image, height, width):
    pixels = image.permute(1, 2, 0).numpy()
    pixels = RegionTransform(0, 0, *pixels.shape[:2], height, width).apply_image(pixels)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


# ---------------------------------------------------------------- scales and mirror images


@pytest.mark.parametrize("size", [(13, 17), (24, 30)])
def test_two_scales_and_flip_by_hand(size):
    original, (height, width) = picture(*size), size
    model = Pointwise()
    found = MultiScaleFlip(model, scales=(1.0, 1.5), flip=True, flip_pairs=[(1, 3)])(
        [{"image": original, "height": height, "width": width}]
    )[0]["sem_seg"]

    larger = resized(original, int(height * 1.5 + 0.5), int(width * 1.5 + 0.5))
    expected = torch.zeros(4, height, width)
    for image in (original, larger):
        logits = torch.einsum("kc,chw->khw", model.weight, image.float())
        mirrored = torch.einsum("kc,chw->khw", model.weight, image.float())[
            :, :, range(-1, -1 - image.shape[2], -1)
        ]
        for view, turned in ((logits, False), (mirrored, True)):
            view = F.interpolate(view[None], size=size, mode="bilinear", align_corners=False)[0]
            exponentials = view.exp()
            probabilities = exponentials / exponentials.sum(dim=0)
            for y, x, k in itertools.product(range(height), range(width), range(4)):
                source = {1: 3, 3: 1}.get(k, k) if turned else k
                column = width - 1 - x if turned else x
                expected[k, y, x] += probabilities[source, y, column] / 4
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(size))


def test_each_scale_comes_from_the_original_by_one_resize():
    original = picture(40, 60)
    test_size = resized(original, 20, 30)
    model = Pointwise()
    MultiScaleFlip(model, scales=(0.75, 1.0, 2.0), flip=True)(
        [{"image": test_size, "original_image": original, "height": 40, "width": 60}]
    )
    expected = []
    for image in (resized(original, 15, 23), test_size, original):
        expected += [image, image.flip(-1)]
    assert [image.shape for image in model.seen] == [image.shape for image in expected]
    assert all(torch.equal(a, b) for a, b in zip(model.seen, expected))


def test_left_and_right_change_places():
    """A model that knows left from right by the place: class 0 on the left half, 1 on the right."""

    class Halves(nn.Module):
        def forward(self, batched_inputs):
            width = batched_inputs[0]["image"].shape[2]
            right = (torch.arange(width) >= width // 2).float().expand(6, width)
            return [{"sem_seg": 50 * torch.stack([1 - right, right])}]

    inputs = [{"image": picture(6, 10), "height": 6, "width": 10}]
    exchanged = MultiScaleFlip(Halves(), scales=[1.0], flip_pairs=[(0, 1)])(inputs)[0]["sem_seg"]
    assert exchanged[0, :, :5].min() > 0.99 and exchanged[1, :, 5:].min() > 0.99
    kept = MultiScaleFlip(Halves(), scales=[1.0])(inputs)[0]["sem_seg"]
    torch.testing.assert_close(kept, torch.full_like(kept, 0.5))


def test_wrong_scales_are_refused():
    for scales in ((), (0.5, 0.0)):
        with pytest.raises(ValueError, match="TEST.AUG.SCALES"):
            MultiScaleFlip(Pointwise(), scales=scales)


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(
    "length, size, stride, expected",
    [
        (10, 4, 3, [0, 3, 6]),
        (10, 4, 4, [0, 4, 6]),
        (4, 4, 1, [0]),
        (5, 4, 4, [0, 1]),
        (2048, 1024, 341, [0, 341, 682, 1023, 1024]),
    ],
)
def test_window_starts(length, size, stride, expected):
    assert window_starts(length, size, stride) == expected


@pytest.mark.parametrize(
    "image_size, size, stride",
    [
        ((11, 17), (5, 7), (3, 4)),  # strides that do not divide
        ((12, 14), (4, 7), (4, 7)),  # no overlap
        ((9, 6), (5, 6), (1, 6)),
        ((4, 15), (6, 6), (2, 5)),  # lower than the window
        ((3, 5), (6, 8), (6, 8)),  # smaller in both directions
    ],
)
def test_windows_by_counting_pixels(image_size, size, stride):
    image, (height, width) = picture(*image_size), image_size
    window = SlidingWindow(Place(), size=size, stride=stride, pad_value=MEAN)
    found = window([{"image": image}])[0]["sem_seg"]

    tall, wide = max(height, size[0]), max(width, size[1])
    tops = sorted({min(top, tall - size[0]) for top in range(0, tall, stride[0])})
    lefts = sorted({min(left, wide - size[1]) for left in range(0, wide, stride[1])})
    expected = torch.zeros(2, height, width)
    for y, x in itertools.product(range(height), range(width)):
        values = []
        for top, left in itertools.product(tops, lefts):
            if top <= y < top + size[0] and left <= x < left + size[1]:
                row, column = y - top, x - left
                values.append(
                    (float(image[0, y, x]) + row, float(image[1, y, x]) - 2 * row * column)
                )
        assert values
        expected[:, y, x] = torch.tensor(values).mean(dim=0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "image_size, size, stride",
    [((11, 17), (5, 7), (3, 4)), ((12, 14), (4, 7), (4, 7)), ((4, 15), (6, 6), (2, 5))],
)
def test_the_mean_of_probabilities_by_counting_pixels(image_size, size, stride):
    class Calm(Place):  # else a softmax is 0 or 1
        def forward(self, batched_inputs):
            return [{"sem_seg": super().forward(batched_inputs)[0]["sem_seg"] / 80}]

    image, (height, width) = picture(*image_size), image_size
    options = {"size": size, "stride": stride, "pad_value": MEAN}
    window = SlidingWindow(Calm(), average="probabilities", **options)
    found = window([{"image": image}])[0]["sem_seg"].softmax(dim=0)

    padded = torch.tensor(MEAN).view(3, 1, 1).repeat(1, max(height, size[0]), max(width, size[1]))
    padded[:, :height, :width] = image
    tall, wide = padded.shape[1:]
    total, count = torch.zeros(2, tall, wide), torch.zeros(tall, wide)
    for top in sorted({min(top, tall - size[0]) for top in range(0, tall, stride[0])}):
        for left in sorted({min(left, wide - size[1]) for left in range(0, wide, stride[1])}):
            place = slice(top, top + size[0]), slice(left, left + size[1])
            inputs = {"image": padded[:, *place], "height": size[0], "width": size[1]}
            scores = Calm()([inputs])[0]["sem_seg"].exp()
            total[:, *place] += scores / scores.sum(dim=0)
            count[place] += 1
    expected = (total / count)[:, :height, :width]
    torch.testing.assert_close(found, expected)
    if stride != size:
        logits = SlidingWindow(Calm(), **options)([{"image": image}])[0]["sem_seg"]
        assert (logits.softmax(dim=0) - expected).abs().max() > 1e-3


def test_classes_without_any_probability_are_no_infinity():
    class Sure(Place):
        def forward(self, batched_inputs):
            (inputs,) = batched_inputs
            yes = torch.full((inputs["height"], inputs["width"]), 1000.0)
            return [{"sem_seg": torch.stack([yes, -yes])}]

    window = SlidingWindow(
        Sure(), size=(4, 4), stride=(2, 2), pad_value=MEAN, average="probabilities"
    )
    found = window([{"image": picture(6, 6)}])[0]["sem_seg"]
    assert torch.isfinite(found).all() and (found.argmax(dim=0) == 0).all()


def test_an_unknown_average_is_refused():
    options = {"size": (6, 8), "stride": (6, 8), "pad_value": MEAN}
    with pytest.raises(ValueError, match=r"AVERAGE is 'votes'; known are \['logits', 'probab"):
        SlidingWindow(Pointwise(), average="votes", **options)


def test_padding_is_the_mean_colour_below_and_to_the_right():
    model, image = Pointwise(), picture(3, 5)
    SlidingWindow(model, size=(6, 4), stride=(3, 2), pad_value=MEAN)([{"image": image}])
    assert all(seen.shape == (3, 6, 4) for seen in model.seen) and len(model.seen) == 2
    assert torch.equal(model.seen[0][:, :3], image[:, :, :4].float())
    assert torch.equal(model.seen[0][:, 3:], torch.tensor(MEAN).view(3, 1, 1).expand(3, 3, 4))


def test_scores_are_resized_to_the_output():
    image = picture(12, 16)
    inputs = [{"image": image, "height": 25, "width": 31}]
    found = SlidingWindow(Pointwise(), size=(6, 8), stride=(4, 4), pad_value=MEAN)(inputs)
    torch.testing.assert_close(found[0]["sem_seg"], Pointwise()(inputs)[0]["sem_seg"])


@pytest.mark.parametrize("stride", [(0, 4), (4, 9), (7, 4)])
def test_wrong_strides_are_refused(stride):
    with pytest.raises(ValueError, match="TEST.SLIDING.STRIDE"):
        SlidingWindow(Pointwise(), size=(6, 8), stride=stride, pad_value=MEAN)


def test_windows_at_each_scale():
    """Windows change nothing where the logits of a pixel depend on the pixel alone."""
    image = picture(21, 33)
    inputs = [{"image": image, "height": 21, "width": 33}]
    windows = SlidingWindow(Pointwise(), size=(10, 12), stride=(7, 5), pad_value=MEAN)
    scales = (0.75, 1.0, 1.25)
    found = MultiScaleFlip(windows, scales=scales)(inputs)[0]["sem_seg"]
    expected = MultiScaleFlip(Pointwise(), scales=scales)(inputs)[0]["sem_seg"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert {tuple(seen.shape) for seen in windows.model.seen} == {(3, 10, 12)}


# ---------------------------------------------------------------- real models, config


def detectron2_fpn():
    """A model of detectron2 without any part of ours."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    torch.manual_seed(0)
    return build_model(cfg)


def ours(cfg):
    cfg.MODEL.SEM_SEG_HEAD.TERMS = []
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.mark.parametrize("kind", ["ours", "detectron2"])
@torch.no_grad()
def test_real_models(kind, small_cfg):
    model = ours(small_cfg) if kind == "ours" else detectron2_fpn()
    model.eval()
    image = picture(48, 72)
    inputs = [{"image": image, "height": 50, "width": 75}]
    plain = model(inputs)[0]["sem_seg"]

    whole = SlidingWindow(model, size=(48, 72), stride=(48, 72), pad_value=MEAN)
    torch.testing.assert_close(
        whole(inputs)[0]["sem_seg"], model([inputs[0]])[0]["sem_seg"], atol=1e-4, rtol=1e-4
    )
    single = MultiScaleFlip(model, scales=[1.0], flip=False)(inputs)[0]["sem_seg"]
    torch.testing.assert_close(single, plain.softmax(dim=0))

    both = MultiScaleFlip(
        SlidingWindow(model, size=(32, 48), stride=(20, 30), pad_value=MEAN), scales=[0.5, 1.3]
    )
    scores = both(inputs)[0]["sem_seg"]
    assert scores.shape == plain.shape
    torch.testing.assert_close(scores.sum(dim=0), torch.ones(50, 75))
    assert not both.training and not both.model.training


def test_the_configs_keys(small_cfg):
    model = Pointwise(8)
    assert with_sliding_window(small_cfg, model) is model
    small_cfg.merge_from_list(
        ["TEST.SLIDING.ENABLED", True, "TEST.SLIDING.SIZE", (30, 40), "TEST.SLIDING.STRIDE", (9, 8)]
    )
    windows = with_sliding_window(small_cfg, model)
    assert (windows.size, windows.stride, windows.average) == ((30, 40), (9, 8), "logits")
    small_cfg.TEST.SLIDING.AVERAGE = "probabilities"
    assert with_sliding_window(small_cfg, model).average == "probabilities"
    assert windows.pad_value.flatten().tolist() == pytest.approx(small_cfg.MODEL.PIXEL_MEAN)
    small_cfg.merge_from_list(["TEST.AUG.SCALES", [0.5, 1], "TEST.AUG.FLIP", False])
    augmented = with_test_time_augmentation(small_cfg, windows, "shapes_sem_seg_val")
    assert (augmented.scales, augmented.flip, augmented.model) == ((0.5, 1), False, windows)
    assert augmented.flip_pairs == []
    small_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 20
    augmented = with_test_time_augmentation(small_cfg, windows, "lip_sem_seg_val")
    assert augmented.flip_pairs == [(14, 15), (16, 17), (18, 19)]  # arms, legs, shoes
