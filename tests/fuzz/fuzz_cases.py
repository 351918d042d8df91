"""Batches that no data set should hold, and how many of them are tried.

Hypothesis draws the shapes, kinds and options of a batch, and a seed; its pixels follow from these.
So a failing case shrinks to few lines, and those are enough to repeat it.
"""

import os
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# Of the whole suite; `make fuzz` sets the variable.
TOTAL = int(os.environ.get("PIXCONTRAST_FUZZ_CASES", "300"))
SHARES = {
    "pixel_contrast": 75,
    "contextrast": 40,
    "multi_scale": 40,
    "samplers": 35,
    "bank": 25,
    "features_memory": 25,
    "statistics_memory": 15,
    "distance": 25,
    "head": 20,
}
LABEL_KINDS = ("void", "one class", "one pixel", "one row", "blocks", "noise", "huge", "any id")
FEATURE_KINDS = ("noise", "zeros", "constant", "one hot")
TEMPERATURES = st.sampled_from([0.01, 0.07, 0.1, 0.5, 1.0])


def cases(name: str):
    """Settings of the test that has this share of the cases: the same ones in every run of the
    short suite, new ones in a long one."""
    return settings(
        max_examples=max(1, TOTAL * SHARES[name] // sum(SHARES.values())),
        derandomize=TOTAL <= 300,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@dataclass
class Batch:
    """What is drawn for one case.

    Attributes:
        labels: (B, H, W) int64.
        grids: sizes (h, w) of the feature maps, at most that of the labels.
        num_classes: C.
        ignore_value: label without a class, in 0..C-1 too.
        seed: of everything that follows.
        dtype: of the features.
        feature_kind: one of FEATURE_KINDS.
        magnitude: of the features.
    """

    labels: torch.Tensor
    grids: list[tuple[int, int]]
    num_classes: int
    ignore_value: int
    seed: int
    dtype: torch.dtype
    feature_kind: str
    magnitude: float

    def generator(self, stream: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    def features(self, channels: int, grid: tuple[int, int], stream: int = 0) -> torch.Tensor:
        """(B, channels, h, w) of the case's kind, type and magnitude."""
        shape = (len(self.labels), channels, *grid)
        noise = torch.randn(shape, generator=self.generator(stream))
        if self.feature_kind == "zeros":
            noise = torch.zeros(shape)
        elif self.feature_kind == "constant":
            noise = noise[:1, :, :1, :1].expand(shape)
        elif self.feature_kind == "one hot":
            noise = (noise == noise.amax(1, keepdim=True)).float()
        limit = torch.finfo(self.dtype).max
        return (noise * self.magnitude).clamp(-limit, limit).to(self.dtype)

    def logits(self, grid: tuple[int, int]) -> torch.Tensor:
        """(B, C, h, w): mostly right where there are labels on this grid, constant, or noise."""
        shape = (len(self.labels), self.num_classes, *grid)
        if self.seed % 4 == 0:
            return torch.zeros(shape)
        return torch.randn(shape, generator=self.generator(99)) * 10.0 ** (self.seed % 7 - 2)

    def at(self, grid: tuple[int, int]) -> torch.Tensor:
        """(B, h, w) labels on a grid, by nearest neighbour."""
        height, width = self.labels.shape[1:]
        rows = [y * height // grid[0] for y in range(grid[0])]
        columns = [x * width // grid[1] for x in range(grid[1])]
        return self.labels[:, rows][:, :, columns]

    def known(self, labels: torch.Tensor) -> torch.Tensor:
        """Which labels are of a class."""
        return (labels != self.ignore_value) & (labels >= 0) & (labels < self.num_classes)

    def keys(self, count: int, stream: int) -> torch.Tensor:
        """(B, count) random keys."""
        shape = (len(self.labels), count)
        return torch.randint(2**32, shape, generator=self.generator(stream))


@st.composite
def batches(draw, num_grids: int = 1, legal: bool = False) -> Batch:
    """A :class:`Batch`; with ``legal`` of labels that the mapper would let pass."""
    num_classes = draw(st.sampled_from([1, 2, 3, 8, 19, 31]))
    ignore_value = draw(st.sampled_from([255, 255, -1, *(() if legal else (0, 11))]))
    size = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    seed = draw(st.integers(0, 10**6))
    kind = draw(st.sampled_from(LABEL_KINDS[: -2 if legal else None]))
    shape = (draw(st.integers(1, 3)), *size)
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        labels=_labels(kind, shape, num_classes, ignore_value, generator),
        grids=[
            (draw(st.integers(1, size[0])), draw(st.integers(1, size[1]))) for _ in range(num_grids)
        ],
        num_classes=num_classes,
        ignore_value=ignore_value,
        seed=seed,
        dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])),
        feature_kind=draw(st.sampled_from(FEATURE_KINDS)),
        magnitude=draw(st.sampled_from([1.0, 1.0, 1e-8, 1e4])),
    )


def _labels(kind, shape, num_classes, ignore_value, generator) -> torch.Tensor:
    labels = torch.full(shape, ignore_value)
    a_class = int(torch.randint(num_classes, (), generator=generator))
    if kind == "one class":
        labels[:] = a_class
    elif kind == "one pixel":
        labels[-1, shape[1] // 2, -1] = a_class
    elif kind == "one row":
        labels[:, -1] = torch.randint(num_classes, (shape[2],), generator=generator)
    elif kind == "blocks":
        labels = torch.randint(num_classes, (shape[0], 2, 2), generator=generator)
        labels = labels.repeat_interleave(7, 1).repeat_interleave(7, 2)[:, : shape[1], : shape[2]]
        labels[:, 0] = ignore_value
    elif kind == "noise":
        labels = torch.randint(num_classes, shape, generator=generator)
    elif kind == "huge":
        labels = torch.randint(-(2**62), 2**62, shape, generator=generator)
        labels[:, ::2] = torch.randint(num_classes, labels[:, ::2].shape, generator=generator)
    elif kind == "any id":
        labels = torch.randint(-3, 300, shape, generator=generator)
    return labels


def assert_finite(**values) -> None:
    """Every tensor, and of dicts every value, is there and finite."""
    for name, value in values.items():
        for key, tensor in value.items() if isinstance(value, dict) else [("", value)]:
            assert tensor is not None, f"{name} {key} is missing"
            assert torch.isfinite(tensor).all(), f"{name} {key} is not finite"
