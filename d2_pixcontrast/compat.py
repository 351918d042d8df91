"""The one place that knows that detectron2 has versions (0.5 and main are supported).

Everything else in the package imports detectron2 after this module, so that a missing detectron2
gives one clear message.
"""

import inspect
import warnings

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
    from detectron2.config import CfgNode, get_cfg
    from detectron2.projects.deeplab import add_deeplab_config
    from detectron2.utils import comm
    from detectron2.utils.events import EventStorage, get_event_storage

__all__ = [
    "DETECTRON2_VERSION",
    "LAUNCH_TAKES_GPU_FIRST",
    "CfgNode",
    "add_deeplab_config",
    "create_ddp_model",
    "create_local_process_group",
    "current_event_storage",
    "get_cfg",
    "leave_process_group",
]

DETECTRON2_VERSION = detectron2.__version__
_IS_MAIN = hasattr(comm, "create_local_process_group")

# The processes of 0.5's launch() meet before each has its GPU: all on the first one, or on one that
# NCCL guesses from the rank.
LAUNCH_TAKES_GPU_FIRST = _IS_MAIN

# DDP's option, and what torch 2.14 deprecates it for, which sends buffers once, at the start.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = (
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers"
)


def create_local_process_group(per_machine: int) -> None:
    """Tell ``comm`` which ranks share this machine (0.5 has no function for it)."""
    if _IS_MAIN:
        comm.create_local_process_group(per_machine)
        return
    for start in range(0, dist.get_world_size(), per_machine):
        ranks = list(range(start, start + per_machine))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def leave_process_group() -> None:
    """End torch's process group and what ``comm`` keeps of it.

    Groups that outlive it make some exits abort.
    """
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    dist.destroy_process_group()


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
