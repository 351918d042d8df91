"""What a term may look at."""

from dataclasses import dataclass, field

import torch

from ...contrast import nearest_resize, random_keys
from ..decoder.base import on_finest_grid


@dataclass(frozen=True)
class TrainingProgress:
    """Where training stands, in plain host numbers.

    Attributes:
        iteration: of the step that runs now, from 0.
        max_iter: of the whole training.
        lr_factor: the schedule's factor now (1 at the start, 0 at the end with poly).
        seed: of the run's random draws.
    """

    iteration: int = 0
    max_iter: int = 1
    lr_factor: float = 1.0
    seed: int = 0

    @property
    def fraction(self) -> float:
        """Share of the training that is done, 0 to 1."""
        return self.iteration / max(self.max_iter, 1)


@dataclass
class TermInputs:
    """One training batch as the head sees it.

    Attributes:
        features: {name: (B, C, h, w)} encoder features, and the decoder's output as "decoder".
        logits: (B, C, h, w), before any upsampling.
        labels: (B, H, W) int64.
        ignore_value: label without a class.
        progress: where training stands.
        first_image: index of this rank's first image in the global batch.
        align_corners: where features are brought to one grid.
    """

    features: dict[str, torch.Tensor]
    logits: torch.Tensor
    labels: torch.Tensor
    ignore_value: int
    progress: TrainingProgress
    first_image: int = 0
    align_corners: bool = False
    _cache: dict = field(default_factory=dict, repr=False)

    def concatenated(self, names: list[str]) -> torch.Tensor:
        """The named features, brought to the size of the first and concatenated."""
        if len(names) == 1:
            return self.features[names[0]]
        return on_finest_grid(self.features, names, self.align_corners)

    def labels_at(self, size: tuple[int, int]) -> torch.Tensor:
        """(B, h, w) labels on a grid of this size, by nearest neighbour."""
        return self._resized("labels", self.labels, size)

    def predictions_at(self, size: tuple[int, int]) -> torch.Tensor:
        """(B, h, w) argmax of the logits on their own grid, by nearest neighbour from there."""
        if "argmax" not in self._cache:
            self._cache["argmax"] = self.logits.detach().argmax(dim=1)
        return self._resized("predictions", self._cache["argmax"], size)

    def random_keys(self, count: int, stream: int) -> torch.Tensor:
        """(B, count) random keys of this rank's images."""
        device = self.labels.device
        images = torch.arange(self.labels.shape[0], device=device) + self.first_image
        return random_keys(self.progress.seed, self.progress.iteration, images, count, stream)

    def _resized(self, kind, maps, size):
        key = (kind, tuple(size))
        if key not in self._cache:
            self._cache[key] = nearest_resize(maps, size)
        return self._cache[key]
