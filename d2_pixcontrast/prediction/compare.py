"""Several checkpoints' predictions beside the image and its label."""

import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.labels import check_label, check_same_size, read_label
from ..engine import load_cfg
from ..visualization.overlay import enlarge, label_overlay, legend_of
from ..visualization.panels import panel_row, stack
from .inputs import InputImage
from .outputs import picture_scale
from .predictor import Predictor

# "config.yaml:weights"; a colon elsewhere (a drive, a URL) belongs to the weights.
_PAIR = re.compile(r"(.+\.ya?ml):(.+)")


class Comparison:
    """The panels: image, label where there is one, and each checkpoint's prediction."""

    def __init__(self, specs: list[str], config_file: str, opts: list[str]):
        """
        Args:
            specs: checkpoints, each a path or ``CONFIG:WEIGHTS``.
            config_file: the config of those that name none.
            opts: KEY VALUE pairs for all of them.

        Raises:
            ValueError: a checkpoint has no config, does not fit, or their classes differ.
        """
        pairs = [_config_and_weights(spec, config_file) for spec in specs]
        self.captions = captions([weights for _, weights in pairs])
        self.predictors = [Predictor(load_cfg(config, opts), weights) for config, weights in pairs]
        names = [predictor.class_names for predictor in self.predictors]
        if any(other != names[0] for other in names):
            raise ValueError("--compare: the checkpoints do not have the same classes")

    def write(self, path: Path, source: InputImage, image: np.ndarray) -> None:
        """Write the panels of one image.

        Args:
            path: of the picture.
            source: the image's label is read from its ``label_path``.
            image: (H, W, 3) uint8 RGB.

        Raises:
            DataError: the label cannot be read or does not fit the image.
        """
        names, colors = self.predictors[0].class_names, self.predictors[0].colors
        maps = {}
        if source.label_path:
            maps["label"] = self._label(source, image)
        for caption, predictor in zip(self.captions, self.predictors, strict=True):
            maps[caption] = predictor(image).classes
        scale = picture_scale(image, 320)
        panels = [(source.name, enlarge(image, scale))]
        panels += [(k, label_overlay(image, ids, colors, scale=scale)) for k, ids in maps.items()]
        row = panel_row(panels)
        key = legend_of(list(maps.values()), names, colors, width=row.shape[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stack([row, key])).save(path)

    def _label(self, source: InputImage, image: np.ndarray) -> np.ndarray:
        label = read_label(source.label_path)
        check_same_size(image, label, source.path, source.label_path)
        first = self.predictors[0]
        check_label(label, len(first.class_names), first.ignore_value, source.label_path)
        return label


def captions(paths: list[str]) -> list[str]:
    """The shortest ends of the paths, without suffix, that tell them apart."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        ends = [os.path.join(*path[-length:]) for path in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [f"{number}. {path}" for number, path in enumerate(ends, start=1)]


def _config_and_weights(spec: str, config_file: str) -> tuple[str, str]:
    match = _PAIR.fullmatch(spec)
    if match:
        return match[1], match[2]
    if not config_file:
        raise ValueError(f"--compare {spec}: give --config-file, or CONFIG:{spec}")
    return config_file, spec
