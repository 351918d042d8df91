"""SIGTERM ends a training with a checkpoint, from which it goes on as if nothing had happened."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import INSTANT_TEST, ROOT

from d2_pixcontrast.engine import PREEMPTED

OPTIONS = {
    "SOLVER.CHECKPOINT_PERIOD": 1000,
    "TEST.EXPECTED_RESULTS": "[]",
    "TEST.EVAL_PERIOD": 0,
    "DATALOADER.NUM_WORKERS": 1,
    "SOLVER.IMS_PER_BATCH": 2,
}


def start(output, max_iter, *arguments):
    options = {**OPTIONS, "SOLVER.MAX_ITER": max_iter, "OUTPUT_DIR": output}
    flat = [str(part) for pair in options.items() for part in pair]
    command = [sys.executable, "train_net.py", "--config-file", str(INSTANT_TEST), *arguments]
    # To a file: nobody reads a pipe while the test waits, and a full one would stop the training.
    with open(f"{output}.log", "w") as log:
        return subprocess.Popen(
            [*command, *flat],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process, output, seconds=300):
    """Exit status and everything that it said."""
    try:
        code = process.wait(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with open(f"{output}.log") as log:
        return code, log.read()


def wait_for_records(output, process, seconds=300):
    """Until the first ones are there: it trains."""
    end = time.monotonic() + seconds
    while not (output / "metrics.json").exists():
        if process.poll() is not None or time.monotonic() > end:
            _, text = finish(process, output, seconds=0)
            pytest.fail(f"it does not train: {text[-3000:]}")
        time.sleep(0.05)


@pytest.mark.parametrize("processes, group", [(1, True), (2, False)])
def test_a_preempted_run_leaves_a_checkpoint_and_is_resumed(tmp_path, processes, group):
    """To the process alone, as a container is told, or to its loader workers too, as a job is."""
    output = tmp_path / "run"
    arguments = ("--num-gpus", str(processes))
    process = start(output, 100_000, *arguments)
    wait_for_records(output, process)
    (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
    code, text = finish(process, output)
    assert code == PREEMPTED, text[-3000:]
    assert "Stopped by SIGTERM after iteration" in text
    (checkpoint,) = output.glob("model_*.pth")
    done = torch.load(checkpoint, weights_only=True)["iteration"] + 1
    assert done % (20 if processes > 1 else 1) == 0

    code, text = finish(start(output, done + 20, "--resume", *arguments), output)
    assert code == 0, text[-3000:]
    assert f"Resuming at iteration {done}" in text
    assert f"Resuming with SOLVER.MAX_ITER {done + 20}, before 100000" in text
    lines = (output / "metrics.json").read_text().splitlines()
    iterations = [json.loads(line)["iteration"] for line in lines]
    assert iterations == sorted(set(iterations)) and iterations[-1] == done + 20


def test_a_failing_evaluation_does_not_cost_the_step_before_it(tmp_path):
    code = (
        "import sys\n"
        "from d2_pixcontrast.engine import Trainer, load_cfg\n"
        "cfg = load_cfg(sys.argv[1], sys.argv[2:])\n"
        "trainer = Trainer(cfg)\n"
        "def fail(*args):\n"
        "    raise RuntimeError('evaluation failed')\n"
        "Trainer.test = fail\n"
        "trainer.train()\n"
    )
    options = {**OPTIONS, "TEST.EVAL_PERIOD": 3, "DATALOADER.NUM_WORKERS": 0}
    options["OUTPUT_DIR"] = tmp_path
    flat = [str(part) for pair in options.items() for part in pair]
    command = [sys.executable, "-c", code, str(INSTANT_TEST), *flat]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "evaluation failed" in done.stderr
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
