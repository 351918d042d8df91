"""OCR against naive loops over pixels and regions, and in a whole model."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch.nn import functional as F

from d2_pixcontrast import inference_config
from d2_pixcontrast.modeling.decoder import build_decoder
from d2_pixcontrast.modeling.decoder.ocr import ObjectAttention, gather_regions

SHAPES = {
    "res2": ShapeSpec(channels=8, stride=4),
    "res4": ShapeSpec(channels=12, stride=8),
    "res5": ShapeSpec(channels=20, stride=8),
}


def ocr_cfg(cfg, in_features, region_feature=""):
    head = cfg.MODEL.SEM_SEG_HEAD
    head.DECODER, head.IN_FEATURES = "OCRDecoder", in_features
    head.OCR.CHANNELS, head.OCR.KEY_CHANNELS = 16, 8
    head.OCR.REGION_FEATURE = region_feature
    return cfg


def features(height=32, width=48, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(2, s.channels, height // s.stride, width // s.stride, generator=g)
        for name, s in SHAPES.items()
    }


def naive_regions(pixels, logits):
    """Eq. 4, one number at a time."""
    batch, channels, height, width = pixels.shape
    classes = logits.shape[1]
    cells = [(y, x) for y in range(height) for x in range(width)]
    regions = torch.zeros(batch, channels, classes, dtype=pixels.dtype)
    for b in range(batch):
        for k in range(classes):
            weights = [math.exp(logits[b, k, y, x]) for y, x in cells]
            for weight, (y, x) in zip(weights, cells):
                regions[b, :, k] += weight / sum(weights) * pixels[b, :, y, x]
    return regions


def naive_attention(query, key, value):
    """Eq. 3 and 5 between the embeddings, one pixel at a time."""
    context = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for y in range(query.shape[2]):
            for x in range(query.shape[3]):
                scores = [
                    float(query[b, :, y, x] @ key[b, :, k]) / math.sqrt(query.shape[1])
                    for k in range(key.shape[2])
                ]
                total = sum(math.exp(s) for s in scores)
                for k, score in enumerate(scores):
                    context[b, :, y, x] += math.exp(score) / total * value[b, :, k]
    return context


@torch.no_grad()
def test_regions_equal_the_naive_mean():
    pixels, logits = torch.randn(2, 5, 3, 4).double(), 2 * torch.randn(2, 3, 3, 4).double()
    torch.testing.assert_close(gather_regions(pixels, logits), naive_regions(pixels, logits))
    coarse = torch.randn(2, 3, 2, 2).double()
    resized = F.interpolate(coarse, (3, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(gather_regions(pixels, coarse), naive_regions(pixels, resized))


@torch.no_grad()
def test_attention_equals_the_naive_sum():
    attention = ObjectAttention(6, 4, "BN").double().eval()
    pixels, regions = torch.randn(2, 6, 3, 5).double(), torch.randn(2, 6, 7).double()
    query = attention.query(pixels)
    key = attention.key(regions[..., None])[..., 0]
    value = attention.value(regions[..., None])[..., 0]
    expected = attention.out(naive_attention(query, key, value))
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(attention(pixels, regions), expected)


@torch.no_grad()
def test_decoder_equals_its_equations(small_cfg):
    decoder = build_decoder(ocr_cfg(small_cfg, ["res2", "res5"]), SHAPES).double().eval()
    inputs = {k: v.double() for k, v in features(16, 24).items()}
    out, aux_logits = decoder(inputs)
    upsampled = F.interpolate(inputs["res5"], (4, 6), mode="bilinear", align_corners=False)
    joined = torch.cat([inputs["res2"], upsampled], dim=1)
    torch.testing.assert_close(aux_logits, decoder.region_head(joined))
    pixels = decoder.pixels(joined)
    context = decoder.attention(pixels, naive_regions(pixels, aux_logits))
    torch.testing.assert_close(out, decoder.fuse(torch.cat([context, pixels], dim=1)))


def test_published_sizes(small_cfg):
    """HRNet-W48 + OCR: 720 -> 512 channels, keys of 256, a 720-channel auxiliary head."""
    streams = {f"res{i + 2}": ShapeSpec(channels=48 * 2**i, stride=4 * 2**i) for i in range(4)}
    head = small_cfg.MODEL.SEM_SEG_HEAD
    head.DECODER, head.IN_FEATURES = "OCRDecoder", list(streams)
    with torch.device("meta"):
        decoder = build_decoder(small_cfg, streams)
        out, aux_logits = decoder(
            {
                k: torch.randn(2, s.channels, 64 // s.stride, 64 // s.stride)
                for k, s in streams.items()
            }
        )
    weights = {k: tuple(v.shape) for k, v in decoder.named_parameters()}
    assert weights["pixels.weight"] == (512, 720, 3, 3)
    assert weights["region_head.0.weight"] == (720, 720, 1, 1)
    assert weights["attention.key.1.weight"] == (256, 256, 1, 1)
    assert weights["fuse.weight"] == (512, 1024, 1, 1)
    assert decoder.dropout.p == 0.05
    assert out.shape == (2, 512, 16, 16) and aux_logits.shape == (2, 8, 16, 16)


@pytest.mark.parametrize("in_features, region", [(["res5"], ""), (["res4", "res5"], "res4")])
def test_one_feature_with_regions_from_it_or_the_stage_before(small_cfg, in_features, region):
    decoder = build_decoder(ocr_cfg(small_cfg, in_features, region), SHAPES).train()
    assert decoder.in_features == ["res5"] and decoder.out_stride == 8
    assert decoder.region_head[0].in_channels == (12 if region else 20)
    out, aux_logits = decoder(features())
    assert out.shape == (2, 16, 4, 6) and aux_logits.shape == (2, 8, 4, 6)
    (out.square().mean() + aux_logits.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    assert all(p.grad.any() for n, p in decoder.named_parameters() if n.endswith("weight"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_regions_of_large_maps_survive_autocast(dtype):
    """A pixel's weight is 1 / 60000 here, of which float16 and bfloat16 keep three digits."""
    pixels, logits = torch.full((1, 2, 200, 300), 3.1), torch.zeros(1, 4, 200, 300)
    with torch.autocast("cpu", dtype=dtype):
        regions = gather_regions(pixels, logits)
        assert gather_regions(pixels.to(dtype), logits.to(dtype)).dtype == dtype
    torch.testing.assert_close(regions, torch.full((1, 2, 4), 3.1), rtol=3e-4, atol=0)


