"""Which images to predict for, and the names of what is made of them."""

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data import DataError
from ..data.check import load_dataset
from ..data.datasets.pairing import walk

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


def find_inputs(
    paths: list[str], labels: str | None = None, but: Sequence[Path] = ()
) -> list[InputImage]:
    """Images of files and folders; folders with all below them.

    A name is the path below the folder that all inputs have in common, so that equally named images
    of different folders stay apart; where that is not enough (a.png, a.jpg) it keeps the suffix.

    Args:
        paths: files, taken whatever their suffix is, and folders, of which files with an image's
            suffix are taken.
        labels: a folder with a label ``<name>.png`` for every image.
        but: folders within ``paths`` that are left out: those of earlier results.

    Raises:
        DataError: a path does not exist, a folder has no image, or an image no label.
    """
    files, folders = [], []
    for path in map(Path, paths):
        if path.is_dir():
            results = [r for r in map(_normal, but) if _normal(path) in r.parents]
            files_below = (Path(folder, name) for folder, _, names in walk(path) for name in names)
            found = sorted(
                file
                for file in files_below
                if _is_image(file) and not any(r in _normal(file).parents for r in results)
            )
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
    files = list(dict.fromkeys(map(_normal, files)))
    root = Path(os.path.commonpath([_normal(folder) for folder in folders]))
    names = unique_names([path.relative_to(root) for path in files])
    return [
        InputImage(str(path), name, _label_path(labels, path.relative_to(root)))
        for path, name in zip(files, names, strict=True)
    ]


def dataset_inputs(dataset_name: str) -> list[InputImage]:
    """The images of a registered data set, with their labels.

    Raises:
        DataError: the data set is not registered, it is empty, or its files are not there.
    """
    dicts = load_dataset(dataset_name)
    names = unique_names(below_common_root([sample["file_name"] for sample in dicts]))
    return [
        InputImage(sample["file_name"], name, sample.get("sem_seg_file_name"))
        for sample, name in zip(dicts, names, strict=True)
    ]


def unique_names(paths: list[Path]) -> list[str]:
    """Relative paths without their suffixes; with them (``a_png``) where two would be equal, and
    with a number where two still are."""
    stems = [str(path.with_suffix("")) for path in paths]
    count = Counter(stems)
    taken = {stem for stem in stems if count[stem] == 1}
    names = []
    for stem, path in zip(stems, paths, strict=True):
        name = stem
        if count[stem] > 1:
            longer = f"{stem}_{path.suffix[1:]}"
            numbered = (f"{longer}_{number}" for number in itertools.count(2))
            name = next(n for n in itertools.chain([longer], numbered) if n not in taken)
            taken.add(name)
        names.append(name)
    return names


def below_common_root(paths: list[str]) -> list[Path]:
    """Paths of files, relative to the folder that they have in common."""
    files = [_normal(path) for path in paths]
    root = os.path.commonpath([path.parent for path in files]) if files else ""
    return [path.relative_to(root) for path in files]


def _normal(path: str | os.PathLike) -> Path:
    """Absolute and without "..", which would lead the names of results out of their folder."""
    return Path(os.path.abspath(path))


def _is_image(path: Path) -> bool:
    """Hidden files are none: macOS leaves ._NAME beside NAME on foreign file systems."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _label_path(folder: str | None, image: Path) -> str | None:
    if folder is None:
        return None
    path = Path(folder) / image.with_suffix(".png")
    if not path.is_file():
        raise DataError(f"--labels: {image} has no label {path}")
    return str(path)
