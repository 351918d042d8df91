"""What the command line says about processes and flags, and how errors of a training are told."""

import argparse
import io
import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import INSTANT_TEST

from d2_pixcontrast.engine import (
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
