"""How HRNet's branches meet: against timm itself, and against sums written out by hand."""

import types

import pytest
import timm
import torch
from timm.models.hrnet import HighResolutionModule
from torch.nn import functional as F

from d2_pixcontrast.modeling import TimmBackbone

NAME = "hrnet_w18_small"
LEVELS = ["res2", "res3", "res4", "res5"]


def backbone_of(fusion, **options):
    torch.manual_seed(0)
    options = {"out_features": LEVELS, "hrnet_fusion": fusion, **options}
    backbone = TimmBackbone(NAME, **options).eval()
    for module in backbone.modules():  # norms that do something
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return backbone


def timms_network(backbone):
    """timm's own network with the same weights."""
    network = timm.create_model(
        NAME, features_only=True, feature_location="", out_indices=backbone.out_indices
    )
    network.load_state_dict(backbone.body.state_dict())  # the names are timm's
    return network.eval()


def two_steps(x, size, factor):
    """By the power of two between the strides, then to the finer branch's own size."""
    doubled = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    return F.interpolate(doubled, size, mode="bilinear", align_corners=False)


def aligned(x, size, factor):
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def fuse_by_hand(network, resize):
    """Let timm's modules add up their branches as a plain double loop."""

    def forward(module, x):
        x = [branch(part) for branch, part in zip(module.branches, x)]
        outputs = []
        for i in range(len(module.fuse_layers)):
            parts = []
            for j in range(len(x)):
                if j == i:
                    parts.append(x[j])
                elif j < i:
                    parts.append(module.fuse_layers[i][j](x[j]))
                else:
                    conv, norm, _ = module.fuse_layers[i][j]
                    parts.append(resize(norm(conv(x[j])), x[i].shape[-2:], 2 ** (j - i)))
            outputs.append(torch.stack(parts).sum(dim=0).relu())
        return outputs

    for module in network.modules():
        if isinstance(module, HighResolutionModule) and module.num_branches > 1:
            module.forward = types.MethodType(forward, module)


@torch.no_grad()
def test_nearest_is_timms_own_network():
    backbone = backbone_of("nearest")
    expected = timms_network(backbone)
    image = torch.randn(2, 3, 64, 96)
    features = backbone(image)
    assert list(features) == LEVELS
    for found, wanted in zip(features.values(), expected(image), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("fusion, resize", [("bilinear", two_steps), ("bilinear_aligned", aligned)])
@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
@torch.no_grad()
def test_branches_are_interpolated_as_said(fusion, resize, size):
    backbone = backbone_of(fusion, size_divisibility=1)
    assert backbone.size_divisibility == 1
    network = timms_network(backbone)
    image = torch.randn(1, 3, *size)
    found = list(backbone(image).values())
    assert [f.shape[-2:] for f in found] == [
        (-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)
    ]
    if size == (64, 96):  # where timm's own fusion works, it is another one
        assert (found[0] - network(image)[0]).abs().max() > 0.01
    fuse_by_hand(network, resize)
    for ours, theirs in zip(found, network(image), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_two_steps_are_not_one():
    """Nine rows become 18 and then 17; that the test above tells the two apart."""
    backbone = backbone_of("bilinear", size_divisibility=1)
    network, image = timms_network(backbone), torch.randn(1, 3, 61, 83)
    fuse_by_hand(
        network,
        lambda x, size, _: F.interpolate(x, size, mode="bilinear", align_corners=False),
    )
    assert (backbone(image)["res2"] - network(image)[0]).abs().max() > 1e-3


def test_every_parameter_of_the_fused_network_is_trained():
    backbone = backbone_of("bilinear", size_divisibility=1).train()
    sum(f.square().mean() for f in backbone(torch.randn(2, 3, 61, 83)).values()).backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


def test_other_networks_and_names_are_refused():
    with pytest.raises(ValueError, match=r"HRNET_FUSION is 'bilinear', but .*NAME is no HRNet"):
        TimmBackbone("resnet18", hrnet_fusion="bilinear")
    with pytest.raises(ValueError, match=r"HRNET_FUSION is 'cubic'; known are \['nearest', 'bili"):
        TimmBackbone(NAME, hrnet_fusion="cubic")
    with torch.device("meta"):
        TimmBackbone("resnet18", hrnet_fusion="nearest")
