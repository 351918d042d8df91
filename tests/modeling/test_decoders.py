import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

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


def randomised(module):
    """In evaluation, with norms that do something."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(part.weight, 1, 0.2)
            torch.nn.init.normal_(part.bias, 0, 0.2)
    return module.eval()


def resized(x, size, align_corners):
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize("align_corners", [True, False])
@torch.no_grad()
def test_corners_are_aligned_where_features_are_joined(small_cfg, align_corners):
    small_cfg.MODEL.SEM_SEG_HEAD.ALIGN_CORNERS = align_corners
    inputs = features(61, 83)
    grid = inputs["res2"].shape[-2:]
    maps = [inputs["res2"], *(resized(inputs[n], grid, align_corners) for n in ("res3", "res5"))]
    joined = torch.cat(maps, dim=1)
    fcn = randomised(decoder_of(small_cfg, "FCNDecoder"))
    torch.testing.assert_close(fcn(inputs).features, fcn.conv(joined))
    ocr = randomised(decoder_of(small_cfg, "OCRDecoder"))
    torch.testing.assert_close(ocr(inputs).aux_logits, ocr.region_head(joined))
    seen = []
    ocr.pixels.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ocr(inputs)
    torch.testing.assert_close(seen[0], joined)


def layer(x, conv, **options):
    """Convolution and norm of a detectron2 Conv2d, from its tensors."""
    x = F.conv2d(x, conv.weight, conv.bias, **options)
    if conv.norm is None:
        return x
    norm = conv.norm
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("pool_norm", [False, True])
@torch.no_grad()
def test_deeplabs_pyramid_by_hand(small_cfg, pool_norm, kernel, refine):
    head = small_cfg.MODEL.SEM_SEG_HEAD
    assert (head.ASPP_POOL_NORM, head.ASPP_PROJECT_KERNEL, head.ASPP_REFINE) == (False, 1, False)
    head.ASPP_POOL_NORM, head.ASPP_PROJECT_KERNEL, head.ASPP_REFINE = pool_norm, kernel, refine
    head.ASPP_DILATIONS = [2, 3, 5]
    decoder = randomised(decoder_of(small_cfg, "DeepLabV3Decoder"))
    x = features(96, 128)["res5"]
    first, *atrous, pooling = decoder.aspp.convs
    assert (pooling[1].norm is None) == (not pool_norm)
    assert (pooling[1].bias is None) == pool_norm
    branches = [layer(x, first).relu()]
    for conv, dilation in zip(atrous, (2, 3, 5), strict=True):
        branches.append(layer(x, conv, padding=dilation, dilation=dilation).relu())
    mean = x.flatten(2).mean(dim=2).view(2, 20, 1, 1)
    branches.append(layer(mean, pooling[1]).relu().expand_as(branches[0]))
    expected = layer(torch.cat(branches, dim=1), decoder.aspp.project, padding=kernel // 2).relu()
    assert decoder.aspp.project.weight.shape[2:] == (kernel, kernel)
    if refine:
        expected = layer(expected, decoder.refine, padding=1)
        assert (expected < 0).any()  # no ReLU behind it
    found = decoder({"res5": x})
    torch.testing.assert_close(found.features, expected, atol=1e-5, rtol=1e-4)
    assert decoder.out_channels == expected.shape[1]


def test_the_pyramid_of_deeplabv3plus_takes_the_same_keys(small_cfg):
    head = small_cfg.MODEL.SEM_SEG_HEAD
    plain = decoder_of(small_cfg, "DeepLabV3PlusDecoder").state_dict()
    head.ASPP_POOL_NORM, head.ASPP_PROJECT_KERNEL = True, 3
    changed = decoder_of(small_cfg, "DeepLabV3PlusDecoder").state_dict()
    aspp = "decoder.res5.project_conv"
    assert plain[f"{aspp}.project.weight"].shape == (32, 160, 1, 1)
    assert changed[f"{aspp}.project.weight"].shape == (32, 160, 3, 3)
    norm = {f"{aspp}.convs.4.1.norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")}
    assert norm <= set(changed) - set(plain)
    assert set(plain) - set(changed) == {f"{aspp}.convs.4.1.bias"}


@pytest.mark.parametrize("kernel", [1, 3])
def test_ocrs_region_kernel(small_cfg, kernel):
    small_cfg.MODEL.SEM_SEG_HEAD.OCR.REGION_KERNEL = kernel
    decoder = decoder_of(small_cfg, "OCRDecoder")
    assert decoder.region_head[0].weight.shape == (40, 40, kernel, kernel)
    inputs = features(32, 48)
    assert decoder(inputs).aux_logits.shape[-2:] == inputs["res2"].shape[-2:]


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
