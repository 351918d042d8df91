"""Term PixelContrast with a memory."""

import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from d2_pixcontrast import add_pixcontrast_config
from d2_pixcontrast.config import inference_config
from d2_pixcontrast.contrast import MemoryBank, Mining, ProjectionHead, nearest_resize
from d2_pixcontrast.engine.checkpoint import SemSegCheckpointer
from d2_pixcontrast.modeling.head_with_terms import _by_name
from d2_pixcontrast.modeling.terms import PixelContrast, TermInputs, TrainingProgress

IGNORE, CLASSES, CHANNELS, DIM = 255, 3, 6, 4
SHAPES = {"res5": ShapeSpec(channels=CHANNELS, stride=8)}


def make_term(memory=True, warmup=0.0, **options):
    torch.manual_seed(0)
    bank = MemoryBank(CLASSES, DIM, region_size=8, pixel_size=20) if memory else None
    return PixelContrast(
        projector=ProjectionHead(CHANNELS, dim=DIM),
        in_features=["res5"],
        num_classes=CLASSES,
        warmup=warmup,
        **{"max_views": 5, "max_samples": 60, "bank": bank, **options},
    )


def make_inputs(iteration=0, max_iter=10, batch=2, first_image=0):
    g = torch.Generator().manual_seed(1000 * iteration + first_image)
    features = torch.randn(batch, CHANNELS, 8, 8, generator=g)
    labels = torch.randint(CLASSES, (batch, 32, 32), generator=g)
    labels[:, :4] = IGNORE
    return TermInputs(
        features={"res5": features.requires_grad_()},
        logits=torch.randn(batch, CLASSES, 16, 16, generator=g),
        labels=labels,
        ignore_value=IGNORE,
        progress=TrainingProgress(iteration=iteration, max_iter=max_iter, seed=3),
        first_image=first_image,
    )


def state_of(term):
    return {name: buffer.clone() for name, buffer in term.bank.named_buffers()}


def is_empty(bank):
    return all(torch.all(buffer == 0) for buffer in bank.buffers())


def test_without_memory_nothing_is_added():
    term = make_term(memory=False)
    assert not any("bank" in name for name in term.state_dict())
    losses, scalars = term(make_inputs())
    assert losses["loss_pixel_contrast"] > 0
    assert sorted(scalars) == [
        f"contrast/{name}" for name in ("hard_ratio", "neg_sim", "num_anchors", "pos_sim")
    ]


def test_the_loss_is_that_of_the_memory_before_this_batch():
    term = make_term()
    losses, scalars = term(make_inputs(0))
    assert losses["loss_pixel_contrast"] == 0  # an empty memory
    losses["loss_pixel_contrast"].backward()  # connected
    assert all(p.grad is not None for p in term.parameters())
    assert torch.all(scalars["contrast/bank_fill"] > 0) and len(scalars) == 5
    written = term.bank.pixel.written.clone()
    term.zero_grad()
    losses, _ = term(make_inputs(1))
    losses["loss_pixel_contrast"].backward()
    assert losses["loss_pixel_contrast"] > 0
    assert all(torch.any(p.grad != 0) for p in term.projector.out.parameters())
    assert torch.all(term.bank.pixel.written > written)


def test_entries_are_embeddings_of_the_labels_at_their_own_grid():
    """The published code used labels of another stride."""
    term, inputs = make_term(), make_inputs()
    term(inputs)
    with torch.no_grad():
        embeddings = term.projector(inputs.features["res5"])  # batch statistics: the same again
    labels = nearest_resize(inputs.labels, (8, 8))
    for c in range(CLASSES):
        entries = term.bank.pixel.rows[c, : term.bank.pixel.fill[c]]
        assert len(entries) == 20
        distance = torch.cdist(entries, embeddings.permute(0, 2, 3, 1)[labels == c]).amin(dim=1)
        assert distance.max() < 1e-3
    groups = sum(int((labels[b] == c).any()) for b in range(2) for c in range(CLASSES))
    assert term.bank.region.written.sum() == groups


def test_the_memory_fills_in_the_warm_up_without_gradient():
    term = make_term(warmup=0.5)
    inputs = make_inputs(0)
    losses, scalars = term(inputs)
    assert losses["loss_pixel_contrast"] == 0
    assert torch.all(term.bank.pixel.written > 0) and torch.all(term.bank.region.written > 0)
    assert list(scalars) == ["contrast/bank_fill"]
    losses["loss_pixel_contrast"].backward()
    assert not inputs.features["res5"].grad.any()
    assert all(torch.all(p.grad == 0) for p in term.parameters())


