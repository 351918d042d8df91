import pytest
import torch
from detectron2.layers import ShapeSpec

from d2_pixcontrast.modeling import DECODER_REGISTRY
from d2_pixcontrast.modeling.decoder import build_decoder

SHAPES = {
    "res2": ShapeSpec(channels=8, stride=4),
    "res3": ShapeSpec(channels=12, stride=8),
    "res5": ShapeSpec(channels=20, stride=16),
}
IN_FEATURES = {
    "DeepLabV3Decoder": ["res5"],
    "DeepLabV3PlusDecoder": ["res2", "res5"],
    "FCNDecoder": ["res2", "res3", "res5"],
    "OCRDecoder": ["res2", "res3", "res5"],
    "PSPDecoder": ["res5"],
    "UPerDecoder": ["res2", "res3", "res5"],
}


def features(height, width):
    return {
        name: torch.randn(2, s.channels, -(-height // s.stride), -(-width // s.stride))
        for name, s in SHAPES.items()
    }


def decoder_of(cfg, name):
    cfg.MODEL.SEM_SEG_HEAD.DECODER = name
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = IN_FEATURES[name]
    cfg.MODEL.SEM_SEG_HEAD.PSP.CHANNELS = cfg.MODEL.SEM_SEG_HEAD.UPER.CHANNELS = 16
    return build_decoder(cfg, SHAPES)


def test_every_registered_decoder_is_tried_here():
    assert set(IN_FEATURES) == {name for name, _ in DECODER_REGISTRY}


@pytest.mark.parametrize("name", sorted(IN_FEATURES))
@pytest.mark.parametrize("size", [(96, 96), (80, 176), (16, 16)])
def test_shape_stride_and_gradients_at_any_size(small_cfg, name, size):
    decoder = decoder_of(small_cfg, name)
    inputs = features(*size)
    out, aux_logits = decoder(inputs)
    finest = min((SHAPES[f] for f in IN_FEATURES[name]), key=lambda s: s.stride)
    assert decoder.out_stride == finest.stride
    assert out.shape == (
        2,
        decoder.out_channels,
        size[0] // finest.stride,
        size[1] // finest.stride,
    )
    assert (aux_logits is not None) == getattr(decoder, "predicts_aux", False)
    loss = out.square().mean()
    if aux_logits is not None:
        assert aux_logits.shape[:2] == (2, small_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        loss = loss + aux_logits.square().mean()
    loss.backward()
    assert all(p.grad is not None for p in decoder.parameters())


@pytest.mark.parametrize("name", sorted(IN_FEATURES))
def test_evaluation_depends_on_nothing_but_the_input(small_cfg, name):
    decoder = decoder_of(small_cfg, name).eval()
    inputs = features(48, 64)
    assert torch.equal(decoder(inputs).features, decoder(inputs).features)


def test_fcn_reads_all_features(small_cfg):
    decoder = decoder_of(small_cfg, "FCNDecoder")
    assert decoder.out_channels == 40  # as many as the concatenation
    inputs = {k: v.requires_grad_() for k, v in features(32, 32).items()}
    decoder(inputs).features.sum().backward()
    assert all(v.grad.abs().sum() > 0 for v in inputs.values())


def test_errors(small_cfg):
    head = small_cfg.MODEL.SEM_SEG_HEAD
    head.DECODER = "DeepLabV3PlusHead"
    with pytest.raises(ValueError, match=r"DECODER is 'DeepLabV3PlusHead'; did you mean DeepLabV3"):
        build_decoder(small_cfg, SHAPES)
    for one_feature in ("DeepLabV3Decoder", "PSPDecoder"):
        head.DECODER, head.IN_FEATURES = one_feature, ["res2", "res5"]
        with pytest.raises(ValueError, match=f"{one_feature} reads one feature"):
            build_decoder(small_cfg, SHAPES)
    head.DECODER, head.IN_FEATURES = "UPerDecoder", ["res5"]
    with pytest.raises(ValueError, match=r"two features or more; .* is \['res5'\]"):
        build_decoder(small_cfg, SHAPES)
    head.IN_FEATURES = ["p2"]
    with pytest.raises(ValueError, match=r"IN_FEATURES is \['p2'\]; the backbone gives \['res2'"):
        build_decoder(small_cfg, SHAPES)
    head.DECODER, head.IN_FEATURES = "DeepLabV3PlusDecoder", ["res2", "res5"]
    head.PROJECT_CHANNELS = [16, 16]
    with pytest.raises(ValueError, match=r"PROJECT_CHANNELS is \[16, 16\]; 1 numbers"):
        build_decoder(small_cfg, SHAPES)
