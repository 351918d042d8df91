"""The short form of the torture: kills at random moments, and a tool that can see a difference."""

import subprocess
import sys

import pytest
import torch
from conftest import CONFIGS, ROOT, load_script

CONFIG = CONFIGS / "quick_schedules" / "shapes_pixcontrast_mem_instant_test.yaml"
TOOL = ROOT / "tools" / "torture_resume.py"


@pytest.fixture(scope="module")
def tool():
    return load_script(TOOL)


def test_killed_runs_end_as_the_one_that_was_left_alone(tmp_path):
    # A seed whose kills come late, when there is a checkpoint to go on from.
    command = [sys.executable, str(TOOL), "--kills", "2", "--iterations", "16", "--seed", "248"]
    command += ["--checkpoint-period", "3", "--output", str(tmp_path / "runs")]
    # Everything at once, the tool's default, takes twice as long.
    command += ["--config-file", str(CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    equal, trials = done.stdout.splitlines()[-1].removesuffix(" equal").split("/")
    assert equal == trials != "0"
    trials = [*(tmp_path / "runs").glob("trial_*")]
    assert any("Resuming at iteration" in (t / "console.log").read_text() for t in trials)


def write_run(folder, weight=1.0, momentum=2.0, loss=3.0):
    folder.mkdir()
    optimizer = {"state": {0: {"momentum_buffer": torch.tensor(momentum)}}, "lr": [0.1]}
    values = {"loss": [[3.0, 1]], "time": [[float(folder.stat().st_ino), 1]]}
    end = {"model": {"w": torch.tensor(weight)}, "trainer": {"o": optimizer, "values": values}}
    torch.save(end, folder / "model_final.pth")
    line = f'{{"iteration": 1, "loss": {loss}, "time": {folder.stat().st_ino}}}\n'
    (folder / "metrics.json").write_text(line)
    return folder


@pytest.mark.parametrize(
    "change, found",
    [
        ({}, []),
        ({"weight": 1.5}, ["model/w"]),
        ({"momentum": 2.5}, ["trainer/o/state/0/momentum_buffer"]),
        ({"loss": 3.5}, ["metrics.json"]),
    ],
)
def test_differences_are_found(tool, tmp_path, change, found):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", **change)
    assert tool.differences(a, b) == found


def test_a_repeated_record_is_a_difference(tool, tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (a / "metrics.json").write_text((a / "metrics.json").read_text() * 2)
    assert "metrics.json repeats an iteration" in tool.differences(a, b)
