"""A grid is trained once, goes on where it stopped, and is reported as the numbers say."""

import importlib.util
import json
import random
import subprocess
import sys

import pytest
import yaml
from conftest import CONFIGS, INSTANT_TEST, ROOT
from scipy import stats

TOOLS = ROOT / "tools"


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location(
            "run_experiments", TOOLS / "run_experiments.py"
        )
        module = sys.modules["run_experiments"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    return module


def grid_file(tmp_path, **changes):
    shapes = str(INSTANT_TEST.relative_to(CONFIGS))
    node = {
        "METHODS": {"ce": shapes, "ours": shapes, "other": shapes},
        "SEEDS": [3, 4, 5],
        "BASELINE": "ce",
        "OPTS": ["SOLVER.MAX_ITER", 2],
        "RESULTS": str(tmp_path / "results"),
        "OUTPUT": str(tmp_path / "output"),
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**node, **changes}))
    return path


def keep(tool, grid, values):
    for method, mious in values.items():
        for seed, miou in zip(grid.seeds, mious):
            run = {"miou": miou, "versions": {"commit": "abc"}, "curve": {"1": miou - 1, "2": miou}}
            run["results"] = {"mIoU": miou, "IoU-sky": miou + 5}
            tool.write_json(grid.kept(method, seed), run)


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiments").glob("*.yaml")), ids=str)
def test_the_grids_name_configs_that_exist(tool, path):
    grid = tool.Grid.load(path)
    assert len(grid.seeds) >= 5 and grid.results.name == path.stem


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"METHODS": {"ce": "no_such.yaml"}}, "no_such.yaml"),
        ({"BASELINE": "nobody"}, "nobody"),
        ({"EXTRA": 1}, "EXTRA"),
    ],
)
def test_a_wrong_grid_is_refused(tool, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tool.Grid.load(grid_file(tmp_path, **changes))


def test_a_run_is_trained_and_kept_and_not_repeated(tool, tmp_path):
    path = grid_file(tmp_path, SEEDS=[7])
    command = [sys.executable, str(TOOLS / "run_experiments.py"), str(path), "--methods", "ours"]
    options = ["--opts", "DATALOADER.NUM_WORKERS", "0", "TEST.EXPECTED_RESULTS", "[]"]
    first = subprocess.run([*command, *options], capture_output=True, text=True)
    assert "ours, seed 7:" in first.stdout and "nothing is left" in first.stdout, first.stderr
    run = json.loads((tmp_path / "results" / "runs" / "ours_7.json").read_text())
    assert run["iterations"] == 2 and run["results"]["mIoU"] == run["miou"] == run["curve"]["2"]
    assert run["versions"]["torch"] and "SOLVER.MAX_ITER" in run["opts"]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout == "1 of 1 runs are there\nnothing is left\n", again.stderr


def test_a_failed_run_names_its_log_and_keeps_nothing(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path))
    with pytest.raises(RuntimeError, match=r"ce, seed 3 .*console\.log"):
        tool.train(grid, "ce", 3, 1, ["SOLVER.NO_SUCH_KEY", "1"])
    assert not grid.kept("ce", 3).exists()


def test_seeds_come_one_after_the_other(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path))
    assert grid.runs(["ce", "ours"], [0, 1]) == [("ce", 0), ("ours", 0), ("ce", 1), ("ours", 1)]


def test_the_report_compares_by_seed(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path))
    draw = random.Random(0)
    values = {m: [draw.uniform(50, 60) for _ in grid.seeds] for m in ("ce", "ours")}
    values["other"] = values["ours"][:1]
    keep(tool, grid, values)
    text = tool.write_report(grid)
    methods = json.loads((grid.results / "results.json").read_text())["methods"]
    assert methods["ours"]["miou"] == values["ours"] and methods["other"]["seeds"] == [3]
    oracle = stats.ttest_rel(values["ours"], values["ce"]).confidence_interval(0.95)
    difference = methods["ours"]["difference"]
    low, high = (difference["mean"] + sign * difference["half_width"] for sign in (-1, 1))
    assert (low, high) == pytest.approx((oracle.low, oracle.high))
    assert methods["other"]["difference"]["half_width"] is None
    assert methods["ours"]["iou"]["IoU-sky"] == pytest.approx(methods["ours"]["mean"] + 5)
    assert f"{difference['mean']:+.2f} ± {difference['half_width']:.2f}" in text
    assert (grid.results / "table.md").read_text() == text
    assert "<svg" in (grid.results / "miou.svg").read_text()


def test_the_report_is_a_function_of_the_runs(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path))
    keep(tool, grid, {"ce": [50.0, 51.0]})
    tool.write_report(grid)
    plot = (grid.results / "miou.svg").read_bytes()
    tool.write_report(grid)
    assert (grid.results / "miou.svg").read_bytes() == plot


def test_no_runs_is_no_report(tool, tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        tool.write_report(tool.Grid.load(grid_file(tmp_path)))
