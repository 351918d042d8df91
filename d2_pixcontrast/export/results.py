"""Scores of a checkpoint, for its model card."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_PREFIX = "sem_seg/"  # of the evaluation's names in metrics.json; of several data sets NAME/ first


class Scores(NamedTuple):
    """An evaluation.

    Attributes:
        values: {name: percent}, such as "mIoU", "pACC" and "IoU-<class>".
        dataset: what was evaluated, or None where the file does not say.
        num_images: of the data set, or None.
        source: name of the file.
    """

    values: dict[str, float]
    dataset: str | None
    num_images: int | None
    source: str


def read_results(path: Path) -> Scores:
    """Scores of a ``sem_seg_evaluation.json``, as training and ``--eval-only`` write it.

    Raises:
        ValueError: there is no such file, or it is something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        # Classes that are nowhere in the data have no score: null.
        values = {k: math.nan if v is None else float(v) for k, v in data["sem_seg"].items()}
        return Scores(values, data.get("dataset"), data.get("num_images"), path.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--results {path} is no sem_seg_evaluation.json ({type(error).__name__}: {error})"
        ) from error


def find_results(
    folder: Path, iteration: int | None, max_iter: int, datasets: Sequence[str] = ()
) -> list[Scores]:
    """Scores of the checkpoint of one iteration, from the ``metrics.json`` beside it.

    Scores of other iterations of the run are scores of other weights: they do not count.

    Args:
        folder: of the checkpoint.
        iteration: that the checkpoint was written in, or None where it does not say.
        max_iter: length of the training; the evaluation at its end is recorded under this number,
            its checkpoint under the one before.
        datasets: that the training evaluated, in this order.

    Returns:
        one for each data set with a score.
    """
    path = folder / "metrics.json"
    if iteration is None or not path.is_file():
        return []
    wanted = {iteration, max_iter if iteration == max_iter - 1 else iteration}
    prefixes = {_PREFIX: None, **{f"{name}/{_PREFIX}": name for name in datasets}}
    found = {}
    for record in _records(path):
        if record.get("iteration") not in wanted:
            continue
        for prefix, dataset in prefixes.items():
            values = {k[len(prefix) :]: v for k, v in record.items() if k.startswith(prefix)}
            if "mIoU" in values:
                found[prefix] = Scores(values, dataset, None, path.name)
    return [found[prefix] for prefix in prefixes if prefix in found]


def _records(path: Path) -> Iterator[dict]:
    """Those of a metrics.json, but for a line that a crash has torn."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record
