"""The training forward of all methods on tensors that only claim to be on a GPU.

They have shapes, types and devices but no values, so that a CPU shows what a GPU would refuse: an
operand left on the host; and what would make it wait: a value or a shape that the host has to know.
"""

import pytest
import torch
from conftest import CONFIGS
from detectron2.modeling import build_model
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from d2_pixcontrast.engine import load_cfg
from d2_pixcontrast.modeling.terms import TrainingProgress

SIZE = (64, 96)
SEMI_HARD = [
    *("MODEL.PIXEL_CONTRAST.NEGATIVES", "bane"),
    *("MODEL.PIXEL_CONTRAST.MINING.MODE", "semi_hard"),
    *("MODEL.PIXEL_CONTRAST.MINING.NUM_POSITIVES", 3),
    *("MODEL.PIXEL_CONTRAST.MINING.NUM_NEGATIVES", 9),
]
EVERY_TERM = [
    *("MODEL.SEM_SEG_HEAD.TERMS", ["PixelContrast", "Contextrast", "MultiScaleContrast"]),
    *("MODEL.TIMM.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.PIXEL_CONTRAST.MEMORY.ENABLED", True),
    *("MODEL.PIXEL_CONTRAST.MEMORY.REGION_SIZE", 6),
    *("MODEL.PIXEL_CONTRAST.MEMORY.PIXEL_SIZE", 20),
]
CASES = {
    "pixcontrast": ("pixcontrast", []),
    "everything": ("mcibi", EVERY_TERM),
    "everything_semi_hard": ("mcibi_pp", [*EVERY_TERM, *SEMI_HARD]),
    "per_class": ("mcibi", [*EVERY_TERM, "MODEL.PIXEL_CONTRAST.SAMPLER", "per_class"]),
    "confused": ("mcibi", [*EVERY_TERM, "MODEL.CONTEXTRAST.BANE.TARGET", "confused"]),
}


def pretend_gpu(model: torch.nn.Module) -> None:
    """Parameters and buffers, nothing else, move: ``Module.to`` cannot swap such tensors."""
    for module in model.modules():
        for key, p in module._parameters.items():
            if p is not None:
                moved = torch.empty(p.shape, dtype=p.dtype, device="cuda")
                module._parameters[key] = torch.nn.Parameter(moved, p.requires_grad)
        for key, b in module._buffers.items():
            if b is not None:
                module._buffers[key] = torch.empty(b.shape, dtype=b.dtype, device="cuda")


def training_forward(model, dtype=None) -> dict[str, torch.Tensor]:
    pretend_gpu(model)
    images = torch.empty(2, 3, *SIZE, device="cuda")
    labels = torch.empty(2, *SIZE, dtype=torch.int64, device="cuda")
    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        features = model.backbone(images)
        assert features["res5"].dtype == (dtype or torch.float32)
        _, losses = model.sem_seg_head(features, labels)
    return losses


def make_model(case):
    kind, options = CASES[case]
    cfg = load_cfg(str(CONFIGS / "quick_schedules" / f"shapes_{kind}_instant_test.yaml"), options)
    model = build_model(cfg).train()
    for module in model.modules():
        if hasattr(module, "set_progress"):
            module.set_progress(TrainingProgress(cfg.SOLVER.MAX_ITER - 1, cfg.SOLVER.MAX_ITER))
    return model


@pytest.fixture
def autocast_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_training_forward_stays_on_the_gpu(case, dtype, autocast_without_gpu):
    model = make_model(case)
    with FakeTensorMode(allow_non_fake_inputs=True):
        losses = training_forward(model, dtype)
    assert len(losses) >= 2
    for name, loss in losses.items():
        assert (name, loss.device.type, loss.dtype, loss.shape) == (name, "cuda", torch.float32, ())


@pytest.mark.parametrize(
    "spoil, error",
    [
        (lambda logits: logits.argmax(1).flatten()[0].item(), DataDependentOutputException),
        (lambda logits: logits[logits > 0], DynamicOutputShapeException),
        (lambda logits: logits + torch.ones(logits.shape), RuntimeError),
    ],
    ids=["value", "shape", "operand on the host"],
)
def test_a_wait_for_the_host_or_an_operand_there_is_seen(spoil, error):
    model = make_model("pixcontrast")
    model.sem_seg_head.predictor.register_forward_hook(lambda _, __, logits: spoil(logits) and None)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(error):
        training_forward(model)
