"""The memory bank of pixel contrast: Wang et al., ICCV 2021, section 3.4."""

import torch
from torch import nn
from torch.nn import functional as F

from .class_memory import without_autocast
from .class_queue import ClassEntries, ClassQueue
from .distributed import gather_batch
from .sampling import gather_pixels, sample_group_pixels

# Shorter sums of unit vectors have no direction: the rest is rounding.
_SHORTEST_SUM = 1e-6


class MemoryBank(nn.Module):
    """Region and pixel entries of earlier batches, unit vectors without gradient.

    A *region* entry is the renormalised mean of a class' unit embeddings in one image, one for each
    (image, class) present, however small. *Pixel* entries are up to ``pixels_per_group`` random
    pixels of it. With several ranks the candidates of all of them are written in global batch
    order, so that the banks stay bit-equal.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        region_size: int = 5000,
        pixel_size: int = 5000,
        pixels_per_group: int = 10,
        dtype: torch.dtype = torch.float32,
    ):
        """
        Args:
            num_classes: C.
            dim: D, channels of the embeddings.
            region_size: region entries per class; 0 = no region store, none is gathered.
            pixel_size: pixel entries per class; 0 = no pixel store, none is gathered.
            pixels_per_group: pixel entries of one (image, class), at most.
            dtype: of the entries, float32 or bfloat16 (float64 for tests).

        Raises:
            ValueError: both sizes are 0, or a number is negative.
        """
        super().__init__()
        if min(region_size, pixel_size) < 0 or region_size + pixel_size == 0:
            raise ValueError(
                f"a memory bank needs a store: REGION_SIZE {region_size}, PIXEL_SIZE {pixel_size}"
            )
        if pixel_size and pixels_per_group < 1:
            raise ValueError(f"PIXELS_PER_GROUP has to be above 0, got {pixels_per_group}")
        self.num_classes = num_classes
        self.pixels_per_group = pixels_per_group if pixel_size else 0
        self.region = ClassQueue(num_classes, region_size, dim, dtype) if region_size else None
        self.pixel = ClassQueue(num_classes, pixel_size, dim, dtype) if pixel_size else None

    @property
    def stores(self) -> dict[str, ClassQueue]:
        """The stores there are, by name."""
        pairs = {"region": self.region, "pixel": self.pixel}
        return {name: store for name, store in pairs.items() if store is not None}

    def entries(self) -> list[ClassEntries]:
        """What :func:`pixel_contrast_loss` takes as ``bank``: views, not copies."""
        return [store.entries() for store in self.stores.values()]

    def fill_ratio(self) -> torch.Tensor:
        """(C,) share of each class' slots that are filled, both stores together."""
        size = sum(store.rows.shape[1] for store in self.stores.values())
        return sum(store.fill for store in self.stores.values()) / size

    def memory_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    @torch.no_grad()
    def enqueue(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        pixel_keys: torch.Tensor,
        *,
        ignore_value: int,
    ) -> None:
        """Write one batch. With several ranks all have to call it, with the same shapes.

        Args:
            embeddings: (B, D, h, w) unit vectors.
            labels: (B, h, w) int64 on the same grid; ``ignore_value`` and ids outside 0..C-1 are
                skipped.
            pixel_keys: (B, h * w) int64 in [0, 2**32), random.
            ignore_value: label of pixels without a class.

        Raises:
            ValueError: labels and embeddings are on different grids.
        """
        if labels.shape[1:] != embeddings.shape[2:]:
            raise ValueError(
                f"labels {tuple(labels.shape)} and embeddings {tuple(embeddings.shape)} are on "
                "different grids"
            )
        with without_autocast(embeddings):  # which would sum up the regions in half precision
            candidates, mask = self._candidates(embeddings, labels, pixel_keys, ignore_value)
        self._write(gather_batch(candidates.to(self._dtype)), gather_batch(mask))

    def _candidates(self, embeddings, labels, pixel_keys, ignore_value):
        """(B, C, 1 + P, D) rows and (B, C, 1 + P) mask: the region mean, if stored, the pixels."""
        candidates, mask = [], []
        if self.region is not None:
            rows, valid = region_means(embeddings, labels, self.num_classes, ignore_value)
            candidates.append(rows[:, :, None])
            mask.append(valid[:, :, None])
        if self.pixel is not None:
            rows, valid = self._pixels(embeddings, labels, pixel_keys, ignore_value)
            candidates.append(rows)
            mask.append(valid)
        candidates, mask = torch.cat(candidates, 2), torch.cat(mask, 2)
        # An overflow in one step must not stay in the bank for thousands of them, nor must zeros.
        length = candidates.norm(dim=-1)
        mask &= length.isfinite() & (length > 0)
        return candidates, mask

    @property
    def _dtype(self):
        return next(self.buffers()).dtype

    def _pixels(self, embeddings, labels, pixel_keys, ignore_value):
        """(B, C, P, D) rows and (B, C, P) mask."""
        index, mask = sample_group_pixels(
            labels,
            pixel_keys,
            num_classes=self.num_classes,
            ignore_value=ignore_value,
            per_group=self.pixels_per_group,
        )
        return gather_pixels(embeddings, index.flatten()).view(*index.shape, -1), mask

    def _write(self, candidates, mask):
        """(B, C, 1 + P, D) of the global batch: the region mean, if stored, then the pixels."""
        rows, mask = candidates.transpose(0, 1), mask.transpose(0, 1)
        regions = int(self.region is not None)
        if self.region is not None:
            self.region.push(rows[:, :, 0], mask[:, :, 0])
        if self.pixel is not None:
            self.pixel.push(rows[:, :, regions:].flatten(1, 2), mask[:, :, regions:].flatten(1, 2))


def region_means(
    embeddings: torch.Tensor, labels: torch.Tensor, num_classes: int, ignore_value: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Renormalised mean embedding of every (image, class).

    Args:
        embeddings: (B, D, h, w) unit vectors.
        labels: (B, h, w) int64; ``ignore_value`` and ids outside 0..C-1 are of no class.
        num_classes: C.
        ignore_value: label of pixels without a class.

    Returns:
        (B, C, D) unit vectors and a (B, C) bool mask of those that exist.
    """
    flat = labels.where(labels != ignore_value, -1).flatten(1)
    classes = torch.arange(num_classes, device=labels.device)
    members = flat[:, None, :] == classes[:, None]
    sums = torch.bmm(members.to(embeddings.dtype), embeddings.flatten(2).transpose(1, 2))
    mask = members.any(dim=2) & (sums.norm(dim=2) > _SHORTEST_SUM)
    return F.normalize(sums, dim=2), mask
