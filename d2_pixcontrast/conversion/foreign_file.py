"""Checkpoints of other code bases: their tensors, whatever else is in the file."""

import pickle
import types
from collections import OrderedDict
from typing import NamedTuple

import torch

from ..engine.weights_file import RefusedFileError, check_state, read_weights_file

# Where trainers put a network, in the order of preference.
_PLACES = ("state_dict", "model", "model_state_dict", "net", "network", "weights")
_COPIES = ("ema_state_dict", "state_dict_ema", "model_ema", "ema")
# mmcv 1.x: moving averages are buffers beside what they average, and copy "ema" takes them.
_EMA_BUFFER, _EMA = "ema_", "ema"
_PARALLEL = "module."  # DataParallel and DistributedDataParallel


class ForeignCheckpoint(NamedTuple):
    """What a file of another code base holds.

    Attributes:
        state: tensors by their names there, without a data-parallel prefix, in float32.
        classes: names of the classes, where the file tells them, else None.
        notes: a line for each thing that was found and decided on the way.
    """

    state: dict[str, torch.Tensor]
    classes: list[str] | None
    notes: list[str]


def read_foreign_checkpoint(path: str, copy: str = "") -> ForeignCheckpoint:
    """Read a checkpoint. Nothing in it is run, and objects of other classes are not built.

    Args:
        path: a file of ``torch.save`` or ``.safetensors``.
        copy: which of the file's networks to take ("ema_state_dict"); "" = the trained one.

    Raises:
        ValueError: the file is damaged, no checkpoint, or holds no network; one line that names it.
    """
    notes: list[str] = []
    data = _read(path, notes)
    found = state = _network(data, path, copy, notes)
    others = [name for name, value in state.items() if isinstance(value, (int, float, str))]
    if others:
        notes.append(f"left out entries that are no tensors: {', '.join(map(str, others))}")
    state = {name: value for name, value in state.items() if name not in others}
    check_state(state, path)
    state = {name: torch.as_tensor(value) for name, value in state.items()}
    if all(name.startswith(_PARALLEL) for name in state):
        notes.append(f"dropped the data-parallel prefix {_PARALLEL!r}")
        state = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    take_averages = copy == _EMA and found is not data.get(_EMA)
    state = _averages_of_buffers(state, path, take_averages, notes)
    return ForeignCheckpoint(_in_float32(state, notes), _class_names(data), notes)


def _read(path: str, notes: list[str]) -> dict:
    try:
        return read_weights_file(path, safe_only=True)
    except RefusedFileError as error:
        # A sound file with objects beside the tensors, as mmengine's have: they are left out.
        ignored: set[str] = set()
        try:
            data = torch.load(
                path,
                map_location="cpu",
                weights_only=False,
                pickle_module=_inert_pickle(ignored),
            )
        except Exception:  # whatever else is wrong, the first message says it
            raise error from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not the weights of a model: it holds a {type(data).__name__}")
    if ignored:
        notes.append(f"left out objects that are no tensors: {', '.join(sorted(ignored))}")
    return data


def _network(data: dict, path: str, copy: str, notes: list[str]) -> dict:
    """The state dict among a checkpoint's entries."""
    found = {k: v for k, v in data.items() if isinstance(v, dict) and _has_tensors(v)}
    copies = [name for name in _COPIES if name in found]
    if copy in found:
        return found[copy]
    if copy not in ("", _EMA):
        raise ValueError(f"{path} holds no network {copy!r}; it has {sorted(found) or 'none'}")
    place = next((name for name in _PLACES if name in found), None)
    if place is not None:
        if copies:
            notes.append(
                f"took {place!r}; {', '.join(map(repr, copies))} would be taken with --copy"
            )
        return found[place]
    if _has_tensors(data):
        return data
    if copies:
        notes.append(f"took {copies[0]!r}, a moving average: the file holds no other network")
        return found[copies[0]]
    if "param_groups" in data or "optimizer" in data:
        raise ValueError(f"{path} holds the state of an optimiser and no network")
    raise ValueError(f"{path} holds no network; its entries are {sorted(map(str, data))[:10]}")


def _averages_of_buffers(
    state: dict[str, torch.Tensor], path: str, take: bool, notes: list[str]
) -> dict[str, torch.Tensor]:
    """``state`` without mmcv's moving averages, or with them in place of what they average."""
    flat = {name: _EMA_BUFFER + name.replace(".", "_") for name in state}
    averages = {name: buffer for name, buffer in flat.items() if buffer in state}
    if not averages:
        if take:
            raise ValueError(f"{path} holds no moving average of its tensors")
        return state
    taken = averages if take else {}
    say = "it is taken" if taken else f"--copy {_EMA} would take it"
    notes.append(f"{len(averages)} tensors have a moving average; {say}")
    buffers = set(averages.values())
    return {name: state[taken.get(name, name)] for name in state if name not in buffers}


def _in_float32(state: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    narrow = [k for k, v in state.items() if v.dtype in (torch.float16, torch.bfloat16)]
    if narrow:
        notes.append(f"{len(narrow)} tensors of half precision become float32")
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _class_names(data: dict) -> list[str] | None:
    """Of mmcv's and mmengine's meta data."""
    meta = data.get("meta")
    if not isinstance(meta, dict):
        return None
    dataset = meta.get("dataset_meta")
    names = dataset.get("classes") if isinstance(dataset, dict) else meta.get("CLASSES")
    return list(names) if isinstance(names, (list, tuple)) and names else None


def _has_tensors(value: dict) -> bool:
    """Whether most of a dict's values are tensors; a few numbers may stand beside them."""
    tensors = sum(isinstance(v, torch.Tensor) for v in value.values())
    return tensors > 0 and 2 * tensors > len(value)


def _inert_pickle(ignored: set[str]) -> types.SimpleNamespace:
    """A ``pickle`` module that builds tensors and plain containers alone.

    Args:
        ignored: gets the names of the classes and functions that were asked for beyond these, each
            of which an :class:`_Inert` takes the place of. None is imported or called.
    """

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str):
            if (module, name) in _ALLOWED:
                return _ALLOWED[module, name]
            if module == "torch" and name.endswith("Storage") and hasattr(torch, name):
                return getattr(torch, name)
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            ignored.add(f"{module}.{name}")
            return type("Inert", (_Inert,), {})

    def load(file, **options):
        return Unpickler(file, **options).load()

    return types.SimpleNamespace(
        __name__="pickle", Unpickler=Unpickler, load=load, UnpicklingError=pickle.UnpicklingError
    )


class _Inert:
    """Stands for an object of any class; whatever a pickle does with it has no effect."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def add(self, item):
        pass


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}
