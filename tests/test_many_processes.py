"""train_net.py in several processes: over two "machines", resumed in another number, and when one
of them dies."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import INSTANT_TEST, ROOT

from d2_pixcontrast.compat import _free_port
from d2_pixcontrast.data import build_train_loader
from d2_pixcontrast.engine import load_cfg

SECONDS = 240  # until a run counts as hanging
OPTIONS = [
    *("TEST.EXPECTED_RESULTS", "[]", "TEST.EVAL_PERIOD", "0", "SOLVER.CHECKPOINT_PERIOD", "1000"),
    *("DATASETS.TEST", "()", "MODEL.SEM_SEG_HEAD.SCALARS_PERIOD", "2"),
]


def start(log, *arguments, options=(), script="train_net.py", env=None):
    command = [sys.executable, str(script), "--config-file", str(INSTANT_TEST), *arguments]
    command = [*map(str, command), *OPTIONS, *map(str, options)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with open(log, "w") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **(env or {})},
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


def wait_for(path, process, seconds=SECONDS):
    end = time.monotonic() + seconds
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def children(pid):
    """Processes that train, without multiprocessing's resource tracker."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "spawn_main"], stdout=subprocess.PIPE)
    return [int(line) for line in found.stdout.split()]


def machines(tmp_path, count, *options):
    """A run of one process on each of two machines: [(process, log)]."""
    url = ("--dist-url", f"tcp://127.0.0.1:{_free_port()}")
    runs = []
    for rank in range(count):
        log = tmp_path / f"machine{rank}.log"
        arguments = ("--num-gpus", 1, "--num-machines", count, "--machine-rank", rank, *url)
        output = ("OUTPUT_DIR", tmp_path / f"machine{rank}")
        runs.append((start(log, *arguments, options=[*output, *options]), log))
    return runs


def test_two_machines_train_end_to_end(tmp_path):
    runs = machines(tmp_path, 2, "SOLVER.MAX_ITER", 6)
    for process, log in runs:
        code, text = finish(process, log)
        assert code == 0, text[-3000:]
    assert "World size: 2" in (tmp_path / "machine0" / "log.txt").read_text()
    assert (tmp_path / "machine0" / "model_final.pth").is_file()
    assert not (tmp_path / "machine1" / "model_final.pth").exists()  # the main process writes


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_machine_ends_the_other_one_with_a_message(tmp_path, dead):
    runs = machines(tmp_path, 2, "SOLVER.MAX_ITER", 100_000)
    wait_for(tmp_path / "machine0" / "metrics.json", runs[0][0])
    os.killpg(runs[dead][0].pid, signal.SIGKILL)
    code, text = finish(*runs[1 - dead])
    finish(*runs[dead])
    print(text[-3000:])
    assert code == 1
    assert re.search("train_net.py: .*", text.splitlines()[-1])


def test_a_killed_process_ends_the_others_with_a_message(tmp_path):
    log = tmp_path / "log"
    options = ["OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 100_000]
    process = start(log, "--num-gpus", 2, options=options)
    wait_for(tmp_path / "run" / "metrics.json", process)
    trained = children(process.pid)
    assert len(trained) == 2
    os.kill(trained[1], signal.SIGKILL)
    code, text = finish(process, log, seconds=60)
    print(text[-3000:])
    assert code == 1
    assert "train_net.py: process 1 terminated with signal SIGKILL" in text


def images(log):
    return [line.split() for line in log.read_text().splitlines()]


def test_a_run_goes_on_in_two_processes_until_one_of_them_meets_a_nan(tmp_path):
    """At the same place in the data; the error names the image of the process that it came from."""
    common = ["OUTPUT_DIR", tmp_path / "run"]
    env = {"IMAGES_LOG": str(tmp_path / "images"), "SPOIL": "1 5"}
    script = ROOT / "tests" / "spoilt_train_net.py"
    log = tmp_path / "one.log"
    alone = start(log, options=[*common, "SOLVER.MAX_ITER", 3], script=script, env=env)
    code, text = finish(alone, log)
    assert code == 0, text[-3000:]
    (tmp_path / "images.0").rename(tmp_path / "alone")

    log = tmp_path / "two.log"
    arguments = ("--num-gpus", 2, "--resume")
    options = [*common, "SOLVER.MAX_ITER", 9]
    code, text = finish(start(log, *arguments, options=options, script=script, env=env), log)
    assert "Resuming at iteration 3" in text
    assert "Resuming with SOLVER.MAX_ITER 9, before 3" in text
    assert "Resuming with number of processes 2, before 1" in text
    loader = build_train_loader(load_cfg(str(INSTANT_TEST), OPTIONS))
    stream = [[s["file_name"] for s in batch] for batch in itertools.islice(loader, 6)]
    assert images(tmp_path / "alone")[:3] == stream[:3]
    parts = [images(tmp_path / f"images.{rank}")[:3] for rank in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == stream[3:]

    assert code == 1
    (spoilt,) = {*re.findall("train_net.py: (not finite at iteration 5: .*)", text)}
    assert spoilt.startswith("not finite at iteration 5: loss_sem_seg, loss_pixel_contrast; images")
    assert stream[5][2] in spoilt and stream[5][0] not in spoilt
    state = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert state["iteration"] == 2  # that of the first run: nothing was saved after it
