"""The files of an experiment's runs: written whole, by one driver, and of the grid's recipe."""

import contextlib
import fcntl
import json
from functools import cache
from pathlib import Path

from d2_pixcontrast.config import flat_items
from d2_pixcontrast.engine import load_cfg
from d2_pixcontrast.engine.checkpoint_files import write_atomically

# What a run's result does not depend on, or what tells runs of one recipe apart.
FREE = ("OUTPUT_DIR", "SEED", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS")
FREE += ("SOLVER.CHECKPOINT_PERIOD", "TEST.EXPECTED_RESULTS")
_NAMED = 5  # keys in a message, at most


def check_kept(grid, root: Path, opts: list[str]) -> None:
    """Compare the recipe of every kept run, its config file as it is today with the run's own
    options, with what the grid would train now.

    Args:
        grid: a ``run_experiments.Grid``.
        root: of the repository.
        opts: KEY VALUE pairs of the command line.

    Raises:
        ValueError: they differ; the message names the file, the keys and the way out.
    """
    for name, method in grid.methods.items():
        now = recipe(str(method.config), (*grid.opts, *method.opts, *opts))
        for file in (grid.kept(name, seed) for seed in grid.seeds):
            if file.exists():
                run = json.loads(file.read_text())
                then = recipe(str(root / run["config"]), tuple(run["opts"]))
                _require_same(file, then, now)


def record_start(folder: Path, now: dict[str, object], versions: dict[str, str]) -> list[dict]:
    """Note in a run's folder what it is trained with, each time that it starts or goes on.

    Args:
        folder: of the run's checkpoints.
        now: its :func:`recipe`.
        versions: of the code that is about to run.

    Returns:
        All versions that the run was trained with so far, the latest last.

    Raises:
        ValueError: the folder holds the beginning of a run of another recipe.
    """
    file = folder / "made_with.json"
    made_with = json.loads(file.read_text()) if file.exists() else {"recipe": now, "versions": []}
    _require_same(folder, made_with["recipe"], now)
    if versions not in made_with["versions"][-1:]:
        made_with["versions"].append(versions)
    write_json(file, made_with)
    return made_with["versions"]


@contextlib.contextmanager
def lock(folder: Path):
    """Yield a file descriptor that keeps other drivers out of ``folder``, or None if one is in.

    A training that inherits it holds the lock even after its driver was killed.
    """
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()


@cache
def recipe(config: str, opts: tuple[str, ...]) -> dict[str, object]:
    """All keys of a config that a result depends on, with their values as JSON holds them."""
    flat = {
        key: value for key, value in flat_items(load_cfg(config, list(opts))) if key not in FREE
    }
    return json.loads(json.dumps(flat))


def write_json(path: Path, value) -> None:
    """A kept result is a whole one, and its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _require_same(where: Path, then: dict, now: dict) -> None:
    other = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
    if other:
        keys = [f"{k} {then.get(k)} (now {now.get(k)})" for k in other[:_NAMED]]
        more = f" and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
        raise ValueError(
            f"{where} was trained with {', '.join(keys)}{more}: give the grid other RESULTS and "
            "OUTPUT folders, or remove both the kept file and the run's folder"
        )
