"""The memory of a whole data set that MCIBI reads: Jin et al., ICCV 2021, section 3.2."""

import torch
from torch.nn import functional as F

from .class_memory import ClassMemory, without_autocast
from .distributed import sum_over_ranks

STRATEGIES = ("cosine", "mean")

# A smaller sum of cosine distances is rounding: every feature points along its entry.
_SMALLEST_DISTANCE = 1e-6
_SHORTEST = 1e-8  # of a vector, in a cosine


class DatasetMemory(ClassMemory):
    """K representations of every class, moving means of its features in all images seen so far.

    An entry is empty as long as it is zero. Nothing else says what is filled, so that entries of a
    checkpoint that do not fit cannot leave a claim behind. An empty entry reads as zeros.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        entries_per_class: int = 1,
        strategy: str = "cosine",
        update_at: str = "label",
        dtype: torch.dtype = torch.float32,
    ):
        """
        Args:
            num_classes: C.
            channels: D, of the features that are stored.
            entries_per_class: K.
            strategy: "cosine": features count the more, the farther they are from their entry;
                "mean": all alike.
            update_at: "label": features are upsampled to the labels, as published; "grid": labels
                are taken to the features' grid by nearest neighbour.
            dtype: of the entries.

        Raises:
            ValueError: a number is below 1, ``strategy`` or ``update_at`` is unknown.
        """
        super().__init__(
            num_classes, channels, entries_per_class=entries_per_class, update_at=update_at
        )
        if strategy not in STRATEGIES:
            raise ValueError(f"STRATEGY is {strategy!r}; known are {STRATEGIES}")
        self.strategy = strategy
        shape = (num_classes, entries_per_class, channels)
        self.register_buffer("entries", torch.zeros(shape, dtype=dtype))

    @property
    def filled(self) -> torch.Tensor:
        """(C, K) bool."""
        return (self.entries != 0).any(dim=2)

    def reset(self) -> None:
        """Empty the memory."""
        self.entries.zero_()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, strategy={self.strategy}, {self.entries.dtype}"

    @torch.no_grad()
    def update(
        self, features: torch.Tensor, labels: torch.Tensor, *, momentum: float, ignore_value: int
    ) -> None:
        """Learn from one batch: section 3.2, "feature memory update".

        The first empty entry of a class takes the mean of the class' features, and that is all the
        class learns from the batch. Where all entries are filled, each feature F belongs to the
        entry M of its class that is nearest by cosine, and ::

            M <- (1 - momentum) * M + momentum * sum w F
            w = (1 - cos(F, M)) / sum (1 - cos(F, M))

        with equal w in the "mean" strategy and where sum (1 - cos) < 1e-6. Sums run over the pixels
        of all ranks. Entries without a pixel stay as they are.

        With several ranks all have to call it. Pixels whose feature is not finite are skipped.
        Labels may have any size; where they are smaller than the grid, they read the features by
        bilinear interpolation too.

        Args:
            features: (B, D, h, w).
            labels: (B, H, W) int64; ``ignore_value`` and ids outside 0..C-1 are skipped.
            momentum: share of what is new, in [0, 1].
            ignore_value: label of pixels without a class.

        Raises:
            ValueError: features of another number of channels, or labels of another batch.
        """
        with without_autocast(features):
            pixels, classes, valid = self.labelled_pixels(features, labels, ignore_value)
            filled, memory = self.filled, self.entries.to(valid.dtype)
            slots, distance = self._assign(pixels, memory, filled, classes)
            weights = [valid] if self.strategy == "mean" else [valid, valid * distance]
            sums = sum_over_ranks(pixels.sums(weights, slots, filled.numel()))
            new = learnt(memory.flatten(0, 1), filled.view(-1, 1), sums, momentum)
            self.entries.copy_(new.view_as(memory))

    def _assign(self, pixels, memory, filled, classes):
        """Slot (B, H, W) in 0..C*K-1 that each pixel updates, and 1 - cosine to what it holds."""
        per_class = self.entries_per_class
        if per_class == 1 and self.strategy == "mean":
            return classes, None
        entry = torch.arange(per_class, device=classes.device)[:, None, None]
        directions = F.normalize(memory.flatten(0, 1), dim=1, eps=_SHORTEST)
        cosine = pixels.dots(directions, classes[:, None] * per_class + entry)
        cosine /= pixels.lengths().clamp_(min=_SHORTEST)[:, None]
        # Rounding must not make weights negative.
        cosine.clamp_(-1, 1)
        if per_class == 1:
            return classes, 1 - cosine[:, 0]
        cosine, nearest = cosine.max(dim=1)
        full, first_empty = filled.all(dim=1), (~filled).int().argmax(dim=1)
        chosen = torch.where(full[classes], nearest, first_empty[classes])
        return classes * per_class + chosen, 1 - cosine


def learnt(
    memory: torch.Tensor, filled: torch.Tensor, sums: torch.Tensor, momentum: float
) -> torch.Tensor:
    """(S, D) entries after an update.

    Args:
        memory: (S, D) entries before it.
        filled: (S, 1) bool, which of them are not empty.
        sums: (S, R, D + 1) sums of the features of each entry, the number of them in the last
            column; with R = 2, then the same weighted by 1 - cosine.
        momentum: share of what is new.
    """
    plain, weighted = sums[:, 0], sums[:, -1]
    count, distance = plain[:, -1:], weighted[:, -1:]
    # Weights of 1 add up to 0, or to 1 and more but for rounding.
    mean = plain[:, :-1] / count.clamp(min=0.5)
    enough = distance >= _SMALLEST_DISTANCE
    new = torch.where(enough, weighted[:, :-1] / distance.where(enough, 1), mean)
    new = torch.where(filled, (1 - momentum) * memory + momentum * new, mean)
    return torch.where(count > 0, new, memory)
