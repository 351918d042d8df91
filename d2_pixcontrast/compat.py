"""The one place that knows that detectron2 has versions (0.5 and main are supported).

Everything else in the package imports detectron2 after this module, so that a missing detectron2
gives one clear message.
"""

import datetime
import inspect
import os
import socket
import warnings
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

try:
    import detectron2
except ImportError as error:
    raise ImportError(
        "d2_pixcontrast needs detectron2, which cannot be imported "
        f"({error}). In a clone of d2_pixcontrast, `make env` or `python "
        "tools/install_detectron2.py` installs it; elsewhere follow detectron2's INSTALL.md "
        "(https://detectron2.readthedocs.io/tutorials/install.html)."
    ) from error

with warnings.catch_warnings():
    # Its modules script functions while they are imported, and torch says that this is deprecated.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    from detectron2 import engine
    from detectron2.config import CfgNode, get_cfg
    from detectron2.projects.deeplab import add_deeplab_config
    from detectron2.utils import comm
    from detectron2.utils.events import EventStorage, get_event_storage

__all__ = [
    "DETECTRON2_VERSION",
    "CfgNode",
    "add_deeplab_config",
    "create_ddp_model",
    "current_event_storage",
    "get_cfg",
    "launch",
]

DETECTRON2_VERSION = detectron2.__version__
_IS_MAIN = hasattr(comm, "create_local_process_group")

# DDP's option, and what torch 2.14 deprecates it for, which sends buffers once, at the start.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = (
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers"
)

# How long a process waits for another one, as in detectron2; NCCL's own ten minutes are less than
# an evaluation may take longer on one than on another.
_TIMEOUT = datetime.timedelta(minutes=30)


def launch(main, num_gpus, num_machines=1, machine_rank=0, dist_url="auto", args=(), device="cuda"):
    """:func:`detectron2.engine.launch`, on the CPU too.

    On GPUs this is main's own. The processes are started here with version 0.5, where they meet
    before each has its GPU (all on the first one, or on one that NCCL guesses from the rank), and
    on the CPU, where 0.5 refuses to start and main would choose NCCL if a GPU is visible.

    Raises:
        ValueError: ``dist_url`` is "auto" with several machines, which cannot agree on a port, or
            names one of this machine that is taken.
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
    if world_size == 1 or (on_gpus and _IS_MAIN):
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
        _create_local_process_group(per_machine)
        comm.synchronize()
        main(*args)
        comm.synchronize()  # a rank that leaves while another still talks to it aborts that one
    except BaseException:
        if not on_gpus:  # NCCL would wait here for the others, which wait for this process
            _leave()
        raise
    _leave()


def _leave() -> None:
    # Groups that outlive the process group make some exits abort.
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    dist.destroy_process_group()


def _create_local_process_group(per_machine: int) -> None:
    """Tell ``comm`` which ranks share this machine (0.5 has no function for it)."""
    if _IS_MAIN:
        comm.create_local_process_group(per_machine)
        return
    for start in range(0, dist.get_world_size(), per_machine):
        ranks = list(range(start, start + per_machine))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def create_ddp_model(model: torch.nn.Module) -> torch.nn.Module:
    """DistributedDataParallel as detectron2 sets it up, for modules on the CPU too.

    Buffers are not broadcast in each step (memory banks are equal on all ranks by construction)
    and unused parameters are not searched for (every term keeps an edge to its parameters).
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).device.type == "cuda"
    device_ids = [comm.get_local_rank()] if on_gpu else None
    return DistributedDataParallel(model, device_ids=device_ids, **{_SYNC_BUFFERS: False})


def current_event_storage() -> EventStorage | None:
    """The storage of the training loop that runs now, or None outside one (0.5 cannot be asked)."""
    try:
        return get_event_storage()
    except AssertionError:
        return None
