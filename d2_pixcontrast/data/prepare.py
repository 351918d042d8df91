"""What the ``datasets/prepare_*.py`` have in common: from published labels to those of a model.

A script plans (which files become which) and converts (one file's ids); this module runs the plan
in parallel, writes every output at once or not at all, and leaves alone what is up to date.
"""

import argparse
import functools
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .datasets.spec import ROOT_HINT
from .labels import DataError
from .parallel import available_cores, parallel_map

__all__ = [
    "Plan",
    "Task",
    "files_below",
    "load_mat",
    "prepare",
    "read_list",
    "renumber",
    "require",
    "run",
]


class _MissingError(DataError):
    """A published file or folder is not there."""


class Task(NamedTuple):
    """One label file to make.

    Attributes:
        source, target: paths; the target is an 8-bit PNG.
        extra: whatever else the conversion takes.
    """

    source: Path
    target: Path
    extra: Any = None


@dataclass
class Plan:
    """What a script is going to do.

    Attributes:
        tasks: labels to make.
        links: images to show under another path as well: (existing file, link).
        ignored: files of the published tree that belong to none of its splits.
    """

    tasks: list[Task] = field(default_factory=list)
    links: list[tuple[Path, Path]] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)


def run(
    name: str,
    plan: Callable[[Path], Plan],
    convert: Callable[[Task], np.ndarray],
    description: str,
    argv: list[str] | None = None,
) -> None:
    """The command line of a script: plan, do it, write one line about what was done.

    Args:
        name: of the dataset, for messages.
        plan: from the folder of all datasets to what is to be done.
        convert: from a task to its label, uint8 (H, W); picklable.
        description: of the script, for its ``--help``.
        argv: the arguments; None = those of the command line.

    Raises:
        SystemExit: something is missing, damaged or cannot be written; with one line that names it.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        help="the folder of all datasets (default: $DETECTRON2_DATASETS, else ./datasets)",
    )
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: all cores)"
    )
    args = parser.parse_args(argv)
    try:
        todo = plan(args.root or Path(os.getenv("DETECTRON2_DATASETS", "datasets")))
        written, skipped = prepare(todo, convert, workers=args.workers, description=name)
    except DataError as error:
        hint = f" {ROOT_HINT}" if isinstance(error, _MissingError) and not args.root else ""
        raise SystemExit(f"{name}: {error}{hint}") from None
    except OSError as error:  # no right to write there, no space left
        raise SystemExit(f"{name}: {error}") from None
    sys.stdout.write(
        f"{name}: {written} files written, {skipped} skipped (up to date), "
        f"{len(todo.ignored)} ignored (in no split)\n"
    )


def prepare(
    plan: Plan, convert: Callable[[Task], np.ndarray], *, workers: int = 1, description: str = ""
) -> tuple[int, int]:
    """Make what is missing or older than its source.

    Returns:
        how many files were written, and how many were up to date.

    Raises:
        DataError: a source cannot be read or has unknown ids. What is done by then stays.
    """
    due = [task for task in plan.tasks if not _is_up_to_date(task)]
    links = [(file, link) for file, link in plan.links if not link.exists()]
    for folder in {task.target.parent for task in due} | {link.parent for _, link in links}:
        folder.mkdir(parents=True, exist_ok=True)
    for file, link in links:
        _link(file, link)
    make = functools.partial(_make, convert)
    for _ in parallel_map(make, due, workers=workers, description=description):
        pass
    written = len(due) + len(links)
    return written, len(plan.tasks) + len(plan.links) - written


def renumber(
    label: np.ndarray, ids: Mapping[int, int], source: Path, others: int | None = None
) -> np.ndarray:
    """Replace ids.

    Args:
        label: integers (H, W), not negative.
        ids: new id of each old one, 0..255.
        source: for the message.
        others: new id of those that are not in ``ids``; None = there must be none.

    Returns:
        uint8 (H, W).

    Raises:
        DataError: an id is not in ``ids`` and ``others`` is None.
    """
    table = np.full(max(*ids, int(label.max(initial=0))) + 1, -1 if others is None else others)
    table[list(ids)] = list(ids.values())
    out = table[label]
    if (out < 0).any():
        unknown = ", ".join(map(str, np.unique(label[out < 0])[:10]))
        raise DataError(f"label {source} has the unknown id {unknown}")
    return out.astype(np.uint8)


def require(path: Path, what: str) -> Path:
    """``path`` if it exists.

    Raises:
        DataError: it does not; the message says ``what`` should be there.
    """
    if not path.exists():
        raise _MissingError(f"{path.absolute()} does not exist. It should be {what}.")
    return path


def files_below(folder: Path, suffix: str, what: str) -> list[Path]:
    """All files below ``folder`` that end in ``suffix``, sorted.

    Raises:
        DataError: there is no such folder or file; the message says ``what`` should be there.
    """
    files = sorted(
        path for path in require(folder, what).rglob(f"*{suffix}") if not path.name.startswith(".")
    )
    if not files:
        raise DataError(f"{folder.absolute()} has no file *{suffix}. It should be {what}.")
    return files


def read_list(path: Path, what: str) -> list[str]:
    """The lines of a text file, without empty ones; raises as :func:`require`."""
    lines = require(path, what).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def load_mat(path: Path, variable: str) -> np.ndarray:
    """One variable of a MATLAB file.

    Raises:
        DataError: scipy is not installed, or the file has no such variable or cannot be read.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError("MATLAB files need scipy: pip install scipy") from error
    try:
        return loadmat(path, variable_names=[variable])[variable]
    except KeyError as error:
        raise DataError(f"{path} has no variable {variable}") from error
    except Exception as error:  # scipy has no common class for what a damaged file may cause
        raise DataError(f"{path} cannot be read: {error}") from error


def _is_up_to_date(task: Task) -> bool:
    target = task.target
    return target.exists() and target.stat().st_mtime >= task.source.stat().st_mtime


def _make(convert: Callable[[Task], np.ndarray], task: Task) -> None:
    image = Image.fromarray(convert(task))
    draft = task.target.with_name(f".{task.target.name}.{os.getpid()}")
    try:
        image.save(draft, format="PNG")
        draft.replace(task.target)
    finally:
        draft.unlink(missing_ok=True)


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(os.path.relpath(file, link.parent))
    except OSError:  # a file system without links
        shutil.copy2(file, link)
