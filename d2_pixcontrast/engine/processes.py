"""Starting one process per GPU, or per rank on the CPU."""

import datetime
import os
import socket
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from detectron2 import engine
from detectron2.utils import comm

from ..compat import LAUNCH_TAKES_GPU_FIRST, create_local_process_group, leave_process_group

__all__ = ["launch"]

# How long a process waits for another one, as in detectron2; NCCL's own ten minutes are less than
# an evaluation may take longer on one than on another.
_TIMEOUT = datetime.timedelta(minutes=30)


def launch(main, num_gpus, num_machines=1, machine_rank=0, dist_url="auto", args=(), device="cuda"):
    """:func:`detectron2.engine.launch`, on the CPU too.

    Several processes are started here on the CPU, where 0.5 refuses to and main would choose NCCL
    if a GPU is visible, and on GPUs with 0.5, see ``LAUNCH_TAKES_GPU_FIRST``.

    Raises:
        ValueError: ``dist_url`` is "auto" with several machines, which cannot agree on a port, has
            no port, or names one of this machine that is taken.
    """
    if num_machines > 1 and dist_url == "auto":
        raise ValueError(
            "several machines need --dist-url tcp://HOST:PORT of machine 0 (auto is for one)"
        )
    world_size = num_gpus * num_machines
    if world_size > 1 and machine_rank == 0 and dist_url.startswith("tcp:"):
        _check_port(dist_url)
    # Under torchrun, older torch would look for its store at dist_url, which nobody would serve.
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    on_gpus = torch.device(device).type == "cuda"
    if world_size == 1 or (on_gpus and LAUNCH_TAKES_GPU_FIRST):
        return engine.launch(main, num_gpus, num_machines, machine_rank, dist_url, args)
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    torch.multiprocessing.spawn(
        _worker,
        nprocs=num_gpus,
        args=(main, on_gpus, world_size, num_gpus, machine_rank, dist_url, args),
    )


def _check_port(dist_url: str) -> None:
    """A process would say so, too, at the end of a long traceback."""
    port = urlsplit(dist_url).port
    if port is None:
        raise ValueError(f"--dist-url is {dist_url}; it needs a port, tcp://HOST:PORT")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", port))
        except OSError as error:
            raise ValueError(
                f"--dist-url is {dist_url}, but port {port} of this machine cannot be had "
                f"({error.strerror}); name another one"
            ) from error


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _worker(local_rank, main, on_gpus, world_size, per_machine, machine_rank, dist_url, args):
    device = {}
    if on_gpus:
        torch.cuda.set_device(local_rank)
        device["device_id"] = torch.device("cuda", local_rank)
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        init_method=dist_url,
        world_size=world_size,
        rank=machine_rank * per_machine + local_rank,
        timeout=_TIMEOUT,
        **device,
    )
    try:
        create_local_process_group(per_machine)
        comm.synchronize()
        main(*args)
        comm.synchronize()  # a rank that leaves while another still talks to it aborts that one
    except BaseException:
        if not on_gpus:  # NCCL would wait here for the others, which wait for this process
            leave_process_group()
        raise
    leave_process_group()
