"""What the report draws from."""

from dataclasses import dataclass, field

import numpy as np

from .tsne import Embedding2D


@dataclass
class RunResult:
    """One trained model.

    Attributes:
        name: as the page calls it.
        scores: "mIoU" and "IoU-<class>" in percent, as the evaluator returns them.
        history: the lines of the run's metrics.json.
        predictions: (H, W) class ids of each of the page's samples.
        embedding: t-SNE of its features, if there is one.
    """

    name: str
    scores: dict[str, float]
    history: list[dict] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)
    embedding: Embedding2D | None = None


@dataclass
class Sample:
    """An image that the page shows.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) class ids; anything that is no class is void.
        name: for the hover title.
    """

    image: np.ndarray
    label: np.ndarray
    name: str


@dataclass
class Page:
    """What all sections of the page draw from."""

    runs: list[RunResult]
    samples: list[Sample]
    names: list[str]
    colors: np.ndarray
