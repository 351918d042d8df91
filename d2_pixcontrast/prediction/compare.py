"""Several checkpoints' predictions beside the image and its label."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..compat import CfgNode
from ..data.labels import check_label, check_same_size, read_label
from ..visualization.overlay import enlarge, label_overlay, legend_of
from ..visualization.panels import panel_row, stack
from .inputs import InputImage
from .outputs import picture_scale
from .predictor import Predictor

# "config.yaml:weights"; a colon elsewhere (a drive, a URL) belongs to the weights.
_PAIR = re.compile(r"(.+\.ya?ml):(.+)")


class Checkpoint(NamedTuple):
    """Weights, and the config file that builds their network."""

    config_file: str
    weights: str


def find_checkpoints(specs: list[str], config_file: str) -> list[Checkpoint]:
    """What ``--compare`` names.

    Args:
        specs: each ``WEIGHTS`` or ``CONFIG:WEIGHTS``.
        config_file: the config of those that name none.

    Raises:
        ValueError: one has no config.
    """
    found = []
    for spec in specs:
        pair = _PAIR.fullmatch(spec)
        found.append(Checkpoint(*(pair.groups() if pair else (config_file, spec))))
        if not found[-1].config_file:
            raise ValueError(f"--compare {spec}: --config-file is missing, or CONFIG:{spec}")
    return found


class Comparison:
    """The panels: image, label where there is one, and each checkpoint's prediction."""

    def __init__(self, checkpoints: list[Checkpoint], cfgs: list[CfgNode]):
        """
        Args:
            checkpoints: what to compare.
            cfgs: the config of each.

        Raises:
            ValueError: a checkpoint does not fit, or their classes differ.
        """
        self.captions = captions(checkpoints)
        self.predictors = [
            Predictor(cfg, checkpoint.weights)
            for cfg, checkpoint in zip(cfgs, checkpoints, strict=True)
        ]
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


def captions(checkpoints: list[Checkpoint]) -> list[str]:
    """Short names that differ: of the weights, else of the configs, else of both."""
    weights = _short_names([checkpoint.weights for checkpoint in checkpoints])
    configs = _short_names([checkpoint.config_file for checkpoint in checkpoints])
    both = [f"{config}: {name}" for config, name in zip(configs, weights, strict=True)]
    for names in (weights, configs, both):
        if len(set(names)) == len(names):
            return names
    return [f"{number}. {name}" for number, name in enumerate(weights, start=1)]


def _short_names(paths: list[str]) -> list[str]:
    """The shortest ends, without suffix, that tell different paths apart."""
    parts = {path: Path(path).with_suffix("").parts for path in paths}
    for length in range(1, max(map(len, parts.values())) + 1):
        ends = {path: os.path.join(*part[-length:]) for path, part in parts.items()}
        if len(set(ends.values())) == len(ends):
            return [ends[path] for path in paths]
    return paths  # some differ in nothing but their suffix
