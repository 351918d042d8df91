"""Class colours."""

import numpy as np

from ..data.datasets.colors import distinct_colors

VOID_COLOR = (255, 255, 255)


def class_colors(metadata) -> np.ndarray:
    """Colours of a data set's classes.

    Args:
        metadata: detectron2 metadata with ``stuff_classes``; ``stuff_colors`` where it has them.

    Returns:
        (C, 3) uint8 RGB: ``stuff_colors``, or else a palette that depends on C alone.

    Raises:
        ValueError: the data set has another number of colours than classes.
    """
    names = metadata.stuff_classes
    colors = metadata.get("stuff_colors") or distinct_colors(len(names))
    if len(colors) != len(names):
        raise ValueError(f"{metadata.name} has {len(names)} classes, but {len(colors)} colours")
    return np.asarray(colors, dtype=np.uint8)


def colorize(
    ids: np.ndarray, colors: np.ndarray, void_color: tuple[int, int, int] = VOID_COLOR
) -> np.ndarray:
    """Colour a map of class ids.

    Args:
        ids: (H, W) integers; whatever is outside 0..C-1 (the ignore value) is void.
        colors: (C, 3) uint8 RGB.
        void_color: RGB.

    Returns:
        (H, W, 3) uint8.
    """
    table = np.vstack([colors, void_color]).astype(np.uint8)
    return table[class_index(ids, len(colors))]


def class_index(ids: np.ndarray, num_classes: int) -> np.ndarray:
    """``ids`` as int64 with ``num_classes`` in place of everything that is no class."""
    ids = np.asarray(ids).astype(np.int64)
    return np.where((ids >= 0) & (ids < num_classes), ids, num_classes)
