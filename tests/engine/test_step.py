import copy

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from d2_pixcontrast.contrast import DatasetMemory, StatisticsMemory
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


def test_parameters_that_no_loss_depends_on_are_named_before_several_processes_wait(monkeypatch):
    model = Toy().train()
    model.unread = torch.nn.Linear(2, 2)
    trainer = StepTrainer(model, [torch.ones(5, 4)] * 2, torch.optim.SGD(model.parameters(), 0.1))
    with EventStorage():
        trainer.run_step()  # alone it is no harm
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        before = model.layer.weight.clone()
        with pytest.raises(ValueError, match=r"2 parameters \(unread.weight, .*OUT_FEATURES"):
            trainer.run_step()
    assert torch.equal(model.layer.weight, before)


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


def test_mixed_precision_can_be_turned_on_and_off_between_runs():
    states = {}
    for before in (None, "float16", "bfloat16"):
        _, trainer, _ = run(before)
        states[before] = trainer.state_dict()
    for state in states.values():
        for now in states:
            _, trainer, _ = run(now)
            scale = trainer.grad_scaler.get_scale()
            trainer.load_state_dict(state)
            assert trainer.grad_scaler.get_scale() == scale


class Normed(torch.nn.Module):
    """A model with batch norm, on detectron2's lists of dicts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)

    def forward(self, data):
        out = self.layer(self.norm(torch.stack([sample["x"] for sample in data])))
        return {"loss_a": out.square().mean(), "loss_b": out.abs().mean() * 0.1}


class Root(Normed):
    """A loss of 0 whose slope is NaN."""

    def forward(self, data):
        out = self.layer(self.norm(torch.stack([s["x"] for s in data])))
        return {"loss_a": (out - out.detach()).square().sum().sqrt()}


def sample(name, value=None):
    x = torch.randn(4, generator=torch.Generator().manual_seed(len(name)))
    return {"file_name": name, "x": x if value is None else torch.full((4,), value)}


GOOD = [sample("a.png"), sample("bbb.png")]
BAD = [sample("a.png"), sample("broken.png", torch.nan)]


def train(batches, **kwargs):
    model = Normed().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = StepTrainer(model, batches, optimizer, **kwargs)
    with EventStorage() as storage:
        for trainer.iter in range(len(batches)):
            storage.iter = trainer.iter
            trainer.run_step()
    return model, storage


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched():
    model = Normed().train()
    before = [p.clone() for p in model.parameters()]
    trainer = StepTrainer(model, [BAD], torch.optim.SGD(model.parameters(), 0.1))
    trainer.iter = 7
    message = "not finite at iteration 7: loss_a, loss_b; .* a.png, broken.png"
    with EventStorage(), pytest.raises(FloatingPointError, match=message):
        trainer.run_step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_only_the_loss_that_is_not_finite_is_named():
    class Half(Normed):
        def forward(self, data):
            return {**super().forward(data), "loss_b": torch.tensor(torch.inf)}

    model = Half().train()
    trainer = StepTrainer(model, [GOOD], torch.optim.SGD(model.parameters(), 0.1))
    trainer.iter = 0
    with EventStorage(), pytest.raises(FloatingPointError, match="iteration 0: loss_b;"):
        trainer.run_step()


@pytest.mark.parametrize("amp_dtype", [None, "float16", "bfloat16"])
def test_a_skipped_step_leaves_no_trace(amp_dtype, caplog):
    skipped, storage = train([GOOD, BAD, GOOD], max_skipped_steps=1, amp_dtype=amp_dtype)
    plain, _ = train([GOOD, GOOD], amp_dtype=amp_dtype)
    for name, value in skipped.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=0, atol=0)
    assert storage.history("total_loss").values()[-1][1] == 2
    assert len(storage.history("total_loss").values()) == 2
    assert "broken.png; the step is skipped" in caplog.text


@pytest.mark.parametrize("memory", [DatasetMemory(2, 4), StatisticsMemory(2, 4)])
def test_a_skipped_step_leaves_the_memory_that_the_network_reads(memory):
    """Features may be finite, and enter it, where their loss is not."""
    spoilt = [sample("cc.png"), sample("dddd.png")]

    class Remembering(Normed):
        def __init__(self):
            super().__init__()
            self.memory = copy.deepcopy(memory)

        def forward(self, data):
            features = self.norm(torch.stack([sample["x"] for sample in data]))[..., None, None]
            self.memory.update(
                features.detach(),
                torch.zeros(len(features), 1, 1, dtype=torch.long),
                momentum=0.9,
                ignore_value=255,
            )
            loss = self.layer(features[..., 0, 0]).square().mean()
            return {"loss_a": loss * torch.inf if data is spoilt else loss}

    model = Remembering().train()
    trainer = StepTrainer(
        model, [GOOD, spoilt], torch.optim.SGD(model.parameters(), 0.1), max_skipped_steps=1
    )
    with EventStorage():
        for trainer.iter in range(2):
            before = {k: v.clone() for k, v in model.state_dict().items()}
            trainer.run_step()
    assert model.memory.filled[0] and not model.memory.filled[1]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_gradient_that_is_not_finite_is_skipped_too(caplog):
    model = Root().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer = StepTrainer(
        model, [GOOD], torch.optim.SGD(model.parameters(), 0.1), max_skipped_steps=1
    )
    trainer.iter = 0
    with EventStorage():
        trainer.run_step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert "a gradient" in caplog.text


@pytest.mark.parametrize("amp_dtype", [None, "bfloat16"])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched(amp_dtype):
    model = Root().train()
    before = [p.clone() for p in model.parameters()]
    trainer = StepTrainer(model, [GOOD], torch.optim.SGD(model.parameters(), 0.1), amp_dtype)
    trainer.iter = 7
    with (
        EventStorage(),
        pytest.raises(FloatingPointError, match="iteration 7: a gradient; .* a.png, bbb.png"),
    ):
        trainer.run_step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("max_skipped_steps", [0, 2])
def test_half_precision_does_not_go_on_for_ever_without_a_finite_gradient(max_skipped_steps):
    """The scaler skips each of these steps without a word."""
    model = Root().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = StepTrainer(model, [GOOD] * 60, optimizer, "float16", max_skipped_steps)
    with (
        EventStorage() as storage,
        pytest.raises(FloatingPointError, match=r"a gradient, .* loss scale .* fallen to"),
    ):
        for trainer.iter in range(60):
            storage.iter = trainer.iter
            trainer.run_step()
    assert trainer.iter == 39


def test_too_many_skipped_steps_in_a_row_stop_the_training():
    train([BAD, BAD, GOOD, BAD, BAD], max_skipped_steps=2)
    with pytest.raises(FloatingPointError, match="2 steps before it were skipped"):
        train([BAD, BAD, BAD], max_skipped_steps=2)


def test_spikes_are_logged_with_their_images(caplog):
    spike = [sample("a.png"), sample("spiky.png")]

    class Spiky(Normed):
        def forward(self, data):
            loss = super().forward(data)["loss_a"] * 0 + 1
            return {"loss_a": loss * (11 if data[1]["file_name"] == "spiky.png" else 1)}

    for factor, seen in ((5.0, True), (20.0, False), (0.0, False)):
        caplog.clear()
        model = Spiky().train()
        batches = [GOOD] * 20 + [spike, GOOD]
        trainer = StepTrainer(
            model, batches, torch.optim.SGD(model.parameters(), 0.0), spike_factor=factor
        )
        with EventStorage() as storage:
            for trainer.iter in range(22):
                storage.iter = trainer.iter
                trainer.run_step()
        lines = [r.getMessage() for r in caplog.records if "spike" in r.getMessage()]
        assert len(lines) == seen
        assert not seen or ("iteration 20: 11," in lines[0] and "spiky.png" in lines[0])


@pytest.mark.parametrize("key", ["max_skipped_steps", "spike_factor"])
def test_negative_numbers_are_refused(key):
    with pytest.raises(ValueError, match=r"SOLVER\.\w+ is -1"):
        train([GOOD], **{key: -1})


def test_unknown_dtype():
    with pytest.raises(ValueError, match=r"SOLVER.AMP.DTYPE is 'float8'"):
        run("float8")
