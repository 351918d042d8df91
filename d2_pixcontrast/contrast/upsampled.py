"""Sums over bilinearly upsampled features that are never written out."""

from typing import NamedTuple

import torch
from torch.nn import functional as F


class Axis(NamedTuple):
    """How ``interpolate(mode="bilinear", align_corners=False)`` reads one axis.

    Pixel i is ``(1 - fraction[i]) * cell[first[i]] + fraction[i] * cell[first[i] + 1]``.

    Attributes:
        first: (N,) int64.
        fraction: (N,) in [0, 1].
        exact: every pixel is a cell: there may be no second one, and it is not to be read.
    """

    first: torch.Tensor
    fraction: torch.Tensor
    exact: bool

    def taps(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The cells (N,) that each pixel reads, and their weights (N,)."""
        if self.exact:
            return [(self.first, torch.ones_like(self.fraction))]
        return [(self.first, 1 - self.fraction), (self.first + 1, self.fraction)]

    def square(self, own: torch.Tensor, pairs: torch.Tensor | None, dim: int) -> torch.Tensor:
        """Squared length of the pixels, from products of the cells.

        Args:
            own: (..., n, ...) product of each cell with itself.
            pairs: (..., n - 1, ...) product of each cell with the next; None on an exact axis.
            dim: the axis, counted from the end.
        """
        if self.exact:
            return own.index_select(dim, self.first)
        fraction = self.fraction.view(-1, *[1] * (-dim - 1))
        result = own.index_select(dim, self.first) * (1 - fraction) ** 2
        result += pairs.index_select(dim, self.first) * (2 * fraction * (1 - fraction))
        return result.add_(own.index_select(dim, self.first + 1) * fraction**2)


def bilinear_axis(cells: int, pixels: int, like: torch.Tensor) -> Axis:
    """The axis that resamples ``cells`` to ``pixels``, on the device and in the dtype of ``like``.

    Fewer pixels than cells are point samples, as with ``interpolate(antialias=False)``.
    """
    number = torch.arange(pixels, device=like.device)
    if cells in (1, pixels):
        return Axis(number % cells, like.new_zeros(pixels), True)
    centre = (number.to(like.dtype) + 0.5) * (cells / pixels) - 0.5
    centre = centre.clamp(0, cells - 1)
    # The last cell is the second of a pair, so that every pixel has two.
    first = centre.floor().clamp(max=cells - 2)
    return Axis(first.long(), centre - first, False)


class UpsampledFeatures:
    """Features (B, D, h, w) as seen at the pixels of a (H, W) label map.

    Stands for ``interpolate(features, (H, W), mode="bilinear", align_corners=False)`` without its
    B * D * H * W numbers: a dot product of an interpolated vector is the interpolated dot product,
    its length follows from the products of neighbouring cells, and a weighted sum of interpolated
    vectors is a sum over cells, whose weights the transposed interpolation collects.

    Attributes:
        finite: (B, H, W) bool, False at pixels that read a cell with a channel that is not finite
            (or so large that its square is not). These cells count as zeros.
    """

    def __init__(self, features: torch.Tensor, size: tuple[int, int]):
        """
        Args:
            features: (B, D, h, w), float32 or float64.
            size: (H, W).
        """
        # A quarter leaves room for what is computed from four of them.
        limit = torch.finfo(features.dtype).max / 4
        good = features.square().sum(1, keepdim=True) < limit  # False for NaN
        self.features = features.where(good, 0)
        bad = F.interpolate((~good).to(features.dtype), size, mode="bilinear", align_corners=False)
        self.finite = bad[:, 0] == 0
        height, width = features.shape[2:]
        self._rows = bilinear_axis(height, size[0], features)
        self._columns = bilinear_axis(width, size[1], features)

    def dots(self, vectors: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Dot product of every pixel with the vectors chosen for it.

        Args:
            vectors: (S, D).
            slots: (B, K, H, W) int64 in [0, S).

        Returns:
            (B, K, H, W).
        """
        cells = torch.matmul(vectors, self.features.flatten(2)).flatten()
        base = self._base(slots, len(vectors))
        result = vectors.new_zeros(slots.shape)
        for cell, weight in self._corners():
            result += cells[base + cell] * weight
        return result

    def lengths(self) -> torch.Tensor:
        """(B, H, W) length of every pixel's vector."""
        f, rows, columns = self.features, self._rows, self._columns
        right = None if columns.exact else _dot(f[..., :-1], f[..., 1:])
        own = columns.square(_dot(f, f), right, -1)
        if rows.exact:
            return rows.square(own, None, -2).sqrt()
        above, below = f[:, :, :-1], f[:, :, 1:]
        cross = None
        if not columns.exact:
            cross = _dot(above[..., :-1], below[..., 1:]) + _dot(above[..., 1:], below[..., :-1])
            cross /= 2
        down = columns.square(_dot(above, below), cross, -1)
        # Where neighbours cancel out, rounding may leave less than nothing.
        return rows.square(own, down, -2).clamp_(min=0).sqrt_()

    def sums(
        self, weights: torch.Tensor, slots: torch.Tensor, num_slots: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted sum of the pixels' vectors in each slot.

        Args:
            weights: (B, H, W); 0 leaves a pixel out.
            slots: (B, H, W) int64 in [0, S).
            num_slots: S.

        Returns:
            (S, D) sums of the vectors and (S,) sums of the weights.
        """
        batch, _, height, width = self.features.shape
        cells = weights.new_zeros(batch * num_slots * height * width)
        base = self._base(slots[:, None], num_slots)[:, 0]
        for cell, weight in self._corners():
            cells.scatter_add_(0, (base + cell).flatten(), (weights * weight).flatten())
        cells = cells.view(batch, num_slots, height * width)
        sums = torch.bmm(cells, self.features.flatten(2).transpose(1, 2)).sum(0)
        return sums, cells.sum((0, 2))

    def _base(self, slots, num_slots):
        """Position of (image, slot, cell 0) in a flattened (B, S, h * w), for (B, K, H, W)."""
        batch, _, height, width = self.features.shape
        image = torch.arange(batch, device=slots.device).view(-1, 1, 1, 1)
        return (image * num_slots + slots) * (height * width)

    def _corners(self):
        """(H, W) cells that the pixels read, and their weights: one, two or four pairs."""
        width = self.features.shape[3]
        for row, row_weight in self._rows.taps():
            for column, column_weight in self._columns.taps():
                cell = row[:, None] * width + column
                yield cell, row_weight[:, None] * column_weight


def _dot(a, b):
    """(B, D, h, w) twice to (B, h, w)."""
    return (a * b).sum(1)
