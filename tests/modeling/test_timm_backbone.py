import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from d2_pixcontrast.engine.weights import load_timm_file, load_timm_weights
from d2_pixcontrast.modeling import TimmBackbone


@pytest.mark.parametrize(
    "name, output_stride, channels, strides",
    [
        ("mobilenetv2_035", 32, [8, 8, 16, 32, 112], [2, 4, 8, 16, 32]),
        ("mobilenetv2_100", 16, [16, 24, 32, 96, 320], [2, 4, 8, 16, 16]),
        ("resnet18", 8, [64, 64, 128, 256, 512], [2, 4, 8, 8, 8]),
    ],
)
def test_names_shapes_and_strides(name, output_stride, channels, strides):
    backbone = TimmBackbone(name, output_stride=output_stride)
    shapes = backbone.output_shape()
    assert list(shapes) == ["res1", "res2", "res3", "res4", "res5"]
    assert [s.channels for s in shapes.values()] == channels
    assert [s.stride for s in shapes.values()] == strides
    size = 2 * backbone.size_divisibility
    for key, feature in backbone(torch.zeros(1, 3, size, 3 * size)).items():
        stride = shapes[key].stride
        assert feature.shape == (1, shapes[key].channels, size // stride, 3 * size // stride)


def test_hrnet_gives_its_four_branches():
    with torch.device("meta"):
        backbone = TimmBackbone("hrnet_w48", out_features=["res2", "res3", "res4", "res5"])
        features = backbone(torch.zeros(1, 3, 64, 128))
    assert [f.shape[1] for f in features.values()] == [48, 96, 192, 384]
    assert [f.shape[2] for f in features.values()] == [16, 8, 4, 2]
    assert [s.stride for s in backbone.output_shape().values()] == [4, 8, 16, 32]


@pytest.mark.parametrize(
    "name, kwargs, shapes",
    [
        (
            "swin_tiny_patch4_window7_224",
            {},
            {"res2": (96, 4), "res3": (192, 8), "res4": (384, 16), "res5": (768, 32)},
        ),
        ("swin_tiny_patch4_window7_224", {"out_features": ["res3"]}, {"res3": (192, 8)}),
        ("test_vit", {}, {f"block{i}": (64, 16) for i in range(6)}),
        (
            "test_vit",
            {"out_features": ["block4", "block1"]},
            {"block1": (64, 16), "block4": (64, 16)},
        ),
    ],
)
def test_transformers_take_images_of_any_size(name, kwargs, shapes):
    backbone = TimmBackbone(name, out_norm="LN", drop_path_rate=0.2, **kwargs)
    assert {k: (s.channels, s.stride) for k, s in backbone.output_shape().items()} == shapes
    divisor = backbone.size_divisibility
    assert divisor == max(stride for _, stride in shapes.values())
    height, width = 3 * divisor, 5 * divisor  # not what it was pretrained at, nor whole windows
    features = backbone(torch.randn(2, 3, height, width))
    for key, (channels, stride) in shapes.items():
        assert features[key].shape == (2, channels, height // stride, width // stride)
    sum(f.square().mean() for f in features.values()).backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "name, kwargs, channels, strides",
    [
        ("vit_large_patch16_384", {"out_features": ["block9", "block23"]}, [1024] * 2, [16] * 2),
        ("swin_large_patch4_window12_384", {}, [192, 384, 768, 1536], [4, 8, 16, 32]),
        (
            "resnest101e",
            {"output_stride": 8, "out_features": ["res2", "res3", "res4"]},
            [256, 512, 1024],
            [4, 8, 8],
        ),
    ],
)
def test_large_networks(name, kwargs, channels, strides):
    with torch.device("meta"):
        backbone = TimmBackbone(name, **kwargs)
        features = backbone(torch.zeros(2, 3, 64, 96)).values()
    shapes = backbone.output_shape().values()
    assert [s.channels for s in shapes] == [f.shape[1] for f in features] == channels
    assert [s.stride for s in shapes] == [64 // f.shape[2] for f in features] == strides


@torch.no_grad()
def test_features_are_what_leaves_the_blocks():
    """Swin's as (B, C, h, w), a plain transformer's before its last norm, and both after ours."""
    for name, blocks in [
        ("swin_tiny_patch4_window7_224", "layers_1"),
        ("test_vit", "model.blocks.1"),
    ]:
        key = "res3" if name.startswith("swin") else "block1"
        backbone = TimmBackbone(name, out_features=[key], out_norm="LN").eval()
        seen = []
        block = backbone.body.get_submodule(blocks)
        block.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out))
        feature = backbone(torch.randn(1, 3, 64, 96))[key]
        cells = seen[0].flatten(1, -2)[:, -feature[0, 0].numel() :]  # without the class token
        expected = torch.nn.functional.layer_norm(cells, cells.shape[-1:], eps=1e-6)
        torch.testing.assert_close(feature.flatten(2).transpose(1, 2), expected)


@torch.no_grad()
def test_swin_shifts_its_windows_at_every_stage():
    """timm itself would not shift those of the last stage, which is one window in pretraining."""
    with torch.device("meta"):
        backbone = TimmBackbone("swin_tiny_patch4_window7_224")
    for stage in range(4):
        first, second, *_ = backbone.body.get_submodule(f"layers_{stage}.blocks")
        assert (first.window_size, first.shift_size) == ((7, 7), (0, 0))
        assert (second.window_size, second.shift_size) == ((7, 7), (3, 3))


