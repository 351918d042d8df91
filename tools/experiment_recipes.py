"""Kept runs have to be of the recipe that the grid has now."""

import json
from functools import cache
from pathlib import Path

from d2_pixcontrast.engine import load_cfg

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
        now = _recipe(str(method.config), (*grid.opts, *method.opts, *opts))
        for seed in grid.seeds:
            file = grid.kept(name, seed)
            if not file.exists():
                continue
            run = json.loads(file.read_text())
            then = _recipe(str(root / run["config"]), tuple(run["opts"]))
            other = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
            if other:
                keys = [f"{k} {then.get(k)} (now {now.get(k)})" for k in other[:_NAMED]]
                more = f" and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
                raise ValueError(
                    f"{file} was trained with {', '.join(keys)}{more}: give the grid other "
                    "RESULTS and OUTPUT folders, or remove the file and the run's output"
                )


@cache
def _recipe(config: str, opts: tuple[str, ...]) -> dict[str, object]:
    """All keys that matter, with their values."""
    return {key: value for key, value in _flat(load_cfg(config, list(opts))) if key not in FREE}


def _flat(node: dict, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:  # a list and a tuple of a YAML file mean the same
            yield prefix + key, list(value) if isinstance(value, tuple) else value
