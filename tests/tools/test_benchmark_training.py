"""tools/benchmark_training.py: that a step is the training's, and what is told of a failed one."""

import json
import sys

import pytest
import torch
from conftest import INSTANT_TEST, ROOT, load_script

PATH = ROOT / "tools" / "benchmark_training.py"


@pytest.fixture
def benchmark():
    return load_script(PATH)


def test_two_configs_are_compared(benchmark, tmp_path, monkeypatch):
    """As a command; the first one is the reference, and the second does something more."""
    plain = tmp_path / "plain.yaml"
    plain.write_text(f"_BASE_: {INSTANT_TEST}\nMODEL: {{SEM_SEG_HEAD: {{TERMS: []}}}}\n")
    out = tmp_path / "out.json"
    arguments = [str(plain), str(INSTANT_TEST), "--iterations", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmark_training.py", *arguments])
    monkeypatch.setattr(benchmark.logging, "disable", lambda _: None)
    benchmark.main()
    first, second = json.loads(out.read_text()).values()
    assert first["time_ratio"] == 1.0 and second["time_ratio"] > 0
    assert second["training_parameters"] > first["training_parameters"]
    assert second["inference"] == first["inference"]
    assert min(first["peak_memory"], second["peak_memory"]) > 50e6  # of Python with torch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_step_is_the_trainings(benchmark, dtype):
    """It changes the weights, in the precision of the config."""
    amp = dtype != "float32"
    opts = ["SOLVER.AMP.ENABLED", str(amp), *(("SOLVER.AMP.DTYPE", dtype) if amp else ())]
    contestant = benchmark.Contestant(str(INSTANT_TEST), opts)
    weight = contestant.model.sem_seg_head.predictor.weight
    before, dtypes = weight.detach().clone(), set()
    contestant.model.sem_seg_head.predictor.register_forward_hook(
        lambda _, __, output: dtypes.add(output.dtype)
    )
    contestant.step(next(iter(benchmark.Trainer.build_train_loader(contestant.cfg))))
    assert dtypes == {getattr(torch, dtype)}
    assert not torch.equal(weight, before) and len(contestant.seconds) == 1


def test_a_step_that_fails_on_its_own_is_named(benchmark, tmp_path, capfd):
    with pytest.raises(ValueError, match=r"the step of .*missing.yaml cannot be measured, see abo"):
        benchmark.peak_memory(str(tmp_path / "missing.yaml"), [])
    assert "missing.yaml" in capfd.readouterr().err
