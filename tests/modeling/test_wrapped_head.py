"""Terms attached to detectron2's own heads."""

import logging

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_model
from detectron2.projects.point_rend import add_pointrend_config
from torch import nn

from d2_pixcontrast import add_pixcontrast_config, inference_config
from d2_pixcontrast.engine import SemSegCheckpointer, plain_state_dict
from d2_pixcontrast.modeling import ContrastWrapperHead, TrainingProgress
from d2_pixcontrast.modeling.terms import build_terms
from d2_pixcontrast.modeling.wrapped_head import predictor_name

IN_FEATURES = {
    "SemSegFPNHead": ["res2", "res5"],
    "DeepLabV3Head": ["res5"],
    "DeepLabV3PlusHead": ["res2", "res5"],
    "PointRendSemSegHead": ["res2", "res5"],
}
LOSSES = {name: {"loss_sem_seg"} for name in IN_FEATURES}
LOSSES["PointRendSemSegHead"] = {"loss_sem_seg", "loss_sem_seg_point"}
HEADS = sorted(IN_FEATURES)


def wrapped_cfg(cfg, name):
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.WRAPPED = "ContrastWrapperHead", name
    head.IN_FEATURES = IN_FEATURES[name]
    head.PROJECT_CHANNELS = [16] * (len(IN_FEATURES[name]) - 1)
    head.COMMON_STRIDE = 16 if name == "DeepLabV3Head" else 4
    cfg.MODEL.PIXEL_CONTRAST.MAX_VIEWS = 2  # DeepLabV3's map has 36 pixels
    cfg.INPUT.CROP.ENABLED = False  # DeepLab's image pooling is fixed to the crop otherwise
    if name == "PointRendSemSegHead":
        add_pointrend_config(cfg)
        cfg.MODEL.POINT_HEAD.NUM_CLASSES = head.NUM_CLASSES
        cfg.MODEL.POINT_HEAD.IN_FEATURES = ["res2"]
        cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS = 2
    return cfg


def batch(labelled=True):
    g = torch.Generator().manual_seed(0)
    inputs = [
        {
            "image": torch.randint(256, (3, 96, 96), generator=g).float(),
            "sem_seg": torch.randint(8, (96, 96), generator=g),
            "height": 96,
            "width": 96,
        }
        for _ in range(2)
    ]
    return (
        inputs
        if labelled
        else [{"image": x["image"]} | {"height": 96, "width": 96} for x in inputs]
    )


def pair(cfg, name, seed=0):
    """A wrapped model and the plain one, built with one seed."""
    torch.manual_seed(seed)
    wrapped = build_model(wrapped_cfg(cfg, name))
    torch.manual_seed(seed)
    return wrapped, build_model(inference_config(cfg))


