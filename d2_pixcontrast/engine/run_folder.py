"""Whose training OUTPUT_DIR holds: one at a time, with the config that it was last trained with."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import yaml

from ..compat import CfgNode
from ..config import flat_items
from ..evaluation.sem_seg_evaluator import RESULTS_FILE
from .checkpoint_files import write_atomically

CONFIG_FILE = "config.yaml"
# What belongs to one training; ``log.txt`` and TensorBoard's events tell of all that were here.
_OF_A_TRAINING = ("model_*.pth", "last_checkpoint", CONFIG_FILE, "metrics.json", RESULTS_FILE)
# A resumed run does not read them.
_NOT_TOLD = ("OUTPUT_DIR", "MODEL.WEIGHTS")


def set_aside(folder: Path) -> Path:
    """Move what belongs to a training into ``previous.<n>``, where no ``--resume`` finds it.

    Args:
        folder: of the training; ``previous.<n>`` is within it.

    Returns:
        the new folder.
    """
    aside = unused_name(folder / "previous")
    aside.mkdir()
    for pattern in _OF_A_TRAINING:
        for path in folder.glob(pattern):
            path.rename(aside / path.name)
    return aside


def record_config(folder: Path, cfg: CfgNode) -> None:
    """Write ``config.yaml``; one with another content is kept as ``config.<n>.yaml``."""
    path, text = folder / CONFIG_FILE, cfg.dump().encode()
    if path.exists():
        if path.read_bytes() == text:
            return
        path.rename(unused_name(path))
    write_atomically(path, lambda file: file.write(text))


def changes(folder: Path, cfg: CfgNode) -> Iterator[tuple[str, object, object]]:
    """Keys that ``config.yaml`` of a run has another value for than the config that resumes it.

    Yields:
        key, value before, value now; of the keys that both have.
    """
    try:
        before = yaml.safe_load((folder / CONFIG_FILE).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # a power cut may leave anything
        return
    if not isinstance(before, dict):
        return
    before = dict(flat_items(before))
    for key, now in flat_items(yaml.safe_load(cfg.dump())):
        if key not in _NOT_TOLD and before.get(key, now) != now:
            yield key, before[key], now


def unused_name(path: Path) -> Path:
    """``metrics.1.json`` beside ``metrics.json``, or the first number that is free."""
    names = (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())
