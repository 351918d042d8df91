"""A small synthetic dataset that is drawn on first use and kept in a cache folder.

The folder is ``$PIXCONTRAST_CACHE``, else ``$XDG_CACHE_HOME/d2_pixcontrast``, else
``~/.cache/d2_pixcontrast``.
"""

import logging
import os
import shutil
import tempfile

import numpy as np
from PIL import Image

from ..labels import DataError
from .shapes_drawing import SHAPES, VOID, draw
from .spec import SemSegDataset

# In the folder's name; to be raised with every change of what is drawn.
VERSION = 2
SPLITS = {"train": 400, "val": 60}
CLASSES = {
    "background": (58, 64, 77),
    "disc": (230, 85, 75),
    "ring": (245, 170, 60),
    "square": (70, 130, 215),
    "rhombus": (95, 205, 225),
    "triangle": (85, 185, 95),
    "star": (245, 230, 90),
    "cross": (185, 105, 215),
}


class ShapesDataset(SemSegDataset):
    """A split of the synthetic set."""

    def root(self) -> str:
        return prepare()


DATASETS = [
    ShapesDataset(
        name=f"shapes_sem_seg_{split}",
        image_dir=f"{split}/images",
        label_dir=f"{split}/labels",
        image_suffix=".png",
        label_suffix=".png",
        classes=("background", *SHAPES),
        colors=tuple(CLASSES[name] for name in ("background", *SHAPES)),
        ignore_label=VOID,
        origin="It is drawn when it is first used; remove the folder to have it drawn again.",
    )
    for split in SPLITS
]


def prepare() -> str:
    """Draw the dataset unless it is there, and return its folder.

    Several processes may do so at the same time: each draws into a folder of its own, and the
    first to finish gives it the final name.

    Raises:
        DataError: the folder's parent cannot be written to.
    """
    folder = os.path.join(_cache_folder(), f"shapes_v{VERSION}")
    if os.path.isdir(folder):
        return folder
    try:
        os.makedirs(_cache_folder(), exist_ok=True)
        draft = tempfile.mkdtemp(prefix="shapes_", dir=_cache_folder())
    except OSError as error:
        raise DataError(
            f"the shapes cannot be drawn into {folder} ({error.strerror}); the environment "
            "variable PIXCONTRAST_CACHE names another folder"
        ) from error
    logging.getLogger(__name__).info("Drawing the synthetic dataset into %s", folder)
    try:
        os.chmod(draft, 0o755)
        for number, (split, count) in enumerate(SPLITS.items()):
            _draw_split(os.path.join(draft, split), number, count)
        os.rename(draft, folder)
    except OSError:
        if not os.path.isdir(folder):  # else another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _draw_split(folder: str, number: int, count: int) -> None:
    images, labels = os.path.join(folder, "images"), os.path.join(folder, "labels")
    os.makedirs(images)
    os.makedirs(labels)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(CLASSES)] = [CLASSES[name] for name in ("background", *SHAPES)]
    palette[VOID] = 255
    for index in range(count):
        image, label = draw(np.random.RandomState([VERSION, number, index]))
        Image.fromarray(image).save(os.path.join(images, f"{index:04d}.png"))
        label = Image.fromarray(label)
        label.putpalette(palette.ravel().tolist())  # so that a viewer shows the classes
        label.save(os.path.join(labels, f"{index:04d}.png"))


def _cache_folder() -> str:
    default = os.path.join(os.path.expanduser("~"), ".cache")
    xdg = os.path.join(os.environ.get("XDG_CACHE_HOME") or default, "d2_pixcontrast")
    return os.environ.get("PIXCONTRAST_CACHE") or xdg