@pytest.mark.parametrize("name", HEADS)
def test_training_adds_the_terms_to_the_heads_own_losses(small_cfg, name):
    model, plain = pair(small_cfg, name)
    assert type(plain.sem_seg_head).__name__ == name
    head = model.sem_seg_head
    head.set_progress(TrainingProgress(iteration=900, max_iter=1000))
    torch.manual_seed(1)
    losses = model.train()(batch())
    torch.manual_seed(1)  # dropout, and PointRend's points
    own = plain.train()(batch())
    assert set(own) == LOSSES[name]
    assert set(losses) == LOSSES[name] | {"loss_pixel_contrast"}
    assert all(torch.equal(losses[key], own[key]) for key in own)
    assert losses["loss_pixel_contrast"] > 0
    losses["loss_pixel_contrast"].backward()
    own_parameters = {k: v for k, v in head.wrapped.named_parameters() if v.grad is not None}
    assert own_parameters and all(v.grad.any() for v in own_parameters.values())
    assert head.predictor.weight.grad is None  # the embeddings are its input, not its output
    assert model.backbone.body.conv_stem.weight.grad.any()
    assert all(p.grad is not None for p in head.terms.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_evaluation_is_the_wrapped_head_alone(small_cfg, name):
    model, plain = pair(small_cfg, name)
    model(batch())  # moves the running statistics
    plain.load_state_dict(plain_state_dict(model), strict=True)

    def forbidden(*args):
        raise AssertionError("a term ran in evaluation")

    model.sem_seg_head.terms["PixelContrast"].register_forward_pre_hook(forbidden)
    with torch.no_grad():
        outputs = zip(model.eval()(batch(False)), plain.eval()(batch(False)), strict=True)
        for a, b in outputs:
            assert a["sem_seg"].shape == (8, 96, 96)
            assert torch.equal(a["sem_seg"], b["sem_seg"])


@pytest.mark.parametrize("name", HEADS)
def test_checkpoints_go_both_ways_with_one_line(small_cfg, name, tmp_path, caplog):
    model, plain = pair(small_cfg, name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    SemSegCheckpointer(model, str(tmp_path)).save("model_wrapped")
    published = plain_state_dict(model)
    assert not any("wrapped" in key or "terms" in key for key in published)
    torch.save({"model": published}, tmp_path / "published.pth")
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, tmp_path / "parallel.pth")
    for file, lines in [("model_wrapped", 1), ("published", 0), ("parallel", 1)]:
        caplog.clear()
        _, plain = pair(small_cfg, name)
        with caplog.at_level(logging.INFO):
            SemSegCheckpointer(plain, strict=True).load(str(tmp_path / f"{file}.pth"))
        assert all(torch.equal(v, published[k]) for k, v in plain.state_dict().items())
        renamed = [r for r in caplog.records if "tensors of the wrapped head" in r.getMessage()]
        assert len(renamed) == lines

    fine_tuned, _ = pair(small_cfg, name)
    SemSegCheckpointer(fine_tuned).load(str(tmp_path / "published.pth"))
    again = plain_state_dict(fine_tuned)
    assert again.keys() == published.keys()
    assert all(torch.equal(v, published[k]) for k, v in again.items())


def test_resuming_renames_nothing(small_cfg, tmp_path, caplog):
    model, _ = pair(small_cfg, "SemSegFPNHead")
    SemSegCheckpointer(model, str(tmp_path)).save("model_wrapped")
    other, _ = pair(small_cfg, "SemSegFPNHead", seed=1)
    with caplog.at_level(logging.INFO):
        SemSegCheckpointer(other, strict=True).load(str(tmp_path / "model_wrapped.pth"))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items())
    assert not [r for r in caplog.records if "Renamed" in r.getMessage()]


def panoptic_fpn_cfg(cfg):
    """Detectron2's semantic FPN on its own, smallest ResNet; no key of this project."""
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "SemanticSegmentor"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0] * 3, [60.0] * 3
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 8
    cfg.MODEL.SEM_SEG_HEAD.NORM = "GN"
    return cfg


def test_two_lines_add_contrast_to_a_model_of_detectron2s_own():
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    head = panoptic_fpn_cfg(cfg).MODEL.SEM_SEG_HEAD
    head.NAME, head.WRAPPED, head.TERMS = "ContrastWrapperHead", "SemSegFPNHead", ["PixelContrast"]
    cfg.MODEL.PIXEL_CONTRAST.IN_FEATURES = ["decoder", "p3"]
    cfg.MODEL.PIXEL_CONTRAST.MAX_VIEWS = 16  # for small images
    model = build_model(cfg)
    model.sem_seg_head.set_progress(TrainingProgress(iteration=1))
    losses = model(batch())
    assert losses["loss_pixel_contrast"] > 0
    sum(losses.values()).backward()
    plain = build_model(panoptic_fpn_cfg(get_cfg()))
    plain.load_state_dict(plain_state_dict(model), strict=True)
    with torch.no_grad():
        for a, b in zip(model.eval()(batch(False)), plain.eval()(batch(False)), strict=True):
            assert torch.equal(a["sem_seg"], b["sem_seg"])


def test_wrapping_changes_neither_the_start_nor_ignore_value(small_cfg):
    model, plain = pair(small_cfg, "SemSegFPNHead")
    wrapped = plain_state_dict(model)
    assert all(torch.equal(v, wrapped[k]) for k, v in plain.state_dict().items())
    small_cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 11
    model, plain = pair(small_cfg, "SemSegFPNHead")
    assert model.sem_seg_head.ignore_value == plain.sem_seg_head.ignore_value == 11


