"""Processes that talk over gloo, for tests."""

import multiprocessing
import time

import pytest
import torch.multiprocessing as mp

# Processes are forked from a server that has imported what takes the time, once in a test run.
_PRELOAD = ["torch", "torch.distributed", "d2_pixcontrast.engine"]


def run_ranks(worker, args: tuple, world_size: int, seconds: float = 300) -> None:
    """Call ``worker(rank, *args)`` in ``world_size`` processes; the test fails where one fails, or
    where they have not ended after ``seconds``, which is a deadlock."""
    multiprocessing.set_forkserver_preload(_PRELOAD)
    end = time.monotonic() + seconds
    context = mp.start_processes(
        worker, args, nprocs=world_size, join=False, start_method="forkserver"
    )
    while not context.join(timeout=max(0.0, end - time.monotonic())):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail(f"{world_size} processes have not ended after {seconds} s")
