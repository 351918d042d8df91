"""A written report on a dataset: what is in its files, what is wrong, which weights to try."""

from dataclasses import dataclass, field

from detectron2.data import MetadataCatalog

from .check import check_first_files, check_registered, load_dataset
from .datasets import find_pairs, registered
from .datasets.pairing import NO_PAIR
from .labels import DataError
from .statistics import DatasetStatistics, class_weights, inspect_dataset

__all__ = ["Source", "folder_source", "named_source", "survey"]

_SHOWN = 10  # lines of a kind, at most
_KINDS = {
    "P": "palette labels: their indices are read as stored, not their colours (detectron2's own "
    "mapper would read grey values)",
    "I;16": "16-bit labels: read as stored (detectron2's own mapper would clip them to 8 bits)",
    "I": "32-bit labels: read as stored (detectron2's own mapper would clip them to 8 bits)",
    "1": "1-bit labels: read as ids 0 and 1",
}


@dataclass
class Source:
    """A dataset to look at.

    Attributes:
        name: for the heading.
        dicts: its pairs.
        classes: names of the ids; None = unknown, any id will do.
        ignore_value: id of pixels without label.
        errors: what is wrong already: files without counterpart, a folder that is not there.
    """

    name: str
    dicts: list[dict] = field(default_factory=list)
    classes: list[str] | None = None
    ignore_value: int = 255
    errors: list[str] = field(default_factory=list)


def named_source(name: str) -> Source:
    """A registered dataset.

    Raises:
        DataError: there is none of this name.
    """
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    classes = metadata.get("stuff_classes")
    source = Source(name, classes=classes, ignore_value=metadata.get("ignore_label", 255))
    spec = registered(name)
    try:
        if spec:
            _pair(source, spec.pairing())
            source.dicts = source.dicts if spec.part is None else spec.part(source.dicts)
        else:
            dicts = load_dataset(name)
            check_first_files(name, dicts)
            source.dicts = dicts
    except DataError as error:
        origin = spec.origin if spec else ""
        source.errors.append(f"{error} {origin}".rstrip())
    return source


def folder_source(
    classes: list[str] | None = None, ignore_value: int = 255, **pairing: str
) -> Source:
    """Two folders, as :func:`~.datasets.find_pairs` takes them."""
    source = Source(pairing["image_root"], classes=classes, ignore_value=ignore_value)
    try:
        _pair(source, pairing)
    except DataError as error:
        source.errors.append(str(error))
    return source


def survey(source: Source, workers: int = 1) -> tuple[str, bool]:
    """Read all files of a dataset and write up what is in them.

    Returns:
        the report, and whether training could use all of it.
    """
    statistics = inspect_dataset(
        source.dicts,
        num_classes=len(source.classes) if source.classes else None,
        ignore_value=source.ignore_value,
        workers=workers,
        description=source.name,
    )
    errors = source.errors + statistics.errors
    lines = [f"{source.name}: {statistics.pairs} pairs of image and label"]
    if statistics.pixels:
        sizes = _sizes(statistics) if statistics.sizes else []  # none: no image can be read
        lines += [*sizes, "", *_shares(source, statistics), ""]
        lines += [f"note: {n} {_KINDS[k]}" for k, n in statistics.kinds.items() if k in _KINDS]
        lines += _weights(source, statistics)
        lines += _warnings(source, statistics)
    shown = [f"error: {error}" for error in errors[:_SHOWN]]
    if len(errors) > _SHOWN:
        shown.append(f"error: ... and {len(errors) - _SHOWN} more")
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    return "\n".join([*lines, *shown, count]), not errors


def _pair(source: Source, pairing: dict) -> None:
    pairs = find_pairs(**pairing)
    source.dicts = pairs.dicts
    missing = [f"{path} is missing" for path in pairs.missing]
    if missing and not pairs.dicts:
        missing[0] += NO_PAIR
    source.errors += missing


def _warnings(source: Source, statistics: DatasetStatistics) -> list[str]:
    """What training would take, but hardly anybody wants."""
    ignored = source.ignore_value
    names = dict(enumerate(source.classes or ()))
    names.pop(ignored, None)
    shown = statistics.pixels.keys() - {ignored}
    if not shown:
        return [f"warning: all pixels have the ignore value {ignored}"]
    absent = [name for label, name in names.items() if label not in shown]
    if absent and len(shown) == 1 and statistics.pixels[ignored]:
        return [
            f"warning: beside the ignore value {ignored} there is one id alone, and no label shows "
            f"{', '.join(absent)}. If {ignored} is a class (a mask of 0 and 255), write another id "
            "for it into the labels"
        ]
    return []


def _sizes(statistics: DatasetStatistics) -> list[str]:
    (smallest, *_), (largest, *_) = sorted(statistics.sizes), sorted(statistics.sizes)[::-1]
    common, count = statistics.sizes.most_common(1)[0]
    return [
        f"sizes: {_size(smallest)} to {_size(largest)} (width x height), "
        f"{len(statistics.sizes)} different; most often {_size(common)} ({count})"
    ]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _shares(source: Source, statistics: DatasetStatistics) -> list[str]:
    """A table of all ids: those of the classes, the ignore value, and any other."""
    names = dict(enumerate(source.classes or ()))
    names.setdefault(source.ignore_value, "(ignored)")
    lines = [f"{'id':>5}  {'pixels':>8}  class"]
    for label in sorted({*names, *statistics.pixels}):
        share, name = statistics.share(label), names.get(label, "?" if source.classes else "")
        absent = "" if statistics.pixels[label] else "  (in no label)"
        lines.append(f"{label:>5}  {share:>8.3%}  {name}{absent}".rstrip())
    return lines


def _weights(source: Source, statistics: DatasetStatistics) -> list[str]:
    count = len(source.classes or ())
    if not any(statistics.pixels[label] for label in range(count)):
        return []
    formulas = {
        "enet": "1 / ln(1.02 + share of the labelled pixels)",
        "median_frequency": "median(f) / f, f = pixels of a class / pixels of images that show it",
    }
    lines = ["MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS to try where rare classes are missed (mean 1):"]
    if not all(statistics.pixels[label] for label in range(count)):
        lines.append("  (classes that are in no label get the mean)")
    for method, formula in formulas.items():
        values = ", ".join(f"{w:.4g}" for w in class_weights(statistics, count, method))
        lines += [f"  {method}, {formula}:", f"    [{values}]"]
    return lines