def test_without_terms_it_is_the_head(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.TERMS = []
    model, _ = pair(small_cfg, "SemSegFPNHead")
    assert set(model(batch())) == {"loss_sem_seg"}


def test_no_hook_is_left_even_after_an_error(small_cfg):
    model, _ = pair(small_cfg, "SemSegFPNHead")
    head = model.sem_seg_head
    model(batch())
    assert not head.predictor._forward_hooks

    def fails(*args):
        raise RuntimeError("out of memory")

    head.wrapped.losses = fails
    with pytest.raises(RuntimeError, match="out of memory"):
        model(batch())
    assert not head.predictor._forward_hooks


class Small(nn.Module):
    """A head of somebody's own."""

    ignore_value = 255

    def __init__(self, predictors=1, called=True):
        super().__init__()
        self.predictor = nn.Conv2d(4, 8, 1) if predictors else None
        self.more = nn.ModuleDict({"predictor": nn.Conv2d(4, 8, 1)} if predictors > 1 else {})
        self.called = called

    def forward(self, features, targets=None, weights=None):
        if self.called:
            self.predictor(features["res2"])
        return None, {"loss_sem_seg": torch.zeros(()) if weights is None else weights}


def small_terms(cfg):
    return build_terms(cfg, {"decoder": ShapeSpec(channels=4)})


def test_further_arguments_reach_the_wrapped_head(small_cfg):
    head = ContrastWrapperHead(wrapped=Small(), terms=small_terms(small_cfg)).train()
    labels = torch.randint(8, (1, 8, 8))
    _, losses = head({"res2": torch.randn(1, 4, 8, 8)}, labels, torch.tensor(7.0))
    assert losses["loss_sem_seg"] == 7 and "loss_pixel_contrast" in losses


def test_the_wrapped_head_sees_the_config_without_the_wrapper(small_cfg, monkeypatch):
    seen = []

    def build_small(cfg, input_shape):
        seen.append(cfg.MODEL.SEM_SEG_HEAD)
        return Small()

    monkeypatch.setitem(SEM_SEG_HEADS_REGISTRY._obj_map, "build_small", build_small)
    model, _ = pair(small_cfg, "SemSegFPNHead")
    small_cfg.MODEL.SEM_SEG_HEAD.WRAPPED = "build_small"
    small_cfg.freeze()
    head = ContrastWrapperHead(small_cfg, model.backbone.output_shape())
    assert (seen[0].NAME, seen[0].WRAPPED, seen[0].TERMS) == ("build_small", "", [])
    assert head.terms["PixelContrast"].projector.out.in_channels == 4  # as the classifier's


def test_errors(small_cfg):
    for count, found in [(0, "none"), (2, r"\['predictor', 'more.predictor'\]")]:
        with pytest.raises(
            ValueError, match=rf"built a Small; .*'predictor' in it, there are {found}"
        ):
            predictor_name(Small(count))
    head = ContrastWrapperHead(wrapped=Small(called=False), terms=small_terms(small_cfg)).train()
    with pytest.raises(RuntimeError, match="Small did not call its predictor"):
        head({"res2": torch.randn(1, 4, 8, 8)}, torch.zeros(1, 8, 8).long())
    node = small_cfg.MODEL.SEM_SEG_HEAD
    node.NAME = "ContrastWrapperHead"
    for name, message in [
        ("", "WRAPPED is ''; known are"),
        ("SemSegFPNHaed", "WRAPPED is 'SemSegFPNHaed'; did you mean SemSegFPNHead"),
        ("ContrastWrapperHead", "'ContrastWrapperHead', which runs terms itself"),
        ("PixelContrastSemSegHead", "'PixelContrastSemSegHead', which runs terms itself"),
    ]:
        node.WRAPPED = name
        with pytest.raises(ValueError, match=message):
            build_model(small_cfg)