def test_drop_path_is_the_configs():
    """timm's Swin has .1 by default."""
    for rate in (0.0, 0.3):
        with torch.device("meta"):
            backbone = TimmBackbone("swin_tiny_patch4_window7_224", drop_path_rate=rate)
        found = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
        assert max(found, default=0.0) == pytest.approx(rate)


@pytest.mark.parametrize("name", ["mobilenetv2_035", "resnet18"])
def test_stages_that_nobody_reads_are_not_trained(name):
    """Their parameters would get no gradient, for which DDP waits."""
    backbone = TimmBackbone(name, out_features=["res2"])
    assert list(backbone.output_shape()) == ["res2"]
    sum(f.sum() for f in backbone(torch.randn(2, 3, 32, 32)).values()).backward()
    for parameter in backbone.parameters():
        assert parameter.requires_grad == (parameter.grad is not None)
    assert next(backbone.parameters()).requires_grad


@pytest.mark.parametrize(
    "name, features", [("vit_small_patch14_dinov2", ["block5"]), ("maxvit_tiny_tf_224", ["res2"])]
)
def test_networks_that_do_not_take_images_of_any_size_give_some_features_too(name, features):
    with torch.device("meta"):
        backbone = TimmBackbone(name, out_features=features)
    assert list(backbone.output_shape()) == features
    assert all(p.requires_grad for p in backbone.parameters())  # timm builds no more than is read


def test_errors_say_what_is_there():
    with pytest.raises(ValueError, match=r"'mobilnetv2_100'; did you mean .*mobilenetv2_100"):
        TimmBackbone("mobilnetv2_100")
    with pytest.raises(ValueError, match=r"no feature \['res9'\]; it has \['res1'"):
        TimmBackbone("mobilenetv2_035", out_features=["res9"])
    with pytest.raises(ValueError, match="OUTPUT_STRIDE 8"):
        TimmBackbone("hrnet_w18_small", output_stride=8)
    with pytest.raises(ValueError, match="IMAGE_SIZE 224, DROP_PATH_RATE 0.0: .*img_size"):
        TimmBackbone("resnet18", image_size=224)
    with pytest.raises(ValueError, match="OUT_NORM is 'BN'; known are '' and 'LN'"):
        TimmBackbone("resnet18", out_norm="BN")
    with pytest.raises(ValueError, match=r"no feature \['res5'\]; it has \['block0', 'block1'"):
        TimmBackbone("test_vit", out_features=["res5"])


class Model(torch.nn.Module):
    def __init__(self, name="mobilenetv2_035", **kwargs):
        super().__init__()
        self.backbone = TimmBackbone(name, **kwargs)


def test_weights_by_name_are_timms(weights_dir, monkeypatch):
    model = Model(output_stride=16, out_features=["res2", "res5"])
    load_timm_weights(model, "mobilenetv2_035")
    path = str(weights_dir / "mobilenetv2_035.safetensors")
    expected = timm.create_model(
        "mobilenetv2_035",
        features_only=True,
        pretrained=True,
        output_stride=16,
        pretrained_cfg_overlay={"file": path},
    ).eval()
    image = torch.randn(1, 3, 64, 64)
    features = list(model.eval().backbone(image).values())
    torch.testing.assert_close(features[0], expected(image)[1])
    torch.testing.assert_close(features[1], expected(image)[4])


@pytest.fixture
def vit_file(tmp_path):
    """A file as timm publishes it, of a network for images of 160 pixels: 10 x 10 positions."""
    torch.manual_seed(1)
    path = tmp_path / "test_vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


@pytest.mark.parametrize("image_size", [0, 96])
@torch.no_grad()
def test_position_embeddings_are_resampled(vit_file, image_size):
    model = Model("test_vit", image_size=image_size, out_norm="LN")
    before = {k: v.clone() for k, v in model.state_dict().items() if "out_norms" in k}
    load_timm_file(model, str(vit_file))
    stored = load_file(vit_file)
    state = model.backbone.body.model.state_dict()
    assert torch.equal(state["blocks.5.mlp.fc1.weight"], stored["blocks.5.mlp.fc1.weight"])
    if not image_size:
        assert torch.equal(state["pos_embed"], stored["pos_embed"])
    else:
        assert state["pos_embed"].shape == (1, 1 + 6 * 6, 64)  # the class token's, and the grid's
        grid = stored["pos_embed"][:, 1:].view(1, 10, 10, 64).permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(
            grid, (6, 6), mode="bicubic", antialias=True, align_corners=False
        )
        torch.testing.assert_close(state["pos_embed"][:, 1:], resized.flatten(2).transpose(1, 2))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_position_embeddings_that_are_missing(vit_file):
    stored = load_file(vit_file)
    del stored["pos_embed"]
    save_file(stored, vit_file)
    with pytest.raises(ValueError, match=r"test_vit.safetensors does not fit .*test_vit: .*pos_"):
        load_timm_file(Model("test_vit", image_size=96), str(vit_file))


def test_weights_that_do_not_fit(weights_dir, tmp_path):
    path = str(weights_dir / "mobilenetv2_035.safetensors")
    with pytest.raises(ValueError, match=r"mobilenetv2_035.safetensors does not fit .*resnet18"):
        load_timm_file(Model("resnet18"), path)
    with pytest.raises(ValueError, match="MODEL.TIMM.NAME is resnet18"):
        load_timm_weights(Model("resnet18"), "mobilenetv2_035")


def test_weights_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setenv("PIXCONTRAST_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"timm://mobilenetv2_035: .*\.safetensors does not exist"):
        load_timm_weights(Model(), "mobilenetv2_035")  # timm itself has none of this width
