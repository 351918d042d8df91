"""Which label belongs to which image: by their relative path, and nothing is dropped silently."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from ..labels import DataError

__all__ = ["IMAGE_SUFFIXES", "Pairs", "find_pairs", "match_files", "walk"]

# What the suffix "" stands for, in lower or upper case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
NO_PAIR = (
    "; not one image has a label: if their names end differently (0.jpg, 0_mask.png), tell it by "
    "LABEL_SUFFIX _mask.png or IMAGE_SUFFIX of the data set (check_dataset.py: --label-suffix)"
)


class Pairs(NamedTuple):
    """What was found below two folders.

    Attributes:
        dicts: of every pair "file_name", "sem_seg_file_name" and "image_id", the relative path
            without suffix, in whose order they are.
        missing: paths of the counterparts that other files lack.
    """

    dicts: list[dict]
    missing: list[str]


def find_pairs(
    image_root: str,
    label_root: str,
    image_suffix: str,
    label_suffix: str,
    *,
    labels_choose: bool = False,
    split_file: str = "",
) -> Pairs:
    """Pair all images below one folder with all labels below another, subfolders included.

    One of the folders may lie within the other, or both be the same, with a suffix that tells the
    two kinds apart (a.png and a_mask.png by ``label_suffix`` "_mask.png").

    Args:
        image_root, label_root: the folders.
        image_suffix, label_suffix: what follows the part of the path that a pair has in common;
            "" = the extension of any usual image format (:data:`IMAGE_SUFFIXES`).
        labels_choose: leave out images without a label.
        split_file: a text file with one image id per line; only these are looked at. "" = all.

    Raises:
        DataError: a folder or ``split_file`` is missing or has no such file, or two files differ
            in nothing but their extension.
    """
    chosen = _read_ids(split_file) if split_file else None
    images = _files_below(image_root, image_suffix, chosen, (label_root, label_suffix))
    labels = _files_below(label_root, label_suffix, chosen, (image_root, image_suffix))
    wanted = chosen or {*labels} | ({*images} if not labels_choose else set())
    missing = [
        os.path.join(root, name + (suffix or ".*"))
        for root, suffix, files in (
            (label_root, label_suffix, labels),
            (image_root, image_suffix, images),
        )
        for name in sorted(wanted - files.keys())
    ]
    dicts = [
        {"file_name": images[name], "sem_seg_file_name": labels[name], "image_id": name}
        for name in sorted(wanted & images.keys() & labels.keys())
    ]
    return Pairs(dicts, missing)


def match_files(name: str, origin: str, **pairing) -> list[dict]:
    """The dicts of :func:`find_pairs`, which takes ``pairing``, where no file is missing.

    Args:
        name: of the dataset, for messages.
        origin: how to get or prepare it, for the message when a folder is missing.

    Raises:
        DataError: as there, or a file has no counterpart.
    """
    try:
        pairs = find_pairs(**pairing)
    except DataError as error:
        raise DataError(f"dataset {name}: {error} {origin}".rstrip()) from error
    if pairs.missing:
        count = len(pairs.missing)
        shown = ", ".join(pairs.missing[:5]) + (f" and {count - 5} more" if count > 5 else "")
        files = "1 file is" if count == 1 else f"{count} files are"
        nothing = "" if pairs.dicts else NO_PAIR
        raise DataError(f"dataset {name}: {files} missing: {shown}{nothing}")
    return pairs.dicts


def _read_ids(path: str) -> set[str]:
    try:
        with open(path, encoding="utf-8") as file:
            ids = {line.strip() for line in file} - {""}
    except FileNotFoundError as error:
        raise DataError(f"the list {os.path.abspath(path)} does not exist.") from error
    if not ids:
        raise DataError(f"the list {os.path.abspath(path)} is empty.")
    return ids


def _files_below(
    root: str, suffix: str, chosen: set[str] | None, others: tuple[str, str]
) -> dict[str, str]:
    """Path by image id; with ``chosen`` of these ids alone. What belongs to the ``others``, their
    folder and suffix, is left out: all of a folder within this one, and in the same folder the
    files with their suffix where that says more."""
    found = {}
    own_root, other_root = os.path.realpath(root), os.path.realpath(others[0])
    within = other_root.startswith(os.path.join(own_root, ""))
    other_suffix = others[1] if other_root == own_root else ""
    for folder, folders, files in walk(root):
        if within:
            folders[:] = [
                name
                for name in folders
                if os.path.realpath(os.path.join(folder, name)) != other_root
            ]
        for file in files:
            ending = _ending(file, suffix)
            if not ending or file.startswith("."):
                continue
            if len(other_suffix) > len(ending) and file.endswith(other_suffix):
                continue
            path = os.path.join(folder, file)
            name = os.path.relpath(path, root)[: -len(ending)]
            if name in found:
                raise DataError(
                    f"{found[name]} and {path} differ in nothing but their extension; IMAGE_SUFFIX "
                    f"or LABEL_SUFFIX of the data set tells which one is meant, such as {ending}."
                )
            if chosen is None or name in chosen:
                found[name] = path
    if not found:
        pattern = f"*{suffix}" if suffix else "with an image's extension"
        state = f"has no file {pattern}" if os.path.isdir(root) else "does not exist"
        raise DataError(f"the folder {os.path.abspath(root)} {state}.")
    return found


def walk(root: str | os.PathLike) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk`` from the top through links, but for those that lead back to where they lie."""
    root = os.fspath(root)
    above = {root: {os.path.realpath(root)}}  # by folder yet to be walked, the real ones to it
    for folder, folders, files in os.walk(root, followlinks=True):
        here = above.pop(folder)
        for name in list(folders):
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if real in here:
                folders.remove(name)
            else:
                above[path] = here | {real}
        yield folder, folders, files


def _ending(file: str, suffix: str) -> str:
    if suffix:
        return suffix if file.endswith(suffix) else ""
    extension = os.path.splitext(file)[1]
    return extension if extension.lower() in IMAGE_SUFFIXES else ""
