import pytest
import torch
from detectron2.utils.events import EventStorage

from d2_pixcontrast.engine.step import StepTrainer


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)
        self.dtypes = set()

    def forward(self, data):
        out = self.layer(data)
        self.dtypes.add(out.dtype)
        return {"loss_a": out.float().square().mean(), "loss_b": out.float().abs().mean() * 0.1}


def run(amp_dtype, steps=3):
    model = Toy().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    trainer = StepTrainer(model, [data] * steps, optimizer, amp_dtype)
    with EventStorage() as storage:
        for trainer.iter in range(steps):
            storage.iter = trainer.iter
            trainer.run_step()
    return model, trainer, storage


def test_full_precision_is_plain_sgd():
    model, _, storage = run(None, steps=1)
    reference = Toy()
    losses = reference(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)))
    sum(losses.values()).backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad)
    assert storage.latest()["loss_a"][0] == pytest.approx(losses["loss_a"].item())
    assert model.dtypes == {torch.float32}


def test_a_single_loss_is_recorded_by_its_name():
    class One(Toy):
        def forward(self, data):
            return {"loss_a": super().forward(data)["loss_a"]}

    model = One().train()
    trainer = StepTrainer(model, [torch.ones(5, 4)], torch.optim.SGD(model.parameters(), 0.1))
    with EventStorage() as storage:
        trainer.run_step()
    assert storage.latest()["loss_a"][0] == storage.latest()["total_loss"][0] > 0


@pytest.mark.parametrize("name, dtype", [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_mixed_precision_trains_on_the_cpu_too(name, dtype):
    model, trainer, _ = run(name)
    reference, _, _ = run(None)
    assert model.dtypes == {dtype}
    assert trainer.grad_scaler.is_enabled() == (name == "float16")
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)


def test_scaler_state_is_saved_and_restored():
    _, trainer, _ = run("float16")
    trainer.grad_scaler.update(1024.0)
    state = trainer.state_dict()
    _, other, _ = run("float16")
    other.load_state_dict(state)
    assert other.grad_scaler.get_scale() == 1024.0


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched():
    model = Toy().train()
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = StepTrainer(model, [torch.full((5, 4), torch.nan)], optimizer)
    with EventStorage(), pytest.raises(FloatingPointError, match="iteration=0"):
        trainer.run_step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_unknown_dtype():
    with pytest.raises(ValueError, match=r"SOLVER.AMP.DTYPE is 'float8'"):
        run("float8")
