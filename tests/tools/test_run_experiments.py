"""A grid is trained once, goes on where it stopped, and is reported as the numbers say."""

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from conftest import CONFIGS, INSTANT_TEST, ROOT, load_script
from scipy import stats

from d2_pixcontrast.engine import load_cfg

TOOLS = ROOT / "tools"
SHAPES = str(INSTANT_TEST.relative_to(CONFIGS))


@pytest.fixture(scope="module")
def tool():
    return load_script(TOOLS / "run_experiments.py")


def grid_file(tmp_path, **changes):
    node = {
        "METHODS": {
            "ce": SHAPES,
            "ours": {"CONFIG": SHAPES, "OPTS": ["SOLVER.MAX_ITER", 3, "SOLVER.BASE_LR", 0.01]},
            "other": SHAPES,
        },
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
    assert grid.results.name == path.stem
    if not path.stem.endswith(("_tuning", "_ablation")):
        assert len(grid.seeds) >= 5
        return
    # Settings may be tried with fewer seeds, but not on the images that are reported.
    assert grid.seeds
    for method in grid.methods.values():
        datasets = load_cfg(str(method.config), [*grid.opts, *method.opts]).DATASETS
        assert all(name.endswith("_trainfit") for name in datasets.TRAIN)
        assert all(name.endswith("_trainheld") for name in datasets.TEST)


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiments").glob("*.yaml")), ids=str)
def test_the_grids_options_are_those_of_their_configs(tool, path):
    grid = tool.Grid.load(path)
    for method in grid.methods.values():
        load_cfg(str(method.config), [*grid.opts, *method.opts])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"METHODS": {"ce": "no_such.yaml"}}, "no_such.yaml"),
        ({"BASELINE": "nobody"}, "nobody"),
        ({"EXTRA": 1}, "EXTRA"),
        ({"METHODS": {"ce": {"CONFIG": SHAPES}}}, "CONFIG and OPTS are needed"),
        ({"METHODS": {"ce": {"CONFIG": SHAPES, "OPTS": [], "SEED": 1}}}, "CONFIG and OPTS"),
        ({"METHODS": {"ce": ["a", "b"]}}, "CONFIG and OPTS are needed"),
        ({"METHODS": {"ce": {"CONFIG": "no_such.yaml", "OPTS": []}}}, "no_such.yaml"),
        ({"METHODS": {"ce": sys.executable}}, "outside"),
        ({"SEEDS": [0, 1, 0]}, "twice"),
        ({"SEEDS": 3}, "SEEDS has to be a list, not 3"),
        ({"METHODS": [SHAPES]}, "METHODS has to be names and methods"),
    ],
)
def test_a_wrong_grid_is_refused(tool, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tool.Grid.load(grid_file(tmp_path, **changes))


def test_a_grid_that_is_no_yaml_is_refused(tool, tmp_path):
    (tmp_path / "grid.yaml").write_text("METHODS: {ce: [")
    with pytest.raises(ValueError, match=r"grid\.yaml is no YAML: .* line 1"):
        tool.Grid.load(tmp_path / "grid.yaml")


def test_a_run_is_trained_and_kept_and_not_repeated(tool, tmp_path):
    path = grid_file(tmp_path, SEEDS=[7])
    command = [sys.executable, str(TOOLS / "run_experiments.py"), str(path), "--methods", "ours"]
    command += ["--jobs", "2"]
    options = ["--opts", "DATALOADER.NUM_WORKERS", "0", "TEST.EXPECTED_RESULTS", "[]"]
    first = subprocess.run([*command, *options], capture_output=True, text=True)
    assert "ours, seed 7:" in first.stdout and "nothing is left" in first.stdout, first.stderr
    run = json.loads((tmp_path / "results" / "runs" / "ours_7.json").read_text())
    # The method's options come after those of all.
    assert run["iterations"] == 3 and run["results"]["mIoU"] == run["miou"] == run["curve"]["3"]
    assert run["versions"]["torch"] and run["opts"].index("2") < run["opts"].index("3")
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout == "1 of 1 runs are there\nnothing is left\n", again.stderr


def test_a_kept_run_of_another_recipe_is_refused(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path, OPTS=["SOLVER.STEPS", "(1,)"]))

    def refused(opts, now=()):
        run = {"config": f"configs/{SHAPES}", "opts": opts}
        tool.write_json(grid.kept("ce", 4), run)
        try:
            tool.check_kept(grid, ROOT, list(now))
        except ValueError as error:
            return str(error)

    tool.check_kept(grid, ROOT, [])  # nothing is kept
    assert refused([]) and "SOLVER.STEPS" in refused([])
    assert refused(["SOLVER.STEPS", "[1]"]) is None
    assert refused(["SOLVER.STEPS", "[1]", "SEED", "4", "DATALOADER.NUM_WORKERS", "3"]) is None
    message = refused(["SOLVER.STEPS", "(1,)"], ["SOLVER.MAX_ITER", "9", "MODEL.DEVICE", "cuda"])
    assert "ce_4.json was trained with SOLVER.MAX_ITER" in message and "(now 9)" in message
    assert "RESULTS" in message and "DEVICE" not in message


