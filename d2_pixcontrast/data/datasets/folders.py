"""One's own data: folders of images and labels, registered by a call or by a config alone."""

import os
import re
from collections.abc import Sequence

import numpy as np

from ..flip_pairs import check_flip_pairs
from ..labels import DataError
from .colors import Color, distinct_colors
from .spec import SemSegDataset, register

__all__ = ["read_classes", "register_folders_of", "register_sem_seg_folder"]


class SemSegFolder(SemSegDataset):
    """A dataset whose folders are named as they are, not below ``$DETECTRON2_DATASETS``."""

    def root(self) -> str:
        return ""


def register_sem_seg_folder(
    name: str,
    image_root: str | os.PathLike,
    label_root: str | os.PathLike,
    classes: Sequence[str] | str | os.PathLike,
    *,
    colors: Sequence[Color] | None = None,
    ignore_value: int = 255,
    image_suffix: str = "",
    label_suffix: str = "",
    flip_pairs: Sequence[tuple[int, int]] = (),
    origin: str = "",
) -> None:
    """Register a folder of images and one of labels as a dataset of detectron2.

    Files are paired by their path below the two folders without suffix; an image without label, or
    a label without image, is an error when the dataset is loaded. Labels are images of class ids:
    grey or palette, of any depth.

    Args:
        name: to be used in DATASETS.TRAIN and DATASETS.TEST.
        image_root, label_root: the folders; ``~`` is the home folder, and a relative one starts at
            the working directory of this call.
        classes: names of the ids 0..C-1, or a text file with one per line (:func:`read_classes`).
        colors: (R, G, B) of each class, 0..255; None = those of the file, else made up.
        ignore_value: id of the pixels without label.
        image_suffix, label_suffix: the ends of the file names that a pair does not share, for
            instance "_rgb.jpg" and "_mask.png"; "" = the extension, of any usual image format.
        flip_pairs: ids that change places when an image is mirrored.
        origin: where the folders are set, for the message when one is not there.

    Raises:
        DataError: classes, colours or pairs do not fit together, or another dataset has this name.
            The same call a second time does no harm.
    """
    classes = os.fspath(classes) if isinstance(classes, os.PathLike) else classes
    colors = [] if colors is None else list(colors)
    _check_forms(classes, colors, flip_pairs)
    classes, file_colors = read_classes(classes) if isinstance(classes, str) else (classes, None)
    colors = colors or file_colors or distinct_colors(len(classes))
    dataset = SemSegFolder(
        name=name,
        image_dir=_absolute(image_root),
        label_dir=_absolute(label_root),
        image_suffix=image_suffix,
        label_suffix=label_suffix,
        classes=tuple(str(label) for label in classes),
        colors=tuple(tuple(map(int, color)) for color in colors),
        ignore_label=ignore_value,
        origin=origin,
        flip_pairs=tuple(tuple(map(int, pair)) for pair in flip_pairs),
    )
    _check(dataset)
    register(dataset)


def _absolute(folder: str | os.PathLike) -> str:
    """One spelling per folder, so that two configs with the same data set agree."""
    return os.path.abspath(os.path.expanduser(folder))


def read_classes(path: str) -> tuple[list[str], list[Color] | None]:
    """Names of a text file of lines "NAME" or "NAME R G B", and colours where they are there.

    Empty lines and lines that start with # are skipped. A name may have spaces.

    Raises:
        DataError: there is no such file, it is not UTF-8, or some lines have a colour and some have
            none.
    """
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise DataError(f"the file of classes {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the file of classes {path} is not UTF-8: {error}") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    matches = [re.fullmatch(r"(.+?)\s+(\d+)\s+(\d+)\s+(\d+)", line) for line in lines]
    if not any(matches):
        return lines, None
    if not all(matches):
        raise DataError(f"{path}: line {lines[matches.index(None)]!r} has no colour, others have")
    return [match[1] for match in matches], [
        tuple(map(int, match.groups()[1:])) for match in matches
    ]


def register_folders_of(cfg) -> None:
    """Register everything in ``cfg.DATASETS.SEM_SEG_FOLDERS``; a second time does no harm.

    Raises:
        DataError: as :func:`register_sem_seg_folder`; the message names the key.
    """
    for name, node in cfg.DATASETS.SEM_SEG_FOLDERS.items():
        key = f"DATASETS.SEM_SEG_FOLDERS.{name}"
        missing = [part for part in ("IMAGES", "LABELS", "CLASSES") if not node[part]]
        if missing:
            raise DataError(f"{key} lacks {' and '.join(missing)}")
        try:
            register_sem_seg_folder(
                name,
                node.IMAGES,
                node.LABELS,
                node.CLASSES,
                colors=node.COLORS,
                ignore_value=node.IGNORE_VALUE,
                image_suffix=node.IMAGE_SUFFIX,
                label_suffix=node.LABEL_SUFFIX,
                flip_pairs=node.FLIP_PAIRS,
                origin=f"The folders are set by {key}.IMAGES and {key}.LABELS.",
            )
        except DataError as error:
            raise DataError(f"{key}: {error}") from error


def _check_forms(classes, colors, flip_pairs) -> None:
    """A config may hold anything there."""
    if not isinstance(classes, Sequence) or not all(isinstance(c, (str, int)) for c in classes):
        raise DataError(f"classes are a list of names, or a text file, not {classes!r}")
    for label in classes:
        if isinstance(label, bool):
            raise DataError(
                f"a class is {label}; YAML reads yes, no, on and off so: put it in quotes"
            )
    for kind, items, count in (("colour", colors, 3), ("flip pair", flip_pairs, 2)):
        for item in items:
            if np.shape(item) != (count,) or np.asarray(item).dtype.kind not in "iu":
                raise DataError(f"a {kind} is {count} whole numbers, not {item!r}")


def _check(dataset: SemSegDataset) -> None:
    classes, count = dataset.classes, len(dataset.classes)
    twice = sorted({label for label in classes if classes.count(label) > 1})
    if not count or twice:
        raise DataError(
            f"classes are twice in the list: {', '.join(twice)}" if count else "no classes"
        )
    if len(dataset.colors) != count:
        raise DataError(f"there are {len(dataset.colors)} colours for {count} classes")
    if not all(len(c) == 3 and all(0 <= v <= 255 for v in c) for c in dataset.colors):
        raise DataError("a colour is not three numbers of 0..255")
    if 0 <= dataset.ignore_label < count:
        raise DataError(
            f"the ignore value {dataset.ignore_label} is the id of class "
            f"{classes[dataset.ignore_label]!r}"
        )
    check_flip_pairs(dataset.flip_pairs, count, dataset.name)
