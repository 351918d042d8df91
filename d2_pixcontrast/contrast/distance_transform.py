"""Exact Euclidean distances to the boundary of every region of a map, for all regions at once.

A distance map of each class by itself costs as many transforms as there are classes. Regions of one
map are disjoint, so that all their distances fit in one map, computed in two passes (Felzenszwalb
and Huttenlocher, "Distance Transforms of Sampled Functions", 2012, with regions in place of a set):
the distance g along the row to the next pixel of another value, then for each column

    D(i)^2 = min( v(i)^2, min_k (i - k)^2 + g(k)^2 )

with v the distance along the column. No label has to be compared in the minimum over k: a row k
beyond the run of equal values around i is farther away than v(i) in any case. Its cost does not
depend on the number of regions.
"""

import torch
from torch.nn import functional as F


def distance_to_boundary(regions: torch.Tensor) -> torch.Tensor:
    """Distance of every pixel to the nearest one of another value, in pixels.

    The border of the image is no boundary: beyond it there is nothing.

    Args:
        regions: (..., H, W) int64, the region of each pixel; below 0: of none.

    Returns:
        (..., H, W) float32. 0 where the value is below 0, inf where the map has one value only.
    """
    return square_root(squared_distance_to_boundary(regions))


def squared_distance_to_boundary(regions: torch.Tensor) -> torch.Tensor:
    """The squares of :func:`distance_to_boundary`, exactly.

    Args:
        regions: (..., H, W) int64, the region of each pixel; below 0: of none.

    Returns:
        (..., H, W) int64; :func:`unreachable` where the map has one value only.
    """
    maps = regions.reshape(-1, *regions.shape[-2:])
    across, along = _run_distance(maps), _run_distance(maps.transpose(1, 2)).transpose(1, 2)
    if maps.shape[1] > maps.shape[2]:  # the pass over all pairs of rows goes along the short side
        squared = _two_passes(along.transpose(1, 2), across.transpose(1, 2)).transpose(1, 2)
    else:
        squared = _two_passes(across, along)
    return squared.long().where(maps >= 0, 0).view(regions.shape)


def square_root(squared: torch.Tensor) -> torch.Tensor:
    """(..., H, W) float32 distances from what :func:`squared_distance_to_boundary` returns."""
    reached = squared < unreachable(squared.shape[-2:])
    return squared.double().sqrt().where(reached, torch.inf).float()


def unreachable(size: tuple[int, int]) -> int:
    """H^2 + W^2: above every squared distance in an (H, W) map."""
    return size[0] ** 2 + size[1] ** 2


def _run_distance(maps: torch.Tensor) -> torch.Tensor:
    """(N, H, W) int32 distance along the rows to the next pixel of another value; H + W if none."""
    height, width = maps.shape[1:]
    far = height + width
    column = torch.arange(width, dtype=torch.int32, device=maps.device)
    edge = maps[:, :, 1:] != maps[:, :, :-1]
    # The last pixel before the run and the first one after it, carried along the run.
    before = F.pad(torch.where(edge, column[:-1], -far), (1, 0), value=-far)
    after = F.pad(torch.where(edge, column[1:], width + far), (0, 1), value=width + far)
    before = before.cummax(dim=2).values
    after = after.flip(2).cummin(dim=2).values.flip(2)
    return torch.minimum(column - before, after - column).clamp(max=far)


def _two_passes(across: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """(N, H, W) squares from the distances along rows and along columns."""
    count, height, width = across.shape
    limit = unreachable((height, width))
    dtype = torch.int32 if 2 * limit < 2**31 else torch.int64
    across, along = (d.to(dtype).square().clamp(max=limit) for d in (across, along))
    row = torch.arange(height, dtype=dtype, device=across.device)
    lift = (row[:, None] - row).square()[:, :, None]

    # Some rows at a time, each against all of them, so that the extra memory is bounded.
    chunk = max(1, min(height, _chunk(across.device) // max(1, across.numel())))
    pairs = across.new_empty(count, chunk, height, width)
    nearest = across.new_empty(count, height, width)
    for start in range(0, height, chunk):
        rows = lift[start : start + chunk]
        torch.add(across[:, None], rows, out=pairs[:, : len(rows)])
        torch.amin(pairs[:, : len(rows)], dim=2, out=nearest[:, start : start + chunk])
    return torch.minimum(nearest, along)


def _chunk(device: torch.device) -> int:
    """Pairs per step: what stays in a CPU's caches; more on a GPU, where launches cost."""
    return 2**19 if device.type == "cpu" else 2**24
