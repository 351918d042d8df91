"""What the command line says about processes and flags, and how errors of a training are told."""

import argparse
import io
import logging
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import INSTANT_TEST

from d2_pixcontrast import compat
from d2_pixcontrast.compat import launch
from d2_pixcontrast.engine import (
    default_argument_parser,
    make_output_dir,
    one_line_errors,
    setup,
    setup_cfg,
)


def arguments(*opts, num_gpus=1):
    return argparse.Namespace(
        config_file=str(INSTANT_TEST),
        opts=list(opts),
        eval_only=False,
        num_gpus=num_gpus,
        num_machines=1,
    )


@pytest.mark.parametrize(
    "device, processes, message",
    [
        ("cpu", 0, "--num-gpus is 0; it is the number of processes"),
        ("cpu", -1, "--num-gpus is -1"),
        ("cuda", 4, "--num-gpus is 4, but torch sees 2"),
        ("cuda:2", 1, "MODEL.DEVICE is 'cuda:2', but torch sees 2 GPUs"),
        ("cuda:1", 2, "MODEL.DEVICE is 'cuda:1', one GPU, for 2 processes; with 'cuda' each"),
        ("cpu", 4, None),
        ("cuda:1", 1, None),
        ("cuda", 2, None),
    ],
)
def test_as_many_processes_as_gpus(monkeypatch, device, processes, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args = arguments("MODEL.DEVICE", device, num_gpus=processes)
    if message is None:
        setup_cfg(args)
        return
    with pytest.raises(ValueError, match=message):
        setup_cfg(args)


def test_a_flag_behind_the_pairs_is_no_key():
    with pytest.raises(ValueError, match="--eval-only has to stand before the KEY VALUE pairs"):
        setup_cfg(arguments("MODEL.WEIGHTS", "x.pth", "--eval-only"))


def test_a_numbered_gpu_is_not_for_two_machines(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args = arguments("MODEL.DEVICE", "cuda:1")
    args.num_machines = 2
    with pytest.raises(ValueError, match="one GPU, for 2 processes"):
        setup_cfg(args)


SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    "environment, machines, refused",
    [
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}, 1, "torchrun"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}, 4, "torchrun"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}, 1, "torchrun"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}, 4, None),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "1"}, 1, "srun"),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "2"}, 4, "srun"),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "4"}, 4, None),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "1", "SLURM_PTY_PORT": "1"}, 1, None),
        ({"WORLD_SIZE": "4", "SLURM_STEP_NUM_TASKS": "4"}, 1, None),  # of another program
    ],
)
def test_a_process_per_gpu_that_something_else_starts_is_refused(
    environment, machines, refused, monkeypatch
):
    for key in (*TORCHRUN, *SRUN, "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_NODES", "SLURM_PTY_PORT"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    args = arguments("MODEL.DEVICE", "cpu")
    args.num_machines = machines
    if refused is None:
        setup_cfg(args)
        return
    message = rf"{refused} has started 4 of these .*--num-machines {machines}; .*env -u [A-Z_]+_ID"
    with pytest.raises(ValueError, match=message):
        setup_cfg(args)


def test_processes_meet_at_an_address_of_their_own_under_torchrun(monkeypatch):
    """Its store is served by torchrun itself, and older torch would look for it anywhere."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    found = []
    monkeypatch.setattr(
        torch.multiprocessing, "spawn", lambda *_, **__: found.append({**os.environ})
    )
    launch(None, 2, device="cpu")
    assert "TORCHELASTIC_USE_AGENT_STORE" not in found[0]


@pytest.fixture
def calls(monkeypatch):
    """What a worker does, with nothing behind it."""
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("gpu", device)))
    monkeypatch.setattr(compat.dist, "init_process_group", lambda *args, **kw: calls.append(kw))
    monkeypatch.setattr(compat.dist, "destroy_process_group", lambda: calls.append("end"))
    monkeypatch.setattr(compat, "_create_local_process_group", calls.append)
    monkeypatch.setattr(compat.comm, "synchronize", lambda: calls.append("all meet"))
    return calls


def test_a_gpu_is_the_process_own_before_it_meets_the_others(calls):
    """In the place of detectron2 0.5's own worker: process 1 of the second machine, two on each."""
    compat._worker(1, lambda: calls.append("main"), True, 4, 2, 1, "tcp://host:1", ())
    group = calls.pop(1)
    assert calls == [("gpu", 1), 2, "all meet", "main", "all meet", "end"]
    assert (group["rank"], group["world_size"]) == (3, 4)
    assert group["device_id"] == torch.device("cuda", 1)
    assert group["timeout"].total_seconds() == 1800


@pytest.mark.parametrize("on_gpus", [True, False])
def test_a_process_that_fails_does_not_wait_for_the_others(calls, on_gpus):
    """As ending NCCL's group would."""
    with pytest.raises(SystemExit, match="the reason"):
        compat._worker(0, sys.exit, on_gpus, 2, 2, 0, "tcp://host:1", ("the reason",))
    assert ("end" in calls) != on_gpus


def test_a_chosen_gpu_is_the_current_one(small_cfg, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(setup, "default_setup", lambda *_: None)
    for device in ("cpu", "cuda", "cuda:1"):
        small_cfg.MODEL.DEVICE = device
        setup.prepare(small_cfg, argparse.Namespace(eval_only=False))
    assert chosen == [torch.device("cuda", 1)]


@pytest.mark.parametrize(
    "error, message",
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed"), "another process of"),
        (dist.DistBackendError("NCCL error: Duplicate GPU"), "cannot talk .* NCCL_DEBUG=INFO"),
        (dist.DistNetworkError("client socket has timed out"), "another process of"),
    ],
)
def test_failed_collectives_are_told_for_what_they_may_be(small_cfg, error, message):
    make_output_dir(small_cfg)
    with pytest.raises(SystemExit, match=message), one_line_errors(small_cfg):
        raise error


def test_two_trainings_on_a_machine_do_not_share_a_port():
    assert default_argument_parser().parse_args([]).dist_url == "auto"


def test_a_port_that_is_taken_is_told_before_any_process_starts():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} of this machine .*in use.*another"):
            launch(None, 2, dist_url=f"tcp://127.0.0.1:{port}", device="cpu")
        with pytest.raises(ValueError, match="several machines need"):
            launch(None, 1, num_machines=2, device="cpu")
    with pytest.raises(ValueError, match=r"--dist-url is tcp://host; it needs a port"):
        launch(None, 1, num_machines=2, dist_url="tcp://host", device="cpu")


@pytest.mark.parametrize("error", [ValueError("bad"), OSError("full"), FloatingPointError("NaN")])
def test_the_loop_logs_no_traceback_of_what_ends_in_one_line(small_cfg, error):
    """As detectron2's loop does it; what is a defect, and what is logged elsewhere, keeps its."""

    def fail(error):
        try:
            raise error
        except Exception:
            logger.exception("Exception during training:")
            raise

    make_output_dir(small_cfg)
    logger, text = logging.getLogger("detectron2.engine.train_loop"), io.StringIO()
    handler = logging.StreamHandler(text)
    logger.addHandler(handler)
    try:
        with pytest.raises(SystemExit, match=str(error)), one_line_errors(small_cfg):
            fail(error)
        assert text.getvalue() == "Exception during training:\n"
        assert "Traceback" in (Path(small_cfg.OUTPUT_DIR) / "traceback_rank0.txt").read_text()
        with pytest.raises(KeyError), one_line_errors(small_cfg):
            fail(KeyError("a defect"))
        assert text.getvalue().count("Traceback") == 1
        with pytest.raises(type(error)):
            fail(error)
        assert text.getvalue().count("Traceback") == 2
    finally:
        logger.removeHandler(handler)
