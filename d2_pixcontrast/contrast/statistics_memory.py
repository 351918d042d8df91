"""The memory of MCIBI++ (Jin et al., TPAMI 2023): two numbers for every class."""

import torch

from .class_memory import ClassMemory, without_autocast
from .distributed import sum_over_ranks


class StatisticsMemory(ClassMemory):
    """Mean and standard deviation, over its channels, of every class' mean feature.

    A class is read as mean + std * code, a fixed vector of standard-normal numbers of its own that
    is drawn once. It is empty as long as its statistics are (0, 1), and then reads as its code.
    """

    def __init__(self, num_classes: int, channels: int, *, seed: int = 0, update_at: str = "label"):
        """
        Args:
            num_classes: C.
            channels: D, of the features; at least 2.
            seed: of the codes. They are saved, so that no checkpoint depends on how they are drawn.
            update_at: "label": features are upsampled to the labels, as published; "grid": labels
                are taken to the features' grid by nearest neighbour.

        Raises:
            ValueError: a number is too small, or ``update_at`` is unknown.
        """
        super().__init__(num_classes, channels, entries_per_class=1, update_at=update_at)
        if channels < 2:
            raise ValueError("a standard deviation over channels needs at least 2 of them")
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randn(num_classes, channels, generator=generator, device="cpu")
        self.register_buffer("codes", codes)
        self.register_buffer("statistics", torch.tensor([[0.0, 1.0]]).repeat(num_classes, 1))

    @property
    def entries(self) -> torch.Tensor:
        """(C, 1, D) what the classes are read as."""
        mean, std = self.statistics.split(1, dim=1)
        return (mean + std * self.codes)[:, None]

    @property
    def filled(self) -> torch.Tensor:
        """(C, 1) bool."""
        mean, std = self.statistics.split(1, dim=1)
        return (mean != 0) | (std != 1)

    def reset(self) -> None:
        """Empty the memory; the codes stay."""
        self.statistics[:, 0], self.statistics[:, 1] = 0, 1

    @torch.no_grad()
    def update(
        self, features: torch.Tensor, labels: torch.Tensor, *, momentum: float, ignore_value: int
    ) -> None:
        """Learn from one batch.

        With f the mean feature of a class over the pixels of all ranks, its two numbers move by
        ``momentum`` towards the mean and the (unbiased) standard deviation of f's D channels.
        Classes without a pixel stay as they are, also where other ranks see them.

        With several ranks all have to call it. Pixels whose feature is not finite are skipped.

        Args:
            features: (B, D, h, w).
            labels: (B, H, W) int64; ``ignore_value`` and ids outside 0..C-1 are skipped.
            momentum: share of what is new, in [0, 1]; 0.1 as published.
            ignore_value: label of pixels without a class.

        Raises:
            ValueError: features of another number of channels, or labels of another batch.
        """
        with without_autocast(features):
            pixels, classes, valid = self.labelled_pixels(features, labels, ignore_value)
            sums = sum_over_ranks(pixels.sums([valid], classes, self.num_classes))[:, 0]
            count = sums[:, -1:]
            mean = sums[:, :-1] / count.clamp(min=0.5)
            new = torch.stack([mean.mean(dim=1), mean.std(dim=1)], dim=1)
            old = self.statistics.to(new.dtype)
            moved = (1 - momentum) * old + momentum * new
            self.statistics.copy_(torch.where(count > 0, moved, old))
