"""Checks of the datasets that a configuration names, before any model is built."""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..evaluation.sem_seg_evaluator import missing_metadata
from ..spelling import did_you_mean
from .datasets import builtin
from .flip_pairs import common_flip_pairs, flip_pairs
from .labels import DataError

__all__ = ["check_datasets", "check_first_files", "check_registered", "load_dataset"]


def check_datasets(cfg, *, train: bool = True) -> None:
    """Check that the datasets of ``cfg`` are there, complete, and agree with the model.

    Args:
        cfg: the configuration.
        train: check DATASETS.TRAIN too; evaluation needs only DATASETS.TEST.

    Raises:
        DataError: a name is not registered; a folder is missing or empty; an image has no label
            or a label no image; one to test on does not say what its classes are; NUM_CLASSES or
            IGNORE_VALUE contradicts the metadata; two datasets number the same classes differently;
            or those to train on do not agree on what a mirrored class is.
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
        if name in cfg.DATASETS.TEST:
            _check_scorable(name, metadata)
        flip_pairs(name, head.NUM_CLASSES)
        check_first_files(name, load_dataset(name))
    _check_order(names)
    if train and cfg.INPUT.RANDOM_FLIP == "horizontal":
        common_flip_pairs(cfg.DATASETS.TRAIN, head.NUM_CLASSES)


def load_dataset(name: str) -> list[dict]:
    """The dicts of a registered dataset.

    Raises:
        DataError: it is not registered, it is empty, or its files are not there.
    """
    check_registered(name)
    builtin.check_files(name)
    try:
        dicts = DatasetCatalog.get(name)
    except (AssertionError, OSError) as error:  # from a loader that is not ours
        raise DataError(f"dataset {name} cannot be loaded: {error}") from error
    if not dicts:
        raise DataError(f"dataset {name} is empty")
    return dicts


def check_registered(name: str) -> None:
    """Raise DataError, with names that are like it, unless detectron2 knows this dataset."""
    known = DatasetCatalog.list()
    if name in known:
        return
    hint = did_you_mean(name, known, 0.7)
    segmentation = ", ".join(sorted(other for other in known if "sem_seg" in other))
    raise DataError(f"dataset {name} is not registered; {hint}Known: {segmentation}")


def _check_equal(name: str, ours: tuple[str, int], theirs: tuple[str, int | None]) -> None:
    if theirs[1] is not None and ours[1] != theirs[1]:
        raise DataError(f"{ours[0]} is {ours[1]}, but dataset {name} has {theirs[0]} {theirs[1]}")


def _check_scorable(name: str, metadata) -> None:
    """What the evaluator needs, before hours of training rather than after them."""
    if missing := missing_metadata(metadata):
        raise DataError(
            f"dataset {name} of DATASETS.TEST has no {' and '.join(missing)} in its metadata: "
            f"MetadataCatalog.get({name!r}).set(stuff_classes=[names], ignore_label=255), where it "
            "is registered"
        )


def _check_order(names: list[str]) -> None:
    """Refuse datasets with the same classes under other ids: their scores would be mixed up."""
    first = list(MetadataCatalog.get(names[0]).get("stuff_classes") or ()) if names else []
    for name in names:
        classes = list(MetadataCatalog.get(name).get("stuff_classes") or ())
        if sorted(classes) == sorted(first) and classes != first:
            index = next(i for i, pair in enumerate(zip(classes, first)) if len(set(pair)) > 1)
            raise DataError(
                f"datasets {names[0]} and {name} have the same classes in another order: id "
                f"{index} is {first[index]!r} in one and {classes[index]!r} in the other"
            )


def check_first_files(name: str, dicts: list[dict]) -> None:
    """The least that any dataset, a user's own too, must fulfil, for training and for scores.

    Raises:
        DataError: a dict names no image or no label, or the first one's do not exist.
    """
    for key in ("file_name", "sem_seg_file_name"):
        if key not in dicts[0]:
            raise DataError(f'dataset {name} has no "{key}" in its dicts')
        path = dicts[0][key]
        if "://" not in path and not os.path.isfile(path):
            raise DataError(f"dataset {name}: {os.path.abspath(path)} does not exist")
