"""The head in a whole model: what it costs at inference, and what it returns."""

import itertools

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from fvcore.nn import FlopCountAnalysis
from torch.nn import functional as F

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


# ---------------------------------------------------------------- sizes of images and of logits


def plain_model(cfg, **options):
    """For inference, with classifiers and norms whose output differs from place to place."""
    pairs = [(key.replace("__", "."), value) for key, value in options.items()]
    cfg.merge_from_list([part for pair in pairs for part in pair])
    torch.manual_seed(0)
    model = build_model(inference_config(cfg)).eval()
    torch.nn.init.normal_(model.sem_seg_head.predictor.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
    return model


def raw_logits(model, image):
    """The classifier's, of a (3, H, W) image padded by the caller or not at all."""
    features = model.backbone((image[None] - model.pixel_mean) / model.pixel_std)
    head = model.sem_seg_head
    return head.predictor(head.decoder(features).features)


def resized(logits, size, align_corners=False):
    return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)[0]


def output(model, image, height=None, width=None):
    size = height or image.shape[1], width or image.shape[2]
    return model([{"image": image, "height": size[0], "width": size[1]}])[0]["sem_seg"]


@pytest.mark.parametrize("size", [(61, 77), (64, 96), (33, 50)])
@torch.no_grad()
def test_images_that_are_not_padded(small_cfg, size):
    """Their logits have ceil(side / stride) rows and are brought to the very size of the image."""
    model = plain_model(small_cfg, MODEL__TIMM__SIZE_DIVISIBILITY=1)
    assert model.backbone.size_divisibility == 1
    (inputs,) = images(size)
    raw = raw_logits(model, inputs["image"])
    assert raw.shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))
    expected = resized(raw, size)
    torch.testing.assert_close(output(model, inputs["image"]), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_images_are_padded_to_the_largest_stride_by_default(small_cfg):
    assert small_cfg.MODEL.TIMM.SIZE_DIVISIBILITY == 0
    model = plain_model(small_cfg)
    assert model.backbone.size_divisibility == 16
    (inputs,) = images((61, 77))
    image = model.pixel_mean.expand(3, 64, 80).clone()  # 0 after the normalisation
    image[:, :61, :77] = inputs["image"]
    expected = resized(raw_logits(model, image), (64, 80))[:, :61, :77]
    found = output(model, inputs["image"])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    unpadded = plain_model(small_cfg, MODEL__TIMM__SIZE_DIVISIBILITY=1)
    assert (output(unpadded, inputs["image"]) - found).abs().max() > 0.01


@torch.no_grad()
def test_images_are_padded_to_a_multiple_of_what_is_asked_for(small_cfg):
    model = plain_model(small_cfg, MODEL__TIMM__SIZE_DIVISIBILITY=40)
    (inputs,) = images((61, 77))
    image = model.pixel_mean.expand(3, 80, 80).clone()
    image[:, :61, :77] = inputs["image"]
    expected = resized(raw_logits(model, image), (80, 80))[:, :61, :77]
    torch.testing.assert_close(output(model, inputs["image"]), expected, atol=1e-4, rtol=1e-4)


def test_images_that_are_not_padded_train(small_cfg):
    small_cfg.MODEL.TIMM.SIZE_DIVISIBILITY = 1
    small_cfg.MODEL.PIXEL_CONTRAST.WARMUP = 0.0
    losses = build_model(small_cfg).train()(batch(((61, 77), (61, 77))))
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize("size", [(61, 77), (64, 96)])
@torch.no_grad()
def test_logits_are_resized_with_aligned_corners(small_cfg, size):
    options = {"MODEL__TIMM__SIZE_DIVISIBILITY": 1, "MODEL__SEM_SEG_HEAD__ALIGN_CORNERS": True}
    model = plain_model(small_cfg, **options)
    (inputs,) = images(size)
    raw = raw_logits(model, inputs["image"])
    found = output(model, inputs["image"])
    expected = resized(raw, size, align_corners=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - resized(raw, size)).abs().max() > 0.01
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(found[:, *corner], raw[0, :, *corner], atol=1e-4, rtol=1e-4)


def test_the_losses_are_taken_with_aligned_corners(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.ALIGN_CORNERS = True
    small_cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES = ["res5"]
    model = build_model(small_cfg).train()
    head, seen = model.sem_seg_head, []
    torch.nn.init.normal_(head.predictor.weight)
    torch.nn.init.normal_(head.aux_heads["res5"][2].weight)
    head.predictor.register_forward_hook(lambda _, args, out: seen.append(out))
    head.aux_heads.register_forward_hook(lambda _, args, out: seen.extend(out))
    inputs = batch()
    losses = model(inputs)
    labels = torch.stack([x["sem_seg"] for x in inputs])
    for name, logits, weight in zip(("loss_sem_seg", "loss_sem_seg_aux"), seen, (1, 0.4)):
        large = F.interpolate(logits, (64, 96), mode="bilinear", align_corners=True)
        torch.testing.assert_close(losses[name], weight * F.cross_entropy(large, labels))


@torch.no_grad()
def test_logits_that_keep_their_own_size_are_resized_once(small_cfg):
    options = {"MODEL__TIMM__SIZE_DIVISIBILITY": 1, "MODEL__SEM_SEG_HEAD__UPSAMPLE_LOGITS": False}
    model = plain_model(small_cfg, **options)
    (inputs,) = images((61, 77))
    raw = raw_logits(model, inputs["image"])
    for size in ((61, 77), (50, 130), (16, 20)):
        found = output(model, inputs["image"], *size)
        torch.testing.assert_close(found, resized(raw, size), atol=1e-4, rtol=1e-4)
    twice = resized(resized(raw, (61, 77))[None], (50, 130))
    assert (output(model, inputs["image"], 50, 130) - twice).abs().max() > 0.01


@pytest.mark.parametrize(
    "options, message",
    [
        ({"TIMM.SIZE_DIVISIBILITY": 0}, "not padded: set MODEL.TIMM.SIZE_DIVISIBILITY to 1"),
        ({"TIMM.SIZE_DIVISIBILITY": 32}, "not padded: set MODEL.TIMM.SIZE_DIVISIBILITY to 1"),
        (
            {"TIMM.SIZE_DIVISIBILITY": 1, "SEM_SEG_HEAD.ALIGN_CORNERS": True},
            "UPSAMPLE_LOGITS is False and ALIGN_CORNERS True",
        ),
    ],
)
def test_logits_of_their_own_size_are_refused_where_they_would_be_wrong(
    small_cfg, options, message
):
    options = {"SEM_SEG_HEAD.UPSAMPLE_LOGITS": False, **options}
    small_cfg.merge_from_list([p for k, v in options.items() for p in (f"MODEL.{k}", v)])
    with pytest.raises(ValueError, match=message):
        build_model(small_cfg)


# ---------------------------------------------------------------- another activation


@torch.no_grad()
def test_leaky_relus_by_hand(small_cfg):
    options = {
        "MODEL__SEM_SEG_HEAD__DECODER": "FCNDecoder",
        "MODEL__SEM_SEG_HEAD__IN_FEATURES": ["res5"],
        "MODEL__SEM_SEG_HEAD__FCN__CHANNELS": 8,
    }
    relu = plain_model(small_cfg, **options)
    leaky = plain_model(small_cfg, MODEL__SEM_SEG_HEAD__ACTIVATION="leaky_relu")
    leaky.load_state_dict(relu.state_dict())
    conv = relu.sem_seg_head.decoder.conv
    features = {"res5": torch.randn(1, conv.in_channels, 4, 6)}
    linear = conv.norm(F.conv2d(features["res5"], conv.weight, padding=1))
    assert (linear < 0).any()
    weight, bias = relu.sem_seg_head.predictor.weight, relu.sem_seg_head.predictor.bias
    for model, hidden in (
        (relu, linear.clamp(min=0)),
        (leaky, torch.where(linear > 0, linear, 0.01 * linear)),
    ):
        expected = resized(F.conv2d(hidden, weight, bias), (64, 96))
        found = model.sem_seg_head(features)[0][0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    different = leaky.sem_seg_head(features)[0] - relu.sem_seg_head(features)[0]
    assert different.abs().max() > 1e-3
    assert torch.equal(
        leaky.backbone(torch.ones(1, 3, 32, 32))["res5"],
        relu.backbone(torch.ones(1, 3, 32, 32))["res5"],
    )  # the backbone's own are not touched


def test_leaky_relus_are_everywhere_in_the_head(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.ACTIVATION = "leaky_relu"
    small_cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES = ["res5"]
    small_cfg.MODEL.DATASET_MEMORY.ENABLED = True
    small_cfg.MODEL.DATASET_MEMORY.CHANNELS = 16
    head = build_model(small_cfg).sem_seg_head
    for part in (head.decoder, head.aggregation, head.aux_heads):
        found = {a for m in part.modules() if (a := getattr(m, "activation", None)) is not None}
        assert found == {F.leaky_relu}


def test_an_unknown_activation_is_refused(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.ACTIVATION = "gelu"
    with pytest.raises(ValueError, match=r"ACTIVATION is 'gelu'; known are \['relu', 'leaky_relu"):
        build_model(small_cfg)
