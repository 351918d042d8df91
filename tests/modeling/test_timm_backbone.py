import pytest
import timm
import torch

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


@pytest.mark.parametrize("name", ["mobilenetv2_035", "resnet18"])
def test_stages_that_nobody_reads_are_not_trained(name):
    """Their parameters would get no gradient, for which DDP waits."""
    backbone = TimmBackbone(name, out_features=["res2"])
    assert list(backbone.output_shape()) == ["res2"]
    sum(f.sum() for f in backbone(torch.randn(2, 3, 32, 32)).values()).backward()
    for parameter in backbone.parameters():
        assert parameter.requires_grad == (parameter.grad is not None)
    assert next(backbone.parameters()).requires_grad


def test_errors_say_what_is_there():
    with pytest.raises(ValueError, match=r"'mobilnetv2_100'; did you mean .*mobilenetv2_100"):
        TimmBackbone("mobilnetv2_100")
    with pytest.raises(ValueError, match=r"no feature \['res9'\]; it has \['res1'"):
        TimmBackbone("mobilenetv2_035", out_features=["res9"])
    with pytest.raises(ValueError, match="OUTPUT_STRIDE 8"):
        TimmBackbone("hrnet_w18_small", output_stride=8)


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
