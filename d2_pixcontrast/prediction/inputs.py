"""Which images to predict for, and the names of what is made of them."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog

from ..data import DataError
from ..data.check import check_registered

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif"}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


@dataclass(frozen=True)
class InputImage:
    """An image file.

    Attributes:
        path: of the file.
        name: relative path without suffix, for the files that are made of it; no two are equal.
        label_path: its ground truth, where there is one.
    """

    path: str
    name: str
    label_path: str | None = None


def is_video(path: str | os.PathLike) -> bool:
    """Whether the suffix is a video's."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def find_inputs(paths: list[str], labels: str | None = None) -> list[InputImage]:
    """Images of files and folders; folders with all below them.

    A name is the path below the folder that all inputs have in common, so that equally named images
    of different folders stay apart; where that is not enough (a.png, a.jpg) it keeps the suffix.

    Args:
        paths: files, taken whatever their suffix is, and folders, of which files with an image's
            suffix are taken.
        labels: a folder with a label ``<name>.png`` for every image.

    Raises:
        DataError: a path does not exist, a folder has no image, or an image no label.
    """
    files, folders = [], []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise DataError(
                    f"the folder {path} has no image ({' '.join(sorted(IMAGE_SUFFIXES))})"
                )
            files += found
            folders.append(path)
        elif path.is_file():
            files.append(path)
            folders.append(path.parent)
        else:
            raise DataError(f"there is no file or folder {path}")
    files = list(dict.fromkeys(path.absolute() for path in files))
    root = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    names = unique_names([path.relative_to(root) for path in files])
    return [
        InputImage(str(path), name, _label_path(labels, path.relative_to(root)))
        for path, name in zip(files, names, strict=True)
    ]


def dataset_inputs(dataset_name: str) -> list[InputImage]:
    """The images of a registered data set, with their labels.

    Raises:
        DataError: the data set is not registered, or its files are not there.
    """
    check_registered(dataset_name)
    dicts = DatasetCatalog.get(dataset_name)
    paths = [Path(sample["file_name"]).absolute() for sample in dicts]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    names = unique_names([path.relative_to(root) for path in paths])
    return [
        InputImage(sample["file_name"], name, sample.get("sem_seg_file_name"))
        for sample, name in zip(dicts, names, strict=True)
    ]


def unique_names(paths: list[Path]) -> list[str]:
    """Relative paths without their suffixes; with them (``a_png``) where two would be equal."""
    stems = [str(path.with_suffix("")) for path in paths]
    count = Counter(stems)
    return [
        f"{stem}_{path.suffix[1:]}" if count[stem] > 1 else stem
        for stem, path in zip(stems, paths, strict=True)
    ]


def _label_path(folder: str | None, image: Path) -> str | None:
    if folder is None:
        return None
    path = Path(folder) / image.with_suffix(".png")
    if not path.is_file():
        raise DataError(f"--labels: {image} has no label {path}")
    return str(path)
