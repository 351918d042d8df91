"""Each detail in which a published backbone differs from timm's, against timm changed by hand."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from d2_pixcontrast.modeling import TimmBackbone
from d2_pixcontrast.modeling.backbone.variants import VARIANTS

# A network that each is for, and its strides.
NETWORKS = {
    "ceil_pool": ("resnet18", 32),
    "first_relu_off": ("hrnet_w18_small", 32),
    "plain_dilated_shortcuts": ("resnest14d", 8),
    "bilinear_positions": ("test_vit", 32),
}


def pair(variant, **options):
    """(timm's own, the variant) with the same weights, in evaluation."""
    name, stride = NETWORKS[variant]
    torch.manual_seed(0)
    plain = TimmBackbone(name, output_stride=stride, **options).eval()
    changed = TimmBackbone(name, output_stride=stride, variants=[variant], **options).eval()
    changed.load_state_dict(plain.state_dict())  # the names are timm's
    return plain, changed


def input_of(module, network, image):
    """What reaches a module in a forward."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    network(image)
    handle.remove()
    return seen[0]


def test_every_variant_is_tried_here():
    assert set(NETWORKS) == set(VARIANTS)


@torch.no_grad()
def test_ceil_pool_keeps_the_last_row_and_column():
    plain, changed = pair("ceil_pool")
    image = torch.randn(1, 3, 64, 96)
    found = changed(image)
    assert plain(image)["res2"].shape[-2:] == (16, 24)
    assert found["res1"].shape[-2:] == (32, 48)
    assert [found[f"res{i}"].shape[-2:] for i in (2, 3)] == [(17, 25), (9, 13)]
    plain.body.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
    for name, feature in plain(image).items():
        assert torch.equal(found[name], feature)
    odd = torch.randn(1, 3, 61, 61)  # the stem's map has 31 rows: nothing is left over
    assert changed(odd)["res2"].shape == pair("ceil_pool")[0](odd)["res2"].shape == (1, 64, 16, 16)


@torch.no_grad()
def test_first_relu_off_leaves_out_the_first_of_the_stem():
    plain, changed = pair("first_relu_off")
    image = torch.randn(1, 3, 64, 64)
    body = changed.body
    stem = body.bn1(body.conv1(image))
    assert (stem < 0).any()
    assert torch.equal(input_of(body.conv2, changed, image), stem)
    assert torch.equal(input_of(plain.body.conv2, plain, image), stem.relu())
    # The second one is still there.
    first = input_of(body.layer1[0].conv1, changed, image)
    assert torch.equal(first, body.bn2(body.conv2(stem)).relu())
    assert (changed(image)["res2"] - plain(image)["res2"]).abs().max() > 1e-3


@torch.no_grad()
def test_plain_dilated_shortcuts_pool_only_where_they_halve():
    plain, changed = pair("plain_dilated_shortcuts")
    image = torch.randn(1, 3, 64, 64)
    for stage, dilated in (("layer2", False), ("layer3", True), ("layer4", True)):
        for network in (plain, changed):
            block = network.body.get_submodule(stage)[0]
            x = input_of(block.downsample, network, image)
            _, conv, norm = block.downsample
            pooled = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
            expected = norm(conv(x if dilated else pooled))
            equal = torch.equal(block.downsample(x), expected)
            assert equal == (network is changed or not dilated), stage
    assert (changed(image)["res5"] - plain(image)["res5"]).abs().max() > 1e-3
    torch.testing.assert_close(changed(image)["res3"], plain(image)["res3"])


@torch.no_grad()
def test_plain_dilated_shortcuts_without_dilation_change_nothing():
    torch.manual_seed(0)
    plain = TimmBackbone("resnest14d").eval()
    changed = TimmBackbone("resnest14d", variants=["plain_dilated_shortcuts"]).eval()
    changed.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(plain(image)["res5"], changed(image)["res5"])


@torch.no_grad()
def test_bilinear_positions_by_hand():
    """A network that stores the embeddings for these very images, interpolated beforehand."""
    plain, changed = pair("bilinear_positions", out_features=["block1", "block5"])
    stored = changed.body.model.pos_embed
    token, grid = stored[:, :1], stored[:, 1:].view(1, 10, 10, -1)
    rows = F.interpolate(grid.permute(0, 3, 1, 2), (6, 13), mode="bilinear", align_corners=False)
    size = (6 * 16, 13 * 16)
    expected = timm.create_model(
        "test_vit", features_only=True, out_indices=(1, 5), img_size=size
    ).eval()
    state = changed.body.state_dict()
    state["model.pos_embed"] = torch.cat([token, rows.flatten(2).transpose(1, 2)], dim=1)
    expected.load_state_dict(state)
    image = torch.randn(2, 3, *size)
    found = changed(image)
    for ours, theirs in zip(found.values(), expected(image), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (found["block5"] - plain(image)["block5"]).abs().max() > 1e-3


@torch.no_grad()
def test_bilinear_positions_at_the_stored_grid_change_nothing():
    plain, changed = pair("bilinear_positions")
    image = torch.randn(1, 3, 160, 160)
    for name, feature in plain(image).items():
        torch.testing.assert_close(changed(image)[name], feature)


@pytest.mark.parametrize(
    "variant, other, stride",
    [
        ("ceil_pool", "mobilenetv2_035", 16),
        ("ceil_pool", "hrnet_w18_small", 32),
        ("first_relu_off", "test_vit", 32),
        ("first_relu_off", "mobilenetv2_035", 32),
        ("plain_dilated_shortcuts", "hrnet_w18_small", 32),
        ("plain_dilated_shortcuts", "resnet50c", 8),
        ("bilinear_positions", "resnet18", 32),
        ("bilinear_positions", "swin_tiny_patch4_window7_224", 32),
    ],
)
def test_other_networks_are_refused(variant, other, stride):
    message = rf"VARIANTS has '{variant}', which MODEL.TIMM.NAME {other} has no part for"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TimmBackbone(other, output_stride=stride, variants=[variant])


@pytest.mark.parametrize("other", ["resnet18", "resnest14d"])
def test_first_relu_off_is_for_hrnet_alone(other):
    with torch.device("meta"), pytest.raises(ValueError, match="VARIANTS has 'first_relu_off'"):
        TimmBackbone(other, variants=["first_relu_off"])


def test_unknown_variants_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"VARIANTS has 'floor_pool'; known are \['ceil_pool', "):
        TimmBackbone("resnet18", variants=["ceil_pool", "floor_pool"])
