"""tools/benchmark_contrast.py on tiny problems."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import load_script

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_contrast.py"


@pytest.fixture
def benchmark(monkeypatch):
    module = load_script(TOOL)
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
    losses = {form: benchmark.step(problem, form).loss for form in problem.forms}
    assert losses["ours"] == pytest.approx(losses["published"], rel=0.2)  # other random pixels


def test_all_forms_of_bane_compute_the_same(benchmark):
    pytest.importorskip("scipy")
    problem = benchmark.Bane("cpu", tiny=True)
    sums = [benchmark.step(problem, form).loss for form in problem.forms]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-6) and sums[0] > 0
    assert problem.masks.shape == (2 * 19, 24, 40)


def test_both_forms_of_the_update_learn_the_same(benchmark):
    problem = benchmark.Update("cpu", tiny=True)
    expected = benchmark.loop_update(problem.before, problem.leaf, problem.labels, problem.MOMENTUM)
    problem.ours()
    assert not torch.equal(expected, problem.before) and expected[0].any()
    torch.testing.assert_close(problem.memory.entries[:, 0], expected)


def test_both_forms_of_attention_compute_the_same(benchmark):
    problem = benchmark.Attention(3, 5, "cpu")
    torch.testing.assert_close(problem.published(), problem.ours())


@pytest.mark.parametrize("preset", ["bane", "batch", "mcibi", "memory"])
def test_the_file_holds_the_ratios(benchmark, preset, tmp_path, monkeypatch, capsys):
    extra = {"published": 3000, "cv2": 300, "ours": 30}
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
        both = {form: extra[form] for form in benchmark.Attention.forms}
        assert result["attention"] == dict.fromkeys(["attention-64x128", "attention-128x256"], both)


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