def test_a_failed_run_names_its_log_and_keeps_nothing(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path))
    with pytest.raises(RuntimeError, match=r"ce, seed 3 .*console\.log"):
        tool.train(grid, "ce", 3, 1, ["DATASETS.TRAIN", "('no_such',)"])
    assert not grid.kept("ce", 3).exists()


def test_seeds_come_one_after_the_other(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path))
    assert grid.runs(["ce", "ours"], [0, 1]) == [("ce", 0), ("ours", 0), ("ce", 1), ("ours", 1)]


class FakeRuns:
    """In place of processes: notes what is started, and how many are under way at once."""

    def __init__(self, tool, monkeypatch, together=1, failing=()):
        self.tool, self.failing, self.started, self.environments = tool, failing, [], []
        self.barrier = threading.Barrier(together)
        monkeypatch.setattr(tool.subprocess, "run", self)
        monkeypatch.setattr(tool, "versions", dict)

    def __call__(self, command, env=None, **_):
        folder = Path(command[command.index("OUTPUT_DIR") + 1])
        self.started.append(folder.name)
        self.environments.append(env)
        self.barrier.wait(timeout=20)  # breaks where fewer than these run at once
        time.sleep(1.0 if self.failing else 0)  # as long as it takes to hear of a failure
        line = {"iteration": 3, "sem_seg/mIoU": 50.0, "time": 0.1}
        (folder / "metrics.json").write_text(json.dumps(line))
        return subprocess.CompletedProcess(command, int(folder.name in self.failing))


def test_jobs_run_side_by_side_and_share_the_cores(tool, tmp_path, monkeypatch):
    grid = tool.Grid.load(grid_file(tmp_path, SEEDS=[3, 4]))
    tool.write_json(grid.kept("ce", 3), {"miou": 1.0})
    tool.write_json(grid.kept("other", 4), {"miou": 1.0})
    fake = FakeRuns(tool, monkeypatch, together=2)
    monkeypatch.setattr(tool.os, "cpu_count", lambda: 5)
    runs = grid.runs(list(grid.methods), grid.seeds)
    tool.train_all(grid, runs, jobs=2, num_gpus=1, opts=[])
    assert sorted(fake.started) == ["ce_4", "other_3", "ours_3", "ours_4"]
    assert all(grid.kept(*run).exists() for run in runs)
    assert json.loads(grid.kept("ce", 3).read_text()) == {"miou": 1.0}  # was not trained again
    assert all(env["OMP_NUM_THREADS"] == "2" for env in fake.environments)
    assert all(env["OMP_WAIT_POLICY"] == "passive" for env in fake.environments)
    assert tool.threads(9)["OMP_NUM_THREADS"] == "1"


def test_a_run_alone_has_the_cores_for_itself(tool, tmp_path, monkeypatch):
    for variable in tool.threads(2):
        monkeypatch.delenv(variable, raising=False)
    grid = tool.Grid.load(grid_file(tmp_path))
    fake = FakeRuns(tool, monkeypatch)
    tool.train_all(grid, [("ce", 3), ("ours", 3)], jobs=1, num_gpus=1, opts=[])
    assert fake.started == ["ce_3", "ours_3"]
    assert not [env for env in fake.environments if tool.threads(2).keys() & env.keys()]


