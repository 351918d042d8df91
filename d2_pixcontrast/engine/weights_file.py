"""Reading weights files. Nothing in a file is run, whoever wrote it."""

import hashlib
import logging
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from .restricted_pickle import ForbiddenGlobalError, load_restricted

# An environment variable and no config key: a shared config would otherwise decide for its reader.
ALLOW_PICKLE_VARIABLE = "PIXCONTRAST_ALLOW_PICKLE"

# What `python -m d2_pixcontrast.export publish` writes.
_HASH_IN_NAME = re.compile(r"model_final_([0-9a-f]{8,64})\.[a-z]+")
# How torch's safe loader says what it would have had to import.
_SAFE_LOADER_SAYS = re.compile(r"WeightsUnpickler error:\s*(.*)")
_LEGACY_NUMBER = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_GLOBAL_IN_MESSAGE = re.compile(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+\w)")


class RefusedFileError(ValueError):
    """A sound file that would run code, or could, if it was read whole."""


def read_weights_file(path: str, map_location: str = "cpu", *, safe_only: bool = False) -> dict:
    """The content of a checkpoint: tensors, arrays and plain values.

    Args:
        path: a ``.safetensors`` file, a ``.pkl`` of detectron2's or Caffe2's zoo, else a file of
            ``torch.save``.
        map_location: torch device for the tensors; "meta" for their names and shapes alone.
        safe_only: refuse a file that would run code, whatever the environment allows.

    Returns:
        the file's dict; the tensors of a ``.safetensors`` file as its "model".

    Raises:
        RefusedFileError: it would run code while it is loaded.
        ValueError: it is damaged, or no dict; one line that names it, as all of these.
    """
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path} is empty")
    try:
        data = _read_safely(path, map_location)
    except Exception as error:  # a damaged file can fail in any way
        data = _read_if_trusted(path, map_location, error, safe_only)
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not the weights of a model: it holds a {type(data).__name__}")
    return data


def weight_names(path: str) -> list[str]:
    """Names of the tensors in a weights file, without loading them.

    Raises:
        ValueError: as for :func:`read_weights_file`.
    """
    data = read_weights_file(path, map_location="meta")
    state = data.get("model", data)
    return [name for name in state if isinstance(name, str)] if isinstance(state, dict) else []


def check_state(state: object, path: str) -> None:
    """
    Raises:
        ValueError: ``state``, read from ``path``, is not {name: tensor or array of numbers}.
    """
    if isinstance(state, dict) and all(isinstance(name, str) for name in state):
        wrong = [name for name, value in state.items() if not _is_numbers(value)]
        if not wrong:
            return
        found = f"{wrong[0]} is a {type(state[wrong[0]]).__name__}"
    else:
        found = f"it holds a {type(state).__name__}"
    raise ValueError(f"{path} is not the weights of a model: {found}")


def check_hash_in_name(path: str) -> None:
    """Compare a published file with the SHA-256 prefix in its name; other names say nothing.

    Raises:
        ValueError: they differ.
    """
    match = _HASH_IN_NAME.fullmatch(Path(path).name)
    if match is None:
        return
    found = file_sha256(path)
    if not found.startswith(match[1]):
        raise ValueError(
            f"{path} is not the file that its name says: its SHA-256 begins with "
            f"{found[: len(match[1])]}; get it again"
        )


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safely(path: str, map_location: str):
    if path.endswith(".safetensors"):
        if map_location == "meta":
            with safe_open(path, framework="pt") as file:
                return {"model": dict.fromkeys(file.keys())}
        return {"model": load_file(path, device=map_location)}
    if path.endswith(".pkl"):
        with open(path, "rb") as file:
            return load_restricted(file)
    with warnings.catch_warnings():  # torch warns of what fails next, which gets a line of ours
        warnings.filterwarnings("ignore", ".*(pickle protocol|TorchScript)", UserWarning)
        return torch.load(path, map_location=map_location, weights_only=True)


def _read_if_trusted(path: str, map_location: str, error: Exception, safe_only: bool):
    """What to do after the safe reader has failed with ``error``."""
    refusal = _refusal(path, error)
    if refusal is None:
        raise _unreadable(path, error) from error
    if safe_only or os.environ.get(ALLOW_PICKLE_VARIABLE) != "1":
        raise RefusedFileError(
            f"{path} is refused: {refusal}. If you trust its author with your account, put "
            f"{ALLOW_PICKLE_VARIABLE}=1 before the command"
        ) from error
    logging.getLogger(__name__).warning(
        f"{ALLOW_PICKLE_VARIABLE} is set: {path} is unpickled ({refusal})"
    )
    try:
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                return pickle.load(file, encoding="latin1")
        return torch.load(path, map_location=map_location, weights_only=False)
    except Exception as failure:  # whatever the code in it does
        raise _unreadable(path, failure) from failure


def _refusal(path: str, error: Exception) -> str | None:
    """Why the safe reader must not read a sound file; None where it is not sound."""
    wanted = _forbidden_global(error)
    if wanted is not None:
        return f"loading it would run code ({wanted})"
    found = _SAFE_LOADER_SAYS.search(str(error))
    if found and not path.endswith(".pkl") and _is_of_torch_save(path):
        return (
            "loading it could run code, since torch's safe loader cannot decode it "
            f"({found[1].strip()}; it does not know pickle protocol 4 and newer)"
        )
    return None


def _unreadable(path: str, error: Exception) -> ValueError:
    """The error for a file that is none of ours, without torch's advice to load it unsafely."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if "TorchScript" in str(error):
        reason = "a TorchScript archive"
    elif "weights_only" in str(error):
        reason = "not a file of torch.save"
    return ValueError(f"cannot read weights from {path}: it is damaged or no checkpoint ({reason})")


def _is_of_torch_save(path: str) -> bool:
    """Whether the file is a zip archive, or begins with the number of those before torch 1.6."""
    if zipfile.is_zipfile(path):
        return True
    with open(path, "rb") as file:
        return _LEGACY_NUMBER in file.read(32)


def _is_numbers(value: object) -> bool:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "biuf" and value.dtype.isnative  # what torch can take over
    return isinstance(value, torch.Tensor)


def _forbidden_global(error: Exception) -> str | None:
    """The function or class that a pickle asked for, or None where that was not the error."""
    if isinstance(error, ForbiddenGlobalError):
        return error.name
    match = _GLOBAL_IN_MESSAGE.search(str(error))
    return match[1] if isinstance(error, pickle.UnpicklingError) and match else None
