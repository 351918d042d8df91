"""Scores of a checkpoint, for its model card."""

import json
from pathlib import Path
from typing import NamedTuple

_PREFIX = "sem_seg/"  # of the evaluation's names in metrics.json


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
        values = {name: float(value) for name, value in data["sem_seg"].items()}
        return Scores(values, data.get("dataset"), data.get("num_images"), path.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--results {path} is no sem_seg_evaluation.json ({type(error).__name__}: {error})"
        ) from error


def find_results(folder: Path, iteration: int | None, max_iter: int) -> Scores | None:
    """Scores of the checkpoint of one iteration, from the ``metrics.json`` beside it.

    Scores of other iterations of the run are scores of other weights: they do not count.

    Args:
        folder: of the checkpoint.
        iteration: that the checkpoint was written in, or None where it does not say.
        max_iter: length of the training; the evaluation at its end is recorded under this number,
            its checkpoint under the one before.
    """
    path = folder / "metrics.json"
    if iteration is None or not path.is_file():
        return None
    wanted = {iteration, max_iter if iteration == max_iter - 1 else iteration}
    found = None
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        values = {k.removeprefix(_PREFIX): v for k, v in record.items() if k.startswith(_PREFIX)}
        if record.get("iteration") in wanted and "mIoU" in values:
            found = Scores(values, None, None, path.name)
    return found