def test_callers_that_srun_has_started_train(tool, tmp_path, monkeypatch):
    """train_net.py would take each for one process of a training."""
    for variable in ("SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(variable, "0")
    grid = tool.Grid.load(grid_file(tmp_path))
    fake = FakeRuns(tool, monkeypatch)
    tool.train_all(grid, [("ce", 3)], jobs=1, num_gpus=1, opts=[])
    assert not {"SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"} & fake.environments[0].keys()


def test_a_run_that_another_driver_trains_is_left_to_it(tool, tmp_path, monkeypatch, capsys):
    grid = tool.Grid.load(grid_file(tmp_path))
    fake = FakeRuns(tool, monkeypatch)
    folder = grid.output / "ce_3"
    folder.mkdir(parents=True)
    # A training holds the lock by itself: its driver may have been killed.
    with tool.lock(folder) as held:
        orphan = subprocess.Popen(["sleep", "60"], pass_fds=[held])
    tool.train_all(grid, [("ce", 3), ("ours", 3)], jobs=1, num_gpus=1, opts=[])
    orphan.kill()
    orphan.wait()
    assert fake.started == ["ours_3"] and "ce, seed 3: left" in capsys.readouterr().out
    tool.train_all(grid, [("ce", 3)], jobs=1, num_gpus=1, opts=[])
    assert fake.started == ["ours_3", "ce_3"]


def test_a_run_that_was_begun_with_another_recipe_does_not_go_on(tool, tmp_path, monkeypatch):
    grid = tool.Grid.load(grid_file(tmp_path))
    fake = FakeRuns(tool, monkeypatch)
    tool.train(grid, "ce", 3, 1, [])
    grid.kept("ce", 3).unlink()
    with pytest.raises(ValueError, match=r"ce_3 was trained with SOLVER.BASE_LR .*now 0.5"):
        tool.train(grid, "ce", 3, 1, ["SOLVER.BASE_LR", "0.5"])
    assert fake.started == ["ce_3"]
    monkeypatch.setattr(tool, "versions", lambda: {"commit": "later"})
    assert tool.train(grid, "ce", 3, 1, ["DATALOADER.NUM_WORKERS", "0"])
    run = json.loads(grid.kept("ce", 3).read_text())
    assert run["versions"] == {"commit": "later"} and run["earlier_versions"] == [{}]


def test_an_evaluation_during_training_is_no_result(tool, tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"iteration": 1999, "sem_seg/mIoU": 50.0, "time": 0.1}))
    with pytest.raises(RuntimeError, match="no evaluation at iteration 3000"):
        tool.read_metrics(path, 3000)
    assert tool.read_metrics(path, 1999)["miou"] == 50


def test_a_seed_that_the_grid_does_not_have_is_refused(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run", str(grid_file(tmp_path)), "--seeds", "3", "9"])
    with pytest.raises(SystemExit, match=r"--seeds \[9\].*has \[3, 4, 5\]"):
        tool.main()


def test_after_a_failure_nothing_more_is_begun(tool, tmp_path, monkeypatch):
    grid = tool.Grid.load(grid_file(tmp_path))
    fake = FakeRuns(tool, monkeypatch, failing=["ours_3"])
    runs = grid.runs(["ce", "ours", "other"], grid.seeds)
    with pytest.raises(RuntimeError, match=r"ours, seed 3 ended with 1; see .*console\.log"):
        tool.train_all(grid, runs, jobs=1, num_gpus=1, opts=[])
    assert grid.kept("ce", 3).exists() and not grid.kept("ours", 3).exists()
    assert fake.started in (["ce_3", "ours_3"], ["ce_3", "ours_3", "other_3"])


def test_a_methods_config_file_is_the_config_with_its_options(tool, tmp_path):
    options = {
        "SOLVER.BASE_LR": "1e-3",
        "SOLVER.MAX_ITER": "7",
        "MODEL.CHANNELS_LAST": "True",
        "MODEL.WEIGHTS": "timm://mobilenetv2_035",
        "MODEL.SEM_SEG_HEAD.ASPP_POOL_NORM": "True",
        "MODEL.PIXEL_CONTRAST.IN_FEATURES": "['res2', 'decoder']",
        "DATASETS.TRAIN": "('shapes_sem_seg_val',)",
    }
    pairs = [part for pair in options.items() for part in pair]
    methods = {"ce": SHAPES, "ours": {"CONFIG": SHAPES, "OPTS": pairs}}
    grid = tool.Grid.load(grid_file(tmp_path, METHODS=methods))
    found = load_cfg(str(tool.write_config(grid, "ours", tmp_path / "method.yaml")))
    plain = load_cfg(str(tool.write_config(grid, "ce", tmp_path / "plain.yaml")))
    assert found == load_cfg(str(INSTANT_TEST), [*grid.opts, *pairs]) != plain
    assert found.SOLVER.BASE_LR == 0.001 and tuple(found.DATASETS.TRAIN) == ("shapes_sem_seg_val",)
    assert found.SOLVER.MAX_ITER == 7  # the method's, not the grid's 2, as in training
    assert plain == load_cfg(str(INSTANT_TEST), grid.opts)


def test_the_report_compares_by_seed(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path))
    draw = random.Random(0)
    values = {m: [draw.uniform(50, 60) for _ in grid.seeds] for m in ("ce", "ours")}
    values["other"] = values["ours"][:1]
    keep(tool, grid, values)
    text = tool.write_report(grid)
    methods = json.loads((grid.results / "results.json").read_text())["methods"]
    assert methods["ours"]["miou"] == values["ours"] and methods["other"]["seeds"] == [3]
    test = stats.ttest_rel(values["ours"], values["ce"])
    oracle = test.confidence_interval(0.95)
    difference = methods["ours"]["difference"]
    low, high = (difference["mean"] + sign * difference["half_width"] for sign in (-1, 1))
    assert (low, high) == pytest.approx((oracle.low, oracle.high))
    assert difference["p"] == difference["p_holm"] == pytest.approx(test.pvalue)
    alone = methods["other"]["difference"]
    assert alone["half_width"] is alone["p"] is alone["p_holm"] is None
    assert methods["ours"]["iou"]["IoU-sky"] == pytest.approx(methods["ours"]["mean"] + 5)
    assert f"{difference['mean']:+.2f} ± {difference['half_width']:.2f}" in text
    assert "of the seeds" not in text
    assert (grid.results / "table.md").read_text() == text
    assert "<svg" in (grid.results / "miou.svg").read_text()


