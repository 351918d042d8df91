"""tools/benchmark_contrast.py on tiny problems."""

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_contrast.py"


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_contrast", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_contrast", module)
    spec.loader.exec_module(module)
    tiny = {name: functools.partial(p, tiny=True) for name, p in module.PRESETS.items()}
    monkeypatch.setattr(module, "PRESETS", tiny)
    return module


def test_both_forms_of_the_memory_compute_the_same(benchmark):
    problem = benchmark.Memory("cpu", tiny=True)
    results = []
    for loss in (problem.published(mask_self=False), problem.ours()):
        results.append((loss, torch.autograd.grad(loss, problem.leaf)[0]))
    torch.testing.assert_close(*results)


def test_both_forms_of_the_batch_sample_alike(benchmark):
    problem = benchmark.Batch("cpu", tiny=True)
    losses = {form: benchmark.step(problem, form).loss for form in benchmark.FORMS}
    assert losses["ours"] == pytest.approx(losses["published"], rel=0.2)  # other random pixels


def test_both_forms_of_the_update_learn_the_same(benchmark):
    problem = benchmark.Update("cpu", tiny=True)
    expected = benchmark.loop_update(problem.before, problem.leaf, problem.labels, problem.MOMENTUM)
    problem.ours()
    assert not torch.equal(expected, problem.before) and expected[0].any()
    torch.testing.assert_close(problem.memory.entries[:, 0], expected)


def test_both_forms_of_attention_compute_the_same(benchmark):
    problem = benchmark.Attention(3, 5, "cpu")
    torch.testing.assert_close(problem.published(), problem.ours())


@pytest.mark.parametrize("preset", ["batch", "memory", "mcibi"])
def test_the_file_holds_the_ratios(benchmark, preset, tmp_path, monkeypatch, capsys):
    extra = {"published": 3000, "ours": 30}
    monkeypatch.setattr(
        benchmark, "extra_bytes_of_fresh_process", lambda preset, form, device: extra[form]
    )
    path = tmp_path / "result.json"
    benchmark.main(["--preset", preset, "--json", str(path), "--rounds", "2"])
    result = json.loads(path.read_text())
    assert result == json.loads(capsys.readouterr().out)
    published, ours = result["published"], result["ours"]
    assert result["time_ratio"] == published["seconds"] / ours["seconds"] > 0
    assert result["memory_ratio"] == 100
    assert (published["extra_bytes"], ours["extra_bytes"]) == (3000, 30)
    if preset == "mcibi":
        assert result["attention"] == dict.fromkeys(
            ["attention-64x128", "attention-128x256"], extra
        )


ALLOCATES_40_MIB = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import benchmark_contrast

class Problem:
    leaf = torch.ones(1, requires_grad=True)
    inputs = torch.ones(30 << 20)

    def ours(self):
        return self.leaf.sum() + torch.ones(10 << 20).sum()

sys.stdout.write(str(benchmark_contrast.extra_bytes(Problem(), "ours")))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc")
def test_peak_memory_is_counted_above_the_inputs():
    command = [sys.executable, "-c", ALLOCATES_40_MIB, str(TOOL.parent)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(run.stdout) == pytest.approx(40 << 20, rel=0.25)
