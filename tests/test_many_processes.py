"""train_net.py in several processes: over two "machines", resumed in another number, and when one
of them dies."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys

import torch
from conftest import INSTANT_TEST, ROOT

from d2_pixcontrast.data import build_train_loader
from d2_pixcontrast.engine import Trainer, load_cfg
from d2_pixcontrast.engine.processes import _free_port

SECONDS = 240  # until a run counts as hanging
OPTIONS = [
    *("TEST.EXPECTED_RESULTS", "[]", "TEST.EVAL_PERIOD", "0", "SOLVER.CHECKPOINT_PERIOD", "1000"),
    *("DATASETS.TEST", "()", "MODEL.SEM_SEG_HEAD.SCALARS_PERIOD", "2"),
]


def start(log, *arguments, script="train_net.py", **env):
    """train_net.py, or the script that spoils it, with its output in ``log``."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with open(log, "w") as file:
        return subprocess.Popen(
            [sys.executable, str(script), "--config-file", *map(str, (INSTANT_TEST, *arguments))],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **env},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process, log, seconds=SECONDS):
    """Exit status and everything that it said; no process of it is left."""
    try:
        code = process.wait(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return code, log.read_text()


def run_spoilt(tmp_path, *options, **env):
    """Two processes that find the checkpoint of a run of one, if there is one, and go on."""
    log = tmp_path / "log"
    env["IMAGES_LOG"] = str(tmp_path / "images")
    arguments = ("--num-gpus", 2, "--resume", "OUTPUT_DIR", tmp_path / "run", *OPTIONS, *options)
    return finish(start(log, *arguments, script=ROOT / "tests" / "spoilt_train_net.py", **env), log)


def test_two_machines_train_end_to_end(tmp_path):
    """Two launches over the loopback, one process each."""
    url, runs = f"tcp://127.0.0.1:{_free_port()}", []
    for rank in range(2):
        log, output = tmp_path / f"machine{rank}.log", ("OUTPUT_DIR", tmp_path / f"machine{rank}")
        arguments = ("--num-machines", 2, "--machine-rank", rank, "--dist-url", url, *output)
        runs.append((start(log, *arguments, *OPTIONS, "SOLVER.MAX_ITER", 6), log))
    for process, log in runs:
        code, text = finish(process, log)
        assert code == 0, text[-3000:]
        assert "broadcast_buffers" not in text  # of which torch 2.14 says that it is deprecated
    assert "World size: 2" in (tmp_path / "machine0" / "log.txt").read_text()
    state = torch.load(tmp_path / "machine0" / "model_final.pth", weights_only=True)
    assert state["iteration"] == 5
    assert not (tmp_path / "machine1" / "model_final.pth").exists()  # the main process writes


def test_a_killed_process_ends_the_other_one_with_a_message(tmp_path):
    code, text = run_spoilt(tmp_path, "SOLVER.MAX_ITER", 100_000, KILL="1 3")
    assert code == 1
    assert "train_net.py: another process of this run has ended" in text
    # Which of the two ends is seen first is a matter of luck.
    assert re.search(r"train_net.py: process \d terminated with ", text.splitlines()[-1])


def test_a_run_goes_on_in_two_processes_until_one_of_them_meets_a_nan(tmp_path):
    """At the same place in the data; the error names the images of the process that has it."""
    options = [*OPTIONS, "OUTPUT_DIR", tmp_path / "run"]
    cfg = load_cfg(str(INSTANT_TEST), [*map(str, options), "SOLVER.MAX_ITER", "3"])
    (tmp_path / "run").mkdir()
    Trainer(cfg).train()
    code, text = run_spoilt(tmp_path, "SOLVER.MAX_ITER", 9, SPOIL="1 5")
    assert "Resuming at iteration 3" in text
    assert "Resuming with SOLVER.MAX_ITER 9, before 3" in text
    assert "Resuming with number of processes 2, before 1" in text
    stream = [[s["file_name"] for s in b] for b in itertools.islice(build_train_loader(cfg), 6)]
    logs = [(tmp_path / f"images.{rank}").read_text().splitlines() for rank in range(2)]
    for batch, of_ranks in zip(stream[3:], zip(*logs, strict=True), strict=True):
        assert batch == " ".join(of_ranks).split()

    assert code == 1
    (message,) = {*re.findall(r"train_net.py: (not finite .*) \[traceback in ", text)}
    assert message == (
        "not finite at iteration 5: loss_sem_seg, loss_pixel_contrast; images of that process: "
        + ", ".join(stream[5][2:])
    )
    state = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert state["iteration"] == 2  # that of the first run: nothing was saved after it
