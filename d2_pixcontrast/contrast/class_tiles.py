"""Rows of mixed classes laid out so that matrix products run class by class."""

from typing import NamedTuple

import torch

_TILE = 32


class ClassTiles(NamedTuple):
    """Anchors in tiles of one class each; a fixed number of tiles, some of their rows empty.

    Attributes:
        index: (t, T) int64, the anchors; arbitrary in empty rows.
        valid: (t, T) bool.
        classes: (t,) int64, arbitrary in tiles without a row.
    """

    index: torch.Tensor
    valid: torch.Tensor
    classes: torch.Tensor

    def scatter(self, values: torch.Tensor, num_anchors: int) -> torch.Tensor:
        """(t, T, ...) values of the tiles' rows to (N, ...); 0 for anchors in no tile."""
        trailing = values.shape[2:]
        valid = self.valid.view(*self.valid.shape, *[1] * len(trailing))
        result = values.new_zeros(num_anchors, *trailing)
        return result.index_add_(0, self.index.flatten(), values.where(valid, 0).flatten(0, 1))


def class_tiles(
    labels: torch.Tensor, mask: torch.Tensor, num_classes: int, tile: int = _TILE
) -> ClassTiles:
    """Lay out the anchors (N,) that ``mask`` marks in tiles of ``tile`` rows of one class."""
    device = labels.device
    tile = max(1, min(tile, len(labels)))
    bins = labels.where(mask & (labels >= 0) & (labels < num_classes), num_classes)
    order = torch.argsort(bins)
    count = torch.zeros(num_classes + 1, dtype=torch.int64, device=device)
    count.scatter_add_(0, bins, torch.ones_like(bins))
    first_row = count.cumsum(0) - count
    tiles_of = (count[:-1] + tile - 1) // tile
    last_tile = tiles_of.cumsum(0)

    # Full tiles are at most N // tile, and each class that occurs adds at most a partial one.
    number = torch.arange(len(labels) // tile + min(num_classes, len(labels)), device=device)
    found = torch.searchsorted(last_tile, number, right=True)
    classes = found.clamp(max=num_classes - 1)
    row = (number - last_tile[classes] + tiles_of[classes])[:, None] * tile
    row = row + torch.arange(tile, device=device)
    valid = (found < num_classes)[:, None] & (row < count[classes, None])
    return ClassTiles(order[(first_row[classes, None] + row).where(valid, 0)], valid, classes)
