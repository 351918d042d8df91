"""A data-set memory in checkpoints, in exported programs, in mixed precision and in FLOP counts."""

import logging

import pytest
import torch
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from test_dataset_memory_head import PLUS_PLUS, SHAPES, batch, make_head, memory_cfg
from test_sem_seg_head import batch as model_batch
from test_sem_seg_head import images

from d2_pixcontrast import inference_config
from d2_pixcontrast.engine import SemSegCheckpointer, plain_state_dict
from d2_pixcontrast.modeling import TrainingProgress


def model_cfg(cfg, **options):
    cfg.MODEL.PIXEL_CONTRAST.IN_FEATURES = ["decoder"]
    options = {"decoder": "DeepLabV3PlusDecoder", "terms": ["PixelContrast"], **options}
    cfg = memory_cfg(cfg, **options)
    cfg.MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS = [8]
    return cfg


def step(model, optimizer, iteration):
    torch.manual_seed(iteration)  # dropout's
    model.sem_seg_head.set_progress(TrainingProgress(iteration, 3, lr_factor=1 - iteration / 3))
    inputs = model_batch()
    for x in inputs:
        x["image"] = x["image"].roll(7 * iteration, dims=2)
    optimizer.zero_grad()
    sum(model.train()(inputs).values()).backward()
    optimizer.step()


@pytest.mark.parametrize("options", [{}, PLUS_PLUS], ids=["mcibi", "mcibi++"])
def test_a_resumed_run_goes_on_bit_for_bit(small_cfg, tmp_path, options):
    cfg = model_cfg(small_cfg, **options)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = build_model(cfg)
        runs.append((model, torch.optim.SGD(model.parameters(), 0.1)))
    (model, optimizer), (resumed, other) = runs
    for iteration in range(2):
        step(model, optimizer, iteration)
    SemSegCheckpointer(model, str(tmp_path)).save("model")
    SemSegCheckpointer(resumed).load(str(tmp_path / "model.pth"))
    for m, o in ((model, optimizer), (resumed, other)):
        step(m, o, 2)
    expected = model.state_dict()
    assert any("aggregation.memory" in key for key in expected)
    assert not [k for k, v in resumed.state_dict().items() if not torch.equal(v, expected[k])]


@pytest.fixture
def trained(small_cfg, tmp_path):
    model = build_model(model_cfg(small_cfg))
    step(model, torch.optim.SGD(model.parameters(), 0.1), 0)
    SemSegCheckpointer(model, str(tmp_path)).save("model")
    return model, str(tmp_path / "model.pth")


def test_evaluation_loads_the_memory(small_cfg, trained):
    model, path = trained
    plain = build_model(inference_config(small_cfg))
    SemSegCheckpointer(plain, strict=True).load(path)
    assert plain.sem_seg_head.aggregation.memory.fill_ratio().min() == 1
    with torch.no_grad():
        for a, b in zip(model.eval()(images((61, 77))), plain.eval()(images((61, 77)))):
            assert torch.equal(a["sem_seg"], b["sem_seg"])
    published = plain_state_dict(model)
    assert published.keys() == plain.state_dict().keys()
    half = {k: v.half() if "aggregation.memory" in k else v for k, v in published.items()}
    plain.load_state_dict(half)  # as a file in half precision
    entries = plain.sem_seg_head.aggregation.memory.entries
    assert entries.dtype == torch.float32
    torch.testing.assert_close(
        entries, model.sem_seg_head.aggregation.memory.entries, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    "key, value", [("SEM_SEG_HEAD.NUM_CLASSES", 5), ("DATASET_MEMORY.CHANNELS", 8)]
)
def test_another_size_evaluates_not_and_fine_tunes_with_an_empty_memory(
    small_cfg, trained, key, value, caplog
):
    _, path = trained
    node, name = key.split(".")
    small_cfg.MODEL[node][name] = value
    other = build_model(inference_config(small_cfg))
    with pytest.raises(ValueError, match=r"model.pth does not fit this model: .* another shape"):
        SemSegCheckpointer(other, strict=True).load(path)
    with caplog.at_level(logging.INFO):
        SemSegCheckpointer(other).load(path)
    assert other.sem_seg_head.aggregation.memory.fill_ratio().sum() == 0


