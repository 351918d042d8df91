"""Training and evaluation see the features of detectron2's ResNets at the same places."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone import ResNet
from torch.nn import functional as F

from d2_pixcontrast.modeling import build_model
from d2_pixcontrast.modeling.backbone import PaddedResNet

SIZE, PADDED = (61, 77), (64, 80)  # at stride 16


@pytest.fixture
def resnet_cfg(small_cfg):
    small_cfg.merge_from_list(
        [
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN"),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res4"], "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res4"]),
            *("MODEL.PIXEL_CONTRAST.IN_FEATURES", ["res4"], "MODEL.PIXEL_CONTRAST.MAX_VIEWS", 1),
        ]
    )
    return small_cfg


def sample():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)
    sem_seg = torch.randint(0, 8, SIZE, generator=generator)
    return {"image": image, "sem_seg": sem_seg, "height": SIZE[0], "width": SIZE[1]}


def test_labels_are_padded_to_what_the_features_cover(resnet_cfg, monkeypatch):
    model = build_model(resnet_cfg).train()
    assert type(model.backbone) is PaddedResNet and model.backbone.size_divisibility == 16
    seen = {}
    head = model.sem_seg_head
    monkeypatch.setattr(
        head, "losses", lambda f, d, a, logits, targets: seen.update(l=logits, t=targets) or {}
    )
    model([sample()])
    assert seen["t"].shape[-2:] == PADDED
    assert [4 * side for side in seen["l"].shape[-2:]] == [*PADDED]
    ignore = resnet_cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    assert (seen["t"][0, 61:] == ignore).all() and (seen["t"][0, :, 77:] == ignore).all()
    assert torch.equal(seen["t"][0, :61, :77], sample()["sem_seg"])


@torch.no_grad()
def test_evaluation_crops_what_training_has_padded(resnet_cfg):
    model = build_model(resnet_cfg).eval()
    image = model.pixel_mean.expand(3, *PADDED).clone()  # 0 after the normalisation
    image[:, : SIZE[0], : SIZE[1]] = sample()["image"]
    head = model.sem_seg_head
    features = model.backbone((image[None] - model.pixel_mean) / model.pixel_std)
    raw = head.predictor(head.decoder(features).features)
    expected = F.interpolate(raw, PADDED, mode="bilinear", align_corners=False)
    found = model([sample()])[0]["sem_seg"]
    torch.testing.assert_close(found, expected[0, :, : SIZE[0], : SIZE[1]], atol=1e-4, rtol=1e-4)


def test_logits_that_detectron2_resizes_keep_their_images(resnet_cfg):
    """It stretches them to the image, and so does the loss: no padding may come between."""
    resnet_cfg.MODEL.SEM_SEG_HEAD.UPSAMPLE_LOGITS = False
    assert type(build_model(resnet_cfg).backbone) is ResNet


def test_an_architecture_without_a_backbone_is_left_alone(small_cfg):
    class NoBackbone(torch.nn.Module):
        def __init__(self, cfg):
            super().__init__()

    META_ARCH_REGISTRY._do_register("NoBackbone", NoBackbone)
    try:
        small_cfg.MODEL.META_ARCHITECTURE = "NoBackbone"
        assert isinstance(build_model(small_cfg), NoBackbone)
    finally:
        del META_ARCH_REGISTRY._obj_map["NoBackbone"]
