"""The head in a whole model: what it costs at inference, and what it returns."""

import itertools

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from fvcore.nn import FlopCountAnalysis

from d2_pixcontrast import inference_config
from d2_pixcontrast.modeling import TrainingProgress


def batch(sizes=((64, 96), (64, 96)), classes=8):
    g = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(256, (3, *size), generator=g, dtype=torch.uint8).float(),
            "sem_seg": torch.randint(classes, size, generator=g),
            "height": size[0],
            "width": size[1],
        }
        for size in sizes
    ]


def images(*sizes):
    return [{k: v for k, v in x.items() if k != "sem_seg"} for x in batch(sizes)]


@pytest.fixture
def trained_and_plain(small_cfg):
    """A training model, and the plain one with its weights."""
    small_cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES = ["res5"]
    trained = build_model(small_cfg).eval()
    plain = build_model(inference_config(small_cfg)).eval()
    state = trained.state_dict()
    plain.load_state_dict({k: state[k] for k in plain.state_dict()})
    return trained, plain


def test_inference_is_that_of_the_plain_model(small_cfg, trained_and_plain):
    """Same parameters, FLOPs and bit-equal outputs as a model configured without contrast."""
    trained, plain = trained_and_plain
    ce = small_cfg.clone()
    ce.MODEL.SEM_SEG_HEAD.TERMS = []
    ce.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES = []
    reference = build_model(ce).eval()
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }
    inputs = images((64, 96), (61, 77))
    with torch.no_grad():
        for a, b in zip(trained(inputs), plain(inputs), strict=True):
            assert torch.equal(a["sem_seg"], b["sem_seg"])

    def flops(model):
        head = model.sem_seg_head
        features = model.backbone(torch.zeros(1, 3, 64, 96))
        count = FlopCountAnalysis(head, (features,)).unsupported_ops_warnings(False)
        return count.uncalled_modules_warnings(False).total()

    assert flops(plain) == flops(reference) == flops(trained)


@pytest.mark.parametrize("size", [(64, 96), (61, 77), (1, 1), (33, 200)])
def test_outputs_have_the_size_of_the_image(trained_and_plain, size):
    _, plain = trained_and_plain
    (output,) = plain(images(size))
    assert output["sem_seg"].shape == (8, *size)
    assert torch.isfinite(output["sem_seg"]).all()


def test_training_losses_by_name(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES = ["res5"]
    model = build_model(small_cfg).train()
    losses = model(batch())
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_aux", "loss_pixel_contrast"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_auxiliary_losses_of_several_features_are_summed(small_cfg):
    """As published for ViT-L, which has heads on three of its blocks."""
    small_cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES = ["res2", "res5"]
    small_cfg.MODEL.SEM_SEG_HEAD.AUX.CHANNELS = 12
    head = build_model(small_cfg).train().sem_seg_head
    features = {
        name: torch.randn(2, block[0].in_channels, size, size)
        for (name, block), size in zip(head.aux_heads.items(), (16, 4), strict=True)
    }
    labels = torch.randint(8, (2, 64, 64))
    seen = []
    head.aux_heads.register_forward_hook(lambda _, args, logits: seen.extend(logits))
    _, losses = head(features, labels)
    shallow, deep = (head.loss(logits, labels) for logits in seen)
    assert seen[0].shape == (2, 8, 16, 16) and seen[1].shape == (2, 8, 4, 4)
    torch.testing.assert_close(losses["loss_sem_seg_aux"], 0.4 * (shallow + deep))
    assert head.aux_heads["res2"][0].out_channels == 12


@pytest.mark.parametrize("value", [255, 0], ids=["all void", "one class"])
def test_degenerate_batches_train_on(small_cfg, value):
    small_cfg.MODEL.PIXEL_CONTRAST.WARMUP = 0.0
    model = build_model(small_cfg).train()
    inputs = batch()
    for x in inputs:
        x["sem_seg"][:] = value
    losses = model(inputs)
    assert losses["loss_pixel_contrast"] == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_two_methods_with_one_seed_start_from_the_same_network(small_cfg):
    torch.manual_seed(0)
    contrast = build_model(small_cfg).state_dict()
    torch.manual_seed(0)
    plain = build_model(inference_config(small_cfg)).state_dict()
    assert plain and all(torch.equal(contrast[k], v) for k, v in plain.items())


def test_progress_is_the_trainers_or_counted(small_cfg):
    small_cfg.MODEL.PIXEL_CONTRAST.WARMUP = 0.5
    model = build_model(small_cfg).train()
    head = model.sem_seg_head
    seen = []
    head.terms["PixelContrast"].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].progress)
    )
    for _ in range(2):
        model(batch())
    assert [p.iteration for p in seen] == [0, 1]
    head.set_progress(TrainingProgress(iteration=49, max_iter=100))
    assert model(batch())["loss_pixel_contrast"] == 0
    head.set_progress(TrainingProgress(iteration=50, max_iter=100))
    assert model(batch())["loss_pixel_contrast"] > 0


def test_scalars_are_written_now_and_then(small_cfg):
    small_cfg.MODEL.PIXEL_CONTRAST.WARMUP = 0.0
    small_cfg.MODEL.SEM_SEG_HEAD.SCALARS_PERIOD = 3
    model = build_model(small_cfg).train()
    names = {f"contrast/{n}" for n in ("num_anchors", "pos_sim", "neg_sim", "hard_ratio")}
    with EventStorage(0) as storage:
        for storage.iter in range(3):
            assert not names & set(storage.latest())
            model(batch())
        assert names <= set(storage.latest())
        assert storage.latest()["contrast/num_anchors"][0] > 0


def test_errors(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES = ["res4"]  # not among MODEL.TIMM.OUT_FEATURES
    with pytest.raises(
        ValueError, match=r"AUX.IN_FEATURES is \['res4'\]; the backbone gives \['res2'"
    ):
        build_model(small_cfg)


ALL_TERMS = {
    "PixelContrast": {"loss_pixel_contrast"},
    "Contextrast": {"loss_contextrast"},
    "MultiScaleContrast": {"loss_multiscale_contrast", "loss_crossscale_contrast"},
}


@pytest.mark.parametrize(
    "terms", [t for n in (1, 2, 3) for t in itertools.combinations(ALL_TERMS, n)], ids="+".join
)
def test_any_set_of_terms_trains_and_is_gone_at_inference(small_cfg, terms):
    small_cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    small_cfg.MODEL.PIXEL_CONTRAST.WARMUP = 0.0
    small_cfg.MODEL.MULTI_SCALE_CONTRAST.MIN_PIXELS = 2
    small_cfg.MODEL.SEM_SEG_HEAD.TERMS = list(terms)
    model = build_model(small_cfg).train()
    inputs = batch()
    for x in inputs:  # blocks, so that there are classes on the coarse grids
        x["sem_seg"] = torch.arange(6).view(2, 3).repeat_interleave(32, 0).repeat_interleave(32, 1)
    losses = model(inputs)
    wanted = set().union(*(ALL_TERMS[name] for name in terms))
    assert set(losses) == {"loss_sem_seg"} | wanted
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    plain = build_model(inference_config(small_cfg))
    assert set(model.state_dict()) - set(plain.state_dict()) == {
        key for key in model.state_dict() if ".terms." in key
    }
