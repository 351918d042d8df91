"""What is written of a prediction."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..visualization.overlay import legend_of, overlay
from ..visualization.panels import stack
from .cityscapes import LABEL_IDS, submission_name, to_label_ids
from .inputs import InputImage
from .predictor import Prediction

OVERLAY, LABEL, PROBABILITIES, SUBMISSION = "overlay", "label", "probabilities", "cityscapes"
COMPARE = "compare"
RESULT_FOLDERS = (OVERLAY, LABEL, PROBABILITIES, SUBMISSION, COMPARE)


class ResultWriter:
    """Writes into a folder, for every image:

    * ``overlay/<name>.png``: the classes' colours over the image, with a legend of those found;
    * ``label/<name>.png``: the class ids, 8-bit grey, or 16-bit with more than 255 classes;
    * optionally ``probabilities/<name>.npz``: "probabilities", (C, H, W) float16;
    * optionally ``cityscapes/<city>_<sequence>_<frame>_pred.png``: labelIds for the server.
    """

    def __init__(
        self,
        folder: Path,
        class_names: list[str],
        colors: np.ndarray,
        *,
        probabilities: bool = False,
        submission: bool = False,
    ):
        """
        Args:
            folder: is made when it is first written to.
            class_names: C names.
            colors: (C, 3) uint8 RGB.
            probabilities, submission: also write these.

        Raises:
            ValueError: a submission needs the 19 classes of Cityscapes.
        """
        if submission and len(class_names) != len(LABEL_IDS):
            raise ValueError(
                f"--cityscapes-submission needs a model of Cityscapes' {len(LABEL_IDS)} classes; "
                f"this one has {len(class_names)}"
            )
        self._folder = Path(folder)
        self._class_names = class_names
        self._colors = colors
        self._probabilities = probabilities
        self._submission = submission

    def write(self, source: InputImage, image: np.ndarray, prediction: Prediction) -> None:
        """
        Args:
            source: where the image comes from.
            image: (H, W, 3) uint8 RGB.
            prediction: of it.

        Raises:
            DataError: for a submission the image has no official name.
        """
        classes = prediction.classes
        self._save(classes, LABEL, f"{source.name}.png")
        self._save(self._draw(image, classes), OVERLAY, f"{source.name}.png")
        if self._probabilities:
            path = self._path(PROBABILITIES, f"{source.name}.npz")
            values = prediction.probabilities.half().cpu().numpy()
            np.savez_compressed(path, probabilities=values)
        if self._submission:
            self._save(to_label_ids(classes), SUBMISSION, submission_name(source.path))

    def _draw(self, image: np.ndarray, classes: np.ndarray) -> np.ndarray:
        picture = overlay(image, classes, self._colors, scale=picture_scale(image))
        key = legend_of([classes], self._class_names, self._colors, width=picture.shape[1])
        return stack([picture, key])

    def _save(self, pixels: np.ndarray, kind: str, name: str) -> None:
        Image.fromarray(pixels).save(self._path(kind, name))

    def _path(self, kind: str, name: str) -> Path:
        path = self._folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def picture_scale(image: np.ndarray, least_width: int = 480) -> int:
    """The whole factor by which a small image is enlarged, so that a legend has room below it."""
    return -(-least_width // image.shape[1])
