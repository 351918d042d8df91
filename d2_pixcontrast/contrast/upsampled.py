"""Sums over bilinearly upsampled features that are never written out."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

_CHANNELS = 64  # of how many the products are held at a time


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

    def weights(self) -> list[torch.Tensor]:
        """Weights (N,) of the cells that each pixel reads, one or two."""
        if self.exact:
            return [torch.ones_like(self.fraction)]
        return [1 - self.fraction, self.fraction]

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
        own = _dot(features, features)
        # A quarter: sums of a few products of neighbours have to be finite too.
        good = own < torch.finfo(own.dtype).max / 4  # False for NaN
        self._own = own.where(good, 0)
        self._features = features.where(good[:, None], 0)
        bad = F.interpolate((~good[:, None]).to(own.dtype), size, mode="bilinear")
        self.finite = bad[:, 0] == 0
        self._rows = bilinear_axis(features.shape[2], size[0], features)
        self._columns = bilinear_axis(features.shape[3], size[1], features)

    def dots(self, vectors: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Dot product of every pixel with the vectors chosen for it.

        Args:
            vectors: (S, D).
            slots: (B, K, H, W) int64 in [0, S).

        Returns:
            (B, K, H, W).
        """
        cells = torch.matmul(vectors, self._features.flatten(2)).flatten()
        index = self._index(slots, len(vectors))
        result = vectors.new_zeros(slots.shape)
        for step, weight in self._corners():
            index += step
            # Of all ways to index, index_select is the fastest on the CPU.
            result.addcmul_(cells.index_select(0, index.view(-1)).view_as(result), weight)
        return result

    def lengths(self) -> torch.Tensor:
        """(B, H, W) length of every pixel's vector."""
        f, rows, columns = self._features, self._rows, self._columns
        right = None if columns.exact else _dot(f[..., :-1], f[..., 1:])
        own, down = columns.square(self._own, right, -1), None
        if not rows.exact:
            above, below, cross = f[:, :, :-1], f[:, :, 1:], None
            if not columns.exact:
                cross = _dot(above[..., :-1], below[..., 1:])
                cross = (cross + _dot(above[..., 1:], below[..., :-1])) / 2
            down = columns.square(_dot(above, below), cross, -1)
        # Where neighbours cancel out, rounding may leave less than nothing.
        return rows.square(own, down, -2).clamp_(min=0).sqrt_()

    def sums(
        self, weights: list[torch.Tensor], slots: torch.Tensor, num_slots: int
    ) -> torch.Tensor:
        """Weighted sums of the pixels' vectors in each slot.

        Args:
            weights: R times (B, H, W); 0 leaves a pixel out.
            slots: (B, H, W) int64 in [0, S).
            num_slots: S.

        Returns:
            (S, R, D + 1): the sums of the vectors, and in the last column those of the weights.
        """
        batch, channels, height, width = self._features.shape
        shape = (len(weights), batch, num_slots, height * width)
        cells = self._features.new_zeros(shape)
        index = self._index(slots[:, None], num_slots).view(-1)
        for step, share in self._corners():
            index += step
            for of_cells, weight in zip(cells, weights):
                of_cells.view(-1).scatter_add_(0, index, (weight * share).reshape(-1))
        rows = self._features.flatten(2).transpose(1, 2)
        result = cells.new_empty(num_slots, len(weights), channels + 1)
        for number, of_cells in enumerate(cells):
            result[:, number, :channels] = torch.bmm(of_cells, rows).sum(0)
            result[:, number, channels] = of_cells.sum((0, 2))
        return result

    def _index(self, slots, num_slots):
        """Of (B, K, H, W) slots at the first cell of every pixel, in a flattened (B, S, h * w)."""
        batch, _, height, width = self._features.shape
        # The caller views the result as one row; it takes the layout of the slots.
        slots = slots.contiguous()
        index = torch.arange(batch, device=slots.device).view(-1, 1, 1, 1) * num_slots + slots
        index *= height * width
        index += self._rows.first[:, None] * width + self._columns.first
        return index

    def _corners(self):
        """For each cell of a pixel the step from the cell before it, and (H, W) weights."""
        width, before = self._features.shape[3], 0
        for row, row_weight in enumerate(self._rows.weights()):
            for column, column_weight in enumerate(self._columns.weights()):
                cell = row * width + column
                yield cell - before, row_weight[:, None] * column_weight
                before = cell


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(B, D, h, w) twice to (B, h, w), a few channels at a time for the sake of caches."""
    parts = zip(a.split(_CHANNELS, dim=1), b.split(_CHANNELS, dim=1))
    return sum((x * y).sum(dim=1) for x, y in parts)
