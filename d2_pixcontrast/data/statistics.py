"""What is in a dataset's files: ids, sizes, shares of the classes, and what is wrong with it."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from .labels import DataError, check_same_size, read_image, read_label
from .parallel import parallel_map

__all__ = ["DatasetStatistics", "class_weights", "inspect_dataset"]


@dataclass
class DatasetStatistics:
    """The sum over all pairs of image and label.

    Attributes:
        pairs: how many there are.
        pixels: of every id in the labels.
        image_pixels: of every id, all pixels of the labels in which it occurs.
        sizes: how many images have a size, by (width, height).
        kinds: how many labels have a kind, by Pillow's mode ("L", "P", "I;16", ...).
        errors: one line per unusable file, in the order of the files.
    """

    pairs: int = 0
    pixels: Counter = field(default_factory=Counter)
    image_pixels: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def share(self, label: int) -> float:
        """Of the pixels that have this id, 0..1."""
        return self.pixels[label] / max(sum(self.pixels.values()), 1)

    def unknown_ids(self, num_classes: int, ignore_value: int) -> list[int]:
        """The ids that are neither one of the classes nor the ignore value."""
        known = {*range(num_classes), ignore_value}
        return sorted(set(self.pixels) - known)


def inspect_dataset(
    dicts: Sequence[dict],
    *,
    num_classes: int | None = None,
    ignore_value: int = 255,
    workers: int = 1,
    description: str = "",
) -> DatasetStatistics:
    """Read all files of a dataset as training would.

    Args:
        dicts: with "file_name" and "sem_seg_file_name".
        num_classes: labels with ids beyond these and ``ignore_value`` are errors; None = any id.
        ignore_value: id of pixels without label.
        workers: processes.
        description: in front of the progress bar.
    """
    pairs = [(record["file_name"], record["sem_seg_file_name"]) for record in dicts]
    inspect = functools.partial(_inspect, num_classes=num_classes, ignore_value=ignore_value)
    total = DatasetStatistics()
    for part in parallel_map(inspect, pairs, workers=workers, description=description):
        total.pairs += part.pairs
        for name in ("pixels", "image_pixels", "sizes", "kinds"):
            getattr(total, name).update(getattr(part, name))
        total.errors += part.errors
    return total


def class_weights(statistics: DatasetStatistics, num_classes: int, method: str) -> list[float]:
    """Weights of the cross-entropy that favour rare classes, scaled to a mean of 1.

    A class without pixels gets the mean of the others, 1.

    * ``"enet"``: 1 / ln(1.02 + p_c), p_c = share of class c of the labelled pixels. Paszke et al.,
      "ENet", 2016, section 5.2. A rare class weighs at most 35 times a class that is everywhere.
    * ``"median_frequency"``: median(f) / f_c, f_c = pixels of c / pixels of the images that show c.
      Eigen & Fergus, ICCV 2015, section 6.3.2. Not bounded.

    Raises:
        ValueError: another ``method``, or no class has a pixel.
    """
    classes = range(num_classes)
    pixels = np.array([statistics.pixels[label] for label in classes], float)
    if not pixels.any():
        raise ValueError("no pixel has a class: there are no weights to suggest")
    present = pixels > 0
    if method == "enet":
        found = 1 / np.log(1.02 + pixels[present] / pixels.sum())
    elif method == "median_frequency":
        whole = np.array([statistics.image_pixels[label] for label in classes], float)
        frequency = pixels[present] / whole[present]
        found = np.median(frequency) / frequency
    else:
        raise ValueError(f'unknown method "{method}"; it can be "enet" or "median_frequency"')
    weights = np.ones(num_classes)
    weights[present] = found / found.mean()
    return weights.tolist()


def _inspect(
    pair: tuple[str, str], num_classes: int | None, ignore_value: int
) -> DatasetStatistics:
    image_path, label_path = pair
    result = DatasetStatistics(pairs=1)
    image = _try(result, read_image, image_path, "RGB")
    label = _try(result, read_label, label_path)
    if image is not None:
        result.sizes[image.shape[1::-1]] += 1
    if label is None:
        return result
    if image is not None:
        _try(result, check_same_size, image, label, image_path, label_path)
    with PathManager.open(label_path, "rb") as file, Image.open(file) as opened:
        result.kinds[opened.mode] += 1
    ids, counts = np.unique(label, return_counts=True)
    result.pixels.update(dict(zip(ids.tolist(), counts.tolist())))
    result.image_pixels.update(dict.fromkeys(ids.tolist(), label.size))
    unknown = [] if num_classes is None else result.unknown_ids(num_classes, ignore_value)
    if unknown:
        result.errors.append(f"label {label_path} has ids that are no class: {unknown}")
    return result


def _try(result: DatasetStatistics, function, *arguments):
    """What ``function`` returns; None and a line in the errors where it cannot read the data."""
    try:
        return function(*arguments)
    except DataError as error:
        result.errors.append(str(error))
        return None