def test_a_nan_in_the_warm_up_passes_neither_to_the_loss_nor_to_the_memory():
    term = make_term(warmup=0.5)
    inputs = make_inputs(0)
    inputs.features["res5"] = torch.full((2, CHANNELS, 8, 8), torch.nan)
    losses, _ = term(inputs)
    losses["loss_pixel_contrast"].backward()
    assert losses["loss_pixel_contrast"] == 0
    assert all(torch.all(p.grad == 0) for p in term.parameters())
    assert is_empty(term.bank)


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_training_forwards_without_gradients_write_nothing(warmup):
    """PreciseBN runs such forwards."""
    term = make_term(warmup=warmup)
    with torch.no_grad():
        losses, _ = term(make_inputs())
    assert list(losses) == ["loss_pixel_contrast"]
    assert is_empty(term.bank)


@pytest.mark.parametrize("mode", ["all", "random", "hardest", "semi_hard"])
@pytest.mark.parametrize("sampler", ["per_image", "per_class"])
@pytest.mark.parametrize("memory, with_batch", [(False, False), (True, False), (True, True)])
def test_every_combination_trains(mode, sampler, memory, with_batch):
    mining = Mining(mode, num_positives=3, num_negatives=4, hard_fraction=0.5)
    term = make_term(memory, sampler=sampler, with_batch=with_batch, mining=mining)
    for iteration in range(2):
        losses, scalars = term(make_inputs(iteration))
        losses["loss_pixel_contrast"].backward()
    assert losses["loss_pixel_contrast"] > 0
    assert all(torch.isfinite(p.grad).all() for p in term.parameters())
    assert not any(value.requires_grad for value in scalars.values())


def test_an_all_void_batch_is_zero_and_leaves_the_memory():
    term, inputs = make_term(), make_inputs()
    inputs.labels.fill_(IGNORE)
    losses, _ = term(inputs)
    losses["loss_pixel_contrast"].backward()
    assert losses["loss_pixel_contrast"] == 0
    assert is_empty(term.bank)


def test_shards_in_turn_write_what_the_whole_batch_writes():
    whole, parts = make_term(warmup=0.5), make_term(warmup=0.5)
    for term in (whole, parts):
        term.projector.eval()  # batch statistics would differ
    first, second = make_inputs(first_image=0), make_inputs(first_image=2)
    both = make_inputs(batch=4)
    both.features = {"res5": torch.cat([i.features["res5"] for i in (first, second)])}
    both.labels = torch.cat([first.labels, second.labels])
    whole(both)
    parts(first)
    parts(second)
    assert not is_empty(whole.bank)
    for name, expected in state_of(whole).items():
        torch.testing.assert_close(parts.bank.get_buffer(name), expected)


def default_config():
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    return cfg


def memory_config(**memory):
    cfg = default_config()
    cfg.MODEL.PIXEL_CONTRAST.MEMORY.ENABLED = True
    for key, value in memory.items():
        cfg.MODEL.PIXEL_CONTRAST.MEMORY[key] = value
    return cfg


def test_the_config_decides_and_the_cost_is_logged_once(caplog):
    assert PixelContrast(default_config(), SHAPES).bank is None
    cfg = memory_config(REGION_SIZE=10, PIXEL_SIZE=0, DTYPE="bfloat16", WITH_BATCH=True)
    cfg.MODEL.PIXEL_CONTRAST.PROJECTOR.DIM = 32
    cfg.MODEL.PIXEL_CONTRAST.MINING.MODE = "semi_hard"
    cfg.MODEL.PIXEL_CONTRAST.MINING.NUM_NEGATIVES = 77
    with caplog.at_level(logging.INFO, "d2_pixcontrast"):
        term = PixelContrast(cfg, SHAPES)
    assert list(term.bank.stores) == ["region"]
    assert term.bank.region.rows.shape == (CLASSES, 10, 32)
    assert term.bank.region.rows.dtype == torch.bfloat16
    assert term.with_batch and term.mining == Mining("semi_hard", 1024, 77, 0.1)
    (record,) = [r for r in caplog.records if "Memory bank" in r.getMessage()]
    assert "3 classes x (10 regions) x 32 torch.bfloat16" in record.getMessage()


def test_the_default_memory_of_19_classes_takes_186_mib(caplog):
    cfg = memory_config()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    with caplog.at_level(logging.INFO, "d2_pixcontrast"), torch.device("meta"):
        term = PixelContrast(cfg, SHAPES)
    assert term.bank.pixel.rows.shape == (19, 5000, 256)
    assert "19 classes x (5000 regions + 5000 pixels) x 256 torch.float32: 185.5 MiB" in caplog.text