def test_a_checkpoint_without_a_memory_is_refused_for_evaluation(small_cfg, tmp_path):
    cfg = model_cfg(small_cfg)
    cfg.MODEL.DATASET_MEMORY.ENABLED = False
    SemSegCheckpointer(build_model(cfg), str(tmp_path)).save("model")
    cfg.MODEL.DATASET_MEMORY.ENABLED = True
    model = build_model(cfg)
    with pytest.raises(ValueError, match=r"missing tensors .first: sem_seg_head.aggregation"):
        SemSegCheckpointer(model, strict=True).load(str(tmp_path / "model.pth"))
    SemSegCheckpointer(model).load(str(tmp_path / "model.pth"))  # to train on


class Logits(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features):
        return self.head(features)[0]


@pytest.mark.parametrize("options", [{}, PLUS_PLUS], ids=["mcibi", "mcibi++"])
@torch.no_grad()
def test_an_exported_program_holds_the_memory_as_a_constant(small_cfg, options):
    """torch.export with free height and width; what is written there later changes nothing."""
    head = make_head(small_cfg, decoder="DeepLabV3PlusDecoder", **options).train()
    with torch.enable_grad():
        head(*batch())
    features, _ = batch(1, count=1)
    inputs = {name: features[name] for name in ("res2", "res5")}
    height, width = (torch.export.Dim(name, min=2, max=64) for name in ("height", "width"))
    dynamic = {"res2": {2: 4 * height, 3: 4 * width}, "res5": {2: height, 3: width}}
    model = Logits(head.eval())
    program = torch.export.export(model, (inputs,), dynamic_shapes=({**dynamic},))
    constants = [name for name in program.state_dict if "aggregation.memory" in name]
    assert constants and not program.graph_signature.buffers_to_mutate
    others, _ = batch(2, size=(48, 80), count=1)
    others = {name: others[name] for name in inputs}
    torch.testing.assert_close(program.module()(others), model(others), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{"CONSISTENCY__LOSS_WEIGHT": 1.0}, PLUS_PLUS])
def test_mixed_precision(small_cfg, options, dtype):
    head = make_head(small_cfg, decoder="DeepLabV3PlusDecoder", DROPOUT=0.0, **options).train()
    seen = []
    head.aggregation.register_forward_hook(lambda *call: seen.append(call[2]))
    for seed in range(2):
        with torch.autocast("cpu", dtype):
            losses = head(*batch(seed))[1]
        sum(losses.values()).backward()
    assert seen[0].features.dtype == seen[0].pixels.dtype == dtype
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert all(value.dtype == torch.float32 and value > 0 for value in losses.values())
    memory = head.aggregation.memory
    assert memory.entries.dtype == torch.float32 and memory.entries.isfinite().all()
    reference = make_head(small_cfg).train()
    for seed in range(2):
        full = reference(*batch(seed))[1]
    torch.testing.assert_close(losses["loss_sem_seg"], full["loss_sem_seg"], rtol=0.02, atol=0)


def test_flops_are_counted(small_cfg):
    """fvcore knows convolutions; the fused attention is for the caller's own handle."""
    head = make_head(small_cfg).eval()
    features, _ = batch(count=1)

    def macs(module, *inputs):
        count = FlopCountAnalysis(module, inputs).unsupported_ops_warnings(False)
        return count.uncalled_modules_warnings(False).by_module()

    counted = macs(head, {"res5": features["res5"]})
    height, width = features["res5"].shape[2:]
    channels = SHAPES["res5"].channels
    assert counted["aggregation.pixels"] >= height * width * channels * 16 * 9
    assert counted["aggregation.memory_attentions"] > 0
    assert counted[""] > counted["aggregation"] > counted["aggregation.fuse"] > 0
