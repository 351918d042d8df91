"""Checks of the datasets that a configuration names, before any model is built."""

import difflib
import os

from detectron2.data import DatasetCatalog, MetadataCatalog

from .datasets import builtin
from .labels import DataError

__all__ = ["check_datasets", "check_registered"]


def check_datasets(cfg, *, train: bool = True) -> None:
    """Check that the datasets of ``cfg`` are there, complete, and agree with the model.

    Args:
        cfg: the configuration.
        train: check DATASETS.TRAIN too; evaluation needs only DATASETS.TEST.

    Raises:
        DataError: a name is not registered; a folder is missing or empty; an image has no label
            or a label no image; or NUM_CLASSES or IGNORE_VALUE contradicts the metadata.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    names = [*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST]
    for name in dict.fromkeys(names):
        check_registered(name)
        metadata = MetadataCatalog.get(name)
        _check_equal(
            name,
            ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", head.NUM_CLASSES),
            ("classes", len(metadata.get("stuff_classes") or ()) or None),
        )
        _check_equal(
            name,
            ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", head.IGNORE_VALUE),
            ("ignore label", metadata.get("ignore_label")),
        )
        builtin.check_files(name)
        _check_first_files(name, _load(name), train and name in cfg.DATASETS.TRAIN)


def _load(name: str) -> list[dict]:
    try:
        return DatasetCatalog.get(name)
    except (AssertionError, OSError) as error:  # from a loader that is not ours
        raise DataError(f"dataset {name} cannot be loaded: {error}") from error


def check_registered(name: str) -> None:
    """Raise DataError, with names that are like it, unless detectron2 knows this dataset."""
    known = DatasetCatalog.list()
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    segmentation = ", ".join(sorted(other for other in known if "sem_seg" in other))
    raise DataError(f"dataset {name} is not registered; {hint}Known: {segmentation}")


def _check_equal(name: str, ours: tuple[str, int], theirs: tuple[str, int | None]) -> None:
    if theirs[1] is not None and ours[1] != theirs[1]:
        raise DataError(f"{ours[0]} is {ours[1]}, but dataset {name} has {theirs[0]} {theirs[1]}")


def _check_first_files(name: str, dicts: list[dict], is_train: bool) -> None:
    """The least that any dataset, a user's own too, must fulfil."""
    if not dicts:
        raise DataError(f"dataset {name} is empty")
    keys = ("file_name", "sem_seg_file_name") if is_train else ("file_name",)
    for key in keys:
        if key not in dicts[0]:
            raise DataError(f'dataset {name} has no "{key}" in its dicts')
        path = dicts[0][key]
        if "://" not in path and not os.path.isfile(path):
            raise DataError(f"dataset {name}: {os.path.abspath(path)} does not exist")