@pytest.mark.parametrize(
    "options, match",
    [
        ({"DTYPE": "float16"}, "MEMORY.DTYPE is 'float16'; known are"),
        ({"REGION_SIZE": 0, "PIXEL_SIZE": 0}, "REGION_SIZE 0, PIXEL_SIZE 0"),
        ({"PIXELS_PER_GROUP": 0}, "PIXELS_PER_GROUP"),
    ],
)
def test_bad_memory_options(options, match):
    with pytest.raises(ValueError, match=match):
        PixelContrast(memory_config(**options), SHAPES)


@pytest.mark.parametrize(
    "key, value, match",
    [
        ("SAMPLER", "hard", "SAMPLER is 'hard'; known are"),
        ("ANCHORS_PER_CLASS", 0, "ANCHORS_PER_CLASS has to be above 0"),
    ],
)
def test_bad_sampler_options(key, value, match):
    cfg = default_config()
    cfg.MODEL.PIXEL_CONTRAST[key] = value
    with pytest.raises(ValueError, match=match):
        PixelContrast(cfg, SHAPES)


def test_per_class_scalars_are_recorded_by_class():
    scalars = {"a": torch.tensor(2.0), "fill": torch.tensor([0.25, 0.5])}
    assert _by_name(scalars) == {"a": 2.0, "fill/0": 0.25, "fill/1": 0.5}


def test_a_resumed_term_goes_on_bit_for_bit(tmp_path):
    term, resumed = make_term(), make_term()
    for iteration in range(3):
        term(make_inputs(iteration))
    DetectionCheckpointer(nn.ModuleDict({"t": term}), str(tmp_path)).save("model")
    DetectionCheckpointer(nn.ModuleDict({"t": resumed})).load(str(tmp_path / "model.pth"))
    expected, _ = term(make_inputs(3))
    losses, _ = resumed(make_inputs(3))
    assert expected["loss_pixel_contrast"] > 0
    assert torch.equal(losses["loss_pixel_contrast"], expected["loss_pixel_contrast"])
    for name, value in state_of(term).items():
        assert torch.equal(resumed.bank.get_buffer(name), value)


def test_the_memory_trains_within_the_model_and_is_no_part_of_inference(tmp_path):
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "mobilenetv2_035"
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 8
    cfg.MODEL.SEM_SEG_HEAD.DECODER = "FCNDecoder"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res5"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    cfg.MODEL.SEM_SEG_HEAD.TERMS = ["PixelContrast"]
    cfg.MODEL.PIXEL_CONTRAST.MAX_VIEWS = 2
    cfg.MODEL.PIXEL_CONTRAST.MEMORY.ENABLED = True
    cfg.MODEL.PIXEL_CONTRAST.MEMORY.PIXEL_SIZE = 50
    model = build_model(cfg)
    labels = torch.arange(64 * 64).view(64, 64) // 1500
    batch = [{"image": torch.rand(3, 64, 64) * 255, "sem_seg": labels}] * 2
    bank = model.sem_seg_head.terms["PixelContrast"].bank
    with EventStorage(0) as storage:
        storage.iter = cfg.MODEL.SEM_SEG_HEAD.SCALARS_PERIOD - 1
        sum(model(batch).values()).backward()
        recorded = storage.latest()
    assert torch.all(bank.region.written == 2)
    assert {f"contrast/bank_fill/{c}" for c in range(CLASSES)} <= set(recorded)
    SemSegCheckpointer(model, str(tmp_path)).save("model")
    plain = build_model(inference_config(cfg))
    SemSegCheckpointer(plain, strict=True).load(str(tmp_path / "model.pth"))
    assert not any("bank" in name for name in plain.state_dict())


def test_mining_draws_by_seed_iteration_and_global_image():
    term = make_term(mining=Mining("random"))
    size, index = torch.Size((8, 8)), torch.arange(64)
    of_image_2 = term._row_keys(make_inputs(first_image=2), size, index)
    as_third = term._row_keys(make_inputs(batch=4), size, index + 2 * 64)
    assert torch.equal(of_image_2, as_third)
    assert not torch.equal(of_image_2, term._row_keys(make_inputs(first_image=0), size, index))
    later = term._row_keys(make_inputs(iteration=1, first_image=2), size, index)
    assert not torch.equal(of_image_2, later)
