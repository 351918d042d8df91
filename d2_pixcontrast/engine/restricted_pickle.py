"""Reading detectron2's ``.pkl`` files without giving their author a Python prompt."""

import pickle
from collections import OrderedDict
from typing import IO

import numpy as np


def load_restricted(file: IO[bytes]):
    """Unpickle numpy arrays and plain containers, and nothing else.

    Strings of Python 2 are read as latin1, as files of Caffe2's and detectron2's zoos need it.

    Args:
        file: a binary file, at its start.

    Raises:
        ForbiddenGlobalError: the pickle asks for anything else; none of it has been called.
        Exception: of any kind, where the file is damaged.
    """
    return _RestrictedUnpickler(file, encoding="latin1").load()


class ForbiddenGlobalError(pickle.UnpicklingError):
    """A pickle names a function or class beyond numpy's arrays; ``name`` says which."""

    def __init__(self, name: str):
        super().__init__(f"it asks for {name}")
        self.name = name


def _encode_latin1(text: str, encoding: str) -> bytes:
    """``codecs.encode`` for the one codec with which pickles of protocol 2 store bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ForbiddenGlobalError(f"the codec {encoding}")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], object]:
    """{(module, name): object} of all that a pickle may ask for."""
    array, number = np.zeros(1), np.float64(0)
    # Asked from numpy itself: it moved these functions from numpy.core to numpy._core.
    functions = {
        "multiarray._reconstruct": array.__reduce__()[0],
        "multiarray.scalar": number.__reduce__()[0],
        "numeric._frombuffer": array.__reduce_ex__(5)[0],
    }
    allowed = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _encode_latin1,
    }
    for package in ("numpy.core", "numpy._core"):
        for path, function in functions.items():
            module, name = path.split(".")
            allowed[f"{package}.{module}", name] = function
    for module in ("builtins", "__builtin__"):  # the second is Python 2's
        allowed.update({(module, kind.__name__): kind for kind in (set, frozenset, bytes)})
    return allowed


class _RestrictedUnpickler(pickle.Unpickler):
    _ALLOWED = _allowed()

    def find_class(self, module: str, name: str):
        # By exact name: a dotted one would walk to attributes.
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise ForbiddenGlobalError(f"{module}.{name}") from None
