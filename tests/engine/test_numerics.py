"""Everything on at once in mixed precision and at a low temperature, and what a NaN does."""

import itertools

import pytest
import torch
from conftest import CONFIGS
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from d2_pixcontrast.contrast import nearest_resize
from d2_pixcontrast.engine import Trainer, load_cfg, one_line_errors
from d2_pixcontrast.engine.step import StepTrainer
from d2_pixcontrast.modeling.terms import TrainingProgress

CONFIG = CONFIGS / "quick_schedules" / "shapes_{}_instant_test.yaml"
STEPS = 3
TERMS = ["PIXEL_CONTRAST", "CONTEXTRAST", "MULTI_SCALE_CONTRAST"]
EVERYTHING = [
    *("MODEL.SEM_SEG_HEAD.TERMS", ["PixelContrast", "Contextrast", "MultiScaleContrast"]),
    *("MODEL.TIMM.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.PIXEL_CONTRAST.WARMUP", 0.0),
    *("MODEL.PIXEL_CONTRAST.NEGATIVES", "bane"),
    *("MODEL.PIXEL_CONTRAST.MEMORY.ENABLED", True),
    *("MODEL.PIXEL_CONTRAST.MEMORY.PIXEL_SIZE", 50),
    *("MODEL.PIXEL_CONTRAST.MEMORY.WITH_BATCH", True),
    *("MODEL.MULTI_SCALE_CONTRAST.MAX_SAMPLES", 100),
    *("MODEL.MULTI_SCALE_CONTRAST.MIN_PIXELS", 1),
]
WIDE = {torch.float32, torch.float64}
# Operators that half precision would ruin, by their names in torch.ops.aten.
DELICATE = {
    *("exp", "log", "log1p", "softplus", "logsumexp", "logaddexp", "_softmax", "_log_softmax"),
    *("linalg_vector_norm", "reciprocal", "sum", "mean", "bmm", "baddbmm"),
}


class ResultTypes(TorchDispatchMode):
    """Records the floating types of all operators' results, by the operators' names."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        types = {t.dtype for t in leaves if t.dtype.is_floating_point}
        self.found.setdefault(func.overloadpacket.__name__, set()).update(types)
        return result

    def watch(self, owner, name):
        """Record within this method alone."""
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            with self:
                return original(*args, **kwargs)

        setattr(owner, name, watched)


def batch(seed):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (2, 3, 64, 64), generator=g).float()
    labels = nearest_resize(torch.randint(8, (2, 4, 4), generator=g), (64, 64)).clone()
    labels[:, :4] = 255
    return [
        {"image": image, "sem_seg": label, "file_name": f"{seed}_{i}.png"}
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


@pytest.mark.parametrize(
    "amp_dtype, kind",
    [(None, "mcibi"), *itertools.product(["bfloat16", "float16"], ["mcibi", "mcibi_pp"])],
)
def test_all_terms_and_memories_are_finite_and_wide_in_any_precision(amp_dtype, kind):
    """At temperatures of 0.01, where exp(1 / tau) is beyond float32."""
    low = [part for name in TERMS for part in (f"MODEL.{name}.TEMPERATURE", 0.01)]
    torch.manual_seed(0)
    model = build_model(load_cfg(str(CONFIG).format(kind), EVERYTHING + low)).train()
    head, in_terms, in_memory = model.sem_seg_head, ResultTypes(), ResultTypes()
    for term in head.terms.values():
        in_terms.watch(term, "forward")
    in_memory.watch(head.aggregation.memory, "update")
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.001)
    trainer = StepTrainer(model, [batch(i) for i in range(STEPS)], optimizer, amp_dtype)
    if amp_dtype == "float16":  # found by itself, the scale would take a dozen steps
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    with EventStorage() as storage:
        for trainer.iter in range(STEPS):
            storage.iter = trainer.iter
            head.set_progress(TrainingProgress(trainer.iter, STEPS, seed=3))
            trainer.run_step()
            assert all(p.grad.isfinite().all() for p in model.parameters())
        recorded = storage.latest()

    losses = {name: value for name, (value, _) in recorded.items() if name.startswith("loss")}
    assert {"loss_pixel_contrast", "loss_contextrast", "loss_multiscale_contrast"} <= losses.keys()
    assert all(value > 0 for value in losses.values()), losses  # NaN is not, and inf has stopped
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    state = model.state_dict()
    assert all(v.isfinite().all() for v in state.values())
    assert {v.dtype for v in state.values()} == {torch.float32, torch.int64}
    assert head.aggregation.memory.fill_ratio().min() == 1
    assert head.terms["PixelContrast"].bank.fill_ratio().min() > 0

    half = {torch.bfloat16, torch.float16}
    assert bool(half & in_terms.found["convolution"]) == (amp_dtype is not None)
    delicate = DELICATE & in_terms.found.keys()
    assert {"log", "sum", "linalg_vector_norm"} <= delicate
    assert not [name for name in delicate if in_terms.found[name] - WIDE]
    assert not [name for name, types in in_memory.found.items() if types - WIDE - half]
    assert not [n for n in DELICATE & in_memory.found.keys() if in_memory.found[n] - WIDE]
    assert in_memory.found["sum"] <= WIDE


def test_a_nan_in_the_logits_stops_the_training_and_is_named(tmp_path):
    options = ["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", 5, "DATASETS.TEST", ()]
    trainer = Trainer(load_cfg(str(CONFIG).format("mcibi"), EVERYTHING + options))
    seen = []
    trainer.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    def spoil(module, args, logits):
        return logits * torch.nan if len(seen) == 3 else None

    trainer.model.sem_seg_head.predictor.register_forward_hook(spoil)
    with pytest.raises(SystemExit) as error, one_line_errors(trainer.cfg):
        trainer.train()
    names = ", ".join(sample["file_name"] for sample in seen[2])
    assert str(error.value).startswith(
        f"train_net.py: not finite at iteration 2: loss_sem_seg, loss_memory_consistency; "
        f"images of that process: {names}"
    )
    assert not list(tmp_path.glob("*.pth"))
    assert "FloatingPointError" in (tmp_path / "traceback_rank0.txt").read_text()
