"""Pyramid pooling and UPerNet against naive loops and torch's own pooling."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from d2_pixcontrast.modeling.decoder import build_decoder
from d2_pixcontrast.modeling.decoder.psp import PyramidPooling, pool_to_bins

STAGES = {
    f"res{i + 2}": ShapeSpec(channels=256 * 2**i, stride=stride)
    for i, stride in enumerate((4, 8, 16, 32))
}


def small_uper(cfg):
    head = cfg.MODEL.SEM_SEG_HEAD
    head.DECODER, head.IN_FEATURES = "UPerDecoder", ["res5", "res2", "res3"]
    head.UPER.CHANNELS, head.UPER.POOL_SCALES = 6, (1, 2)
    shapes = {k: ShapeSpec(channels=4 + i, stride=2 ** int(k[3])) for i, k in enumerate(STAGES)}
    return build_decoder(cfg, shapes).double().eval()


def naive_bins(x, bins):
    """Means over the cells that overlap each bin, one number at a time."""
    batch, channels, height, width = x.shape
    out = torch.zeros(batch, channels, bins, bins, dtype=x.dtype)
    for i in range(bins):
        rows = range(math.floor(i * height / bins), math.ceil((i + 1) * height / bins))
        for j in range(bins):
            columns = range(math.floor(j * width / bins), math.ceil((j + 1) * width / bins))
            cells = [x[:, :, y, x_] for y in rows for x_ in columns]
            out[:, :, i, j] = sum(cells) / len(cells)
    return out


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (6, 12), (13, 17), (2, 31)])
def test_pooling_is_adaptive_average_pooling(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    scales = (1, 2, 3, 6)
    ours = pool_to_bins(x, scales)
    for out, scale in zip(ours, scales, strict=True):
        torch.testing.assert_close(out, F.adaptive_avg_pool2d(x, scale))
        torch.testing.assert_close(out, naive_bins(x, scale))
    weights = [torch.randn_like(out) for out in ours]
    (gradient,) = torch.autograd.grad(sum((o * w).sum() for o, w in zip(ours, weights)), x)
    theirs = sum((F.adaptive_avg_pool2d(x, s) * w).sum() for s, w in zip(scales, weights))
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs, x)[0])


@torch.no_grad()
def test_half_precision_keeps_its_digits():
    x = torch.full((1, 2, 127, 129), 3.1, dtype=torch.bfloat16)
    for out in pool_to_bins(x, (1, 6)):
        torch.testing.assert_close(out, torch.full_like(out, 3.1), rtol=0.01, atol=0)


@torch.no_grad()
def test_pyramid_is_the_map_beside_its_means():
    pyramid = PyramidPooling(5, 4, (1, 3)).double().eval()
    x = torch.randn(2, 5, 7, 8).double()
    parts = [x]
    for conv, scale in zip(pyramid.reduce, (1, 3), strict=True):
        pooled = conv(naive_bins(x, scale))
        parts.append(F.interpolate(pooled, (7, 8), mode="bilinear", align_corners=False))
    torch.testing.assert_close(pyramid(x), pyramid.fuse(torch.cat(parts, dim=1)))


@torch.no_grad()
def test_uper_equals_its_drawing(small_cfg):
    """Figure 4 of the paper, one level after the other."""
    decoder = small_uper(small_cfg)
    inputs = {
        "res2": torch.randn(2, 4, 9, 12).double(),
        "res3": torch.randn(2, 5, 5, 6).double(),
        "res5": torch.randn(2, 7, 2, 2).double(),
    }

    def to(x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    top = decoder.pyramid(inputs["res5"])
    middle = decoder.laterals[1](inputs["res3"]) + to(top, (5, 6))
    bottom = decoder.laterals[0](inputs["res2"]) + to(middle, (9, 12))
    levels = [decoder.smooth[0](bottom), to(decoder.smooth[1](middle), (9, 12)), to(top, (9, 12))]
    expected = decoder.fuse(torch.cat(levels, dim=1))
    assert expected.std() > 0.01
    torch.testing.assert_close(decoder(inputs).features, expected)


@pytest.mark.parametrize(
    "decoder, in_features, weights",
    [
        (
            "PSPDecoder",
            ["res5"],
            {"pyramid.reduce.3": (512, 2048, 1, 1), "pyramid.fuse": (512, 4096, 3, 3)},
        ),
        (
            "UPerDecoder",
            list(STAGES),
            {
                "pyramid.reduce.0": (512, 2048, 1, 1),
                "pyramid.fuse": (512, 4096, 3, 3),
                "laterals.0": (512, 256, 1, 1),
                "laterals.2": (512, 1024, 1, 1),
                "smooth.0": (512, 512, 3, 3),
                "fuse": (512, 2048, 3, 3),
            },
        ),
    ],
)
def test_published_sizes(small_cfg, decoder, in_features, weights):
    """mmsegmentation's psp_head and uper_head: 512 channels, dropout .1, bins 1, 2, 3, 6."""
    head = small_cfg.MODEL.SEM_SEG_HEAD
    head.DECODER, head.IN_FEATURES = decoder, in_features
    with torch.device("meta"):
        module = build_decoder(small_cfg, STAGES)
    found = {k: tuple(v.shape) for k, v in module.named_parameters()}
    assert {k: found[f"{k}.weight"] for k in weights} == weights
    assert len(module.pyramid.reduce) == 4 and module.dropout.p == 0.1
    assert module.out_channels == 512


@pytest.mark.parametrize("decoder", ["PSPDecoder", "UPerDecoder"])
@torch.no_grad()
def test_exported_program_takes_any_size(small_cfg, decoder):
    """Nothing depends on the traced size, and no pooling is left that ONNX has not."""
    head = small_cfg.MODEL.SEM_SEG_HEAD
    shapes = {"res4": ShapeSpec(channels=4, stride=8), "res5": ShapeSpec(channels=6, stride=8)}
    if decoder == "PSPDecoder":
        del shapes["res4"]
    head.DECODER, head.IN_FEATURES = decoder, list(shapes)
    head.PSP.CHANNELS = head.UPER.CHANNELS = 8
    module = build_decoder(small_cfg, shapes).eval()

    def inputs(height, width):
        return {k: torch.randn(1, s.channels, height, width) for k, s in shapes.items()}

    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    sizes = {name: {2: height, 3: width} for name in shapes}
    program = torch.export.export(module, (inputs(12, 18),), dynamic_shapes=(sizes,))
    assert "adaptive" not in program.graph_module.code
    other = inputs(13, 7)
    torch.testing.assert_close(program.module()(other), module(other))