def whole_model_cfg(cfg):
    return ocr_cfg(cfg, ["res2", "res5"])


def batch():
    g = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(256, (3, 64, 96), generator=g).float(),
            "sem_seg": torch.randint(8, (64, 96), generator=g),
            "height": 64,
            "width": 96,
        }
        for _ in range(2)
    ]


def test_auxiliary_loss_is_weighted_and_trains_every_parameter(small_cfg):
    torch.manual_seed(0)
    model = build_model(whole_model_cfg(small_cfg)).train()
    head = model.sem_seg_head
    seen = []
    head.decoder.register_forward_hook(lambda _, args, output: seen.append(output.aux_logits))
    losses = model(batch())
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_aux", "loss_pixel_contrast"}
    labels = torch.stack([x["sem_seg"] for x in batch()])
    torch.testing.assert_close(losses["loss_sem_seg_aux"], 0.4 * head.loss(seen[0], labels))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_evaluation_is_that_of_the_plain_model(small_cfg):
    """The regions are part of the network at inference; only the terms are not."""
    trained = build_model(whole_model_cfg(small_cfg)).eval()
    plain = build_model(inference_config(small_cfg)).eval()
    assert any("region_head" in key for key in plain.state_dict())
    state = trained.state_dict()
    plain.load_state_dict({k: state[k] for k in plain.state_dict()})
    with torch.no_grad():
        for a, b in zip(trained(batch()), plain(batch()), strict=True):
            assert a["sem_seg"].shape == (8, 64, 96)
            assert torch.equal(a["sem_seg"], b["sem_seg"])


def test_no_matrix_of_pixels_by_pixels(small_cfg):
    """Nothing in the graph has hw x hw numbers, or a tenth of it."""
    decoder = build_decoder(ocr_cfg(small_cfg, ["res2", "res5"]), SHAPES)
    inputs = features(128, 128)
    largest = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: largest.append(t.numel()) or t, lambda t: t
    )
    with hooks:
        decoder(inputs)
    pixels = 2 * 32 * 32
    assert max(largest) < pixels * 32 * 32 / 10


def test_errors(small_cfg):
    whole_model_cfg(small_cfg).MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES = ["res5"]
    with pytest.raises(ValueError, match=r"AUX.IN_FEATURES is \['res5'\], but OCRDecoder has"):
        build_model(small_cfg)
    for in_features, region in [(["res5"], "res5"), (["res2", "res5"], "res3")]:
        with pytest.raises(ValueError, match=rf"REGION_FEATURE is '{region}'; .*\['res"):
            build_decoder(ocr_cfg(small_cfg, in_features, region), SHAPES)