def test_the_report_says_how_many_seeds_were_compared_and_means_what_all_runs_have(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path))
    keep(tool, grid, {"ce": [50.0, 51.0], "ours": [52.0, 54.0, 53.0]})
    run = json.loads(grid.kept("ours", 3).read_text())
    run["results"]["BoundaryIoU"] = 40.0
    tool.write_json(grid.kept("ours", 3), run)
    assert "+2.50 ± 6.35 (2 of the seeds)" in tool.write_report(grid)
    methods = json.loads((grid.results / "results.json").read_text())["methods"]
    assert "mIoU" in methods["ours"]["iou"] and "BoundaryIoU" not in methods["ours"]["iou"]


def test_more_methods_are_more_chances_to_be_lucky():
    """By Holm's steps: 3 x .01, 2 x .03, and .04, which is not below the one before."""
    holm = load_script(TOOLS / "experiment_report.py").holm
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_every_method_but_the_baseline_is_one_comparison(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path, METHODS=dict.fromkeys(("ce", "one", "two"), SHAPES)))
    keep(tool, grid, {"ce": [50.0, 51.0], "one": [52.0, 54.0], "two": [50.0, 51.0]})
    text = tool.write_report(grid)
    assert "| one | 2 | 53.00 | 1.41 | +2.50 ± 6.35 | 0.1257; 0.2513 |" in text
    assert "| two | 2 | 50.50 | 0.71 | +0.00 ± 0.00 | 1.0000; 1.0000 |" in text


def test_the_report_is_a_function_of_the_runs(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path))
    keep(tool, grid, {"ce": [50.0, 51.0]})
    tool.write_report(grid)
    plot = (grid.results / "miou.svg").read_bytes()
    tool.write_report(grid)
    assert (grid.results / "miou.svg").read_bytes() == plot


def test_the_seeds_table_has_every_run_and_its_difference(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path))
    keep(tool, grid, {"ce": [50.0, 51.0], "ours": [52.5, 50.0, 53.0]})
    lines = tool.write_report(grid).splitlines()
    assert lines[-2:] == [
        "| ce | 50.00 | 51.00 |  |",
        "| ours | 52.50 (+2.50) | 50.00 (-1.00) | 53.00 |",
    ]


def test_methods_can_be_compared_with_another_than_the_baseline(tool, tmp_path):
    grid = tool.Grid.load(grid_file(tmp_path))
    keep(tool, grid, {"ce": [50.0, 51.0], "ours": [52.0, 54.0]})
    inference = {"parameters": 3, "gflops": 1.0}
    costs = {
        name: {"time_ratio": ratio, "peak_memory": 10 * ratio, "inference": inference}
        for name, ratio in (("ce", 1.0), ("ours", 1.25))
    }
    tool.write_json(grid.results / "cost.json", costs)
    text = tool.compare(grid, "ours")
    assert (
        "| ce | 2 | 50.50 | 0.71 | -2.50 ± 6.35 | 0.1257; 0.1257 | 0.80 | 0.80 | 3, 1.000 |" in text
    )
    assert "| ce | 50.00 (-2.00) | 51.00 (-3.00) |" in text
    assert not (grid.results / "table.md").exists()
    with pytest.raises(ValueError, match="no finished run of other; of"):
        tool.compare(grid, "other")


def test_no_runs_is_no_report(tool, tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        tool.write_report(tool.Grid.load(grid_file(tmp_path)))
