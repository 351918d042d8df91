"""distance_to_boundary against scipy, class by class, and against all pairs of pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_record import Operators

from d2_pixcontrast.contrast import distance_to_boundary
from d2_pixcontrast.contrast.distance_transform import (
    squared_distance_to_boundary,
    unreachable,
)

scipy_ndimage = pytest.importorskip("scipy.ndimage")


def by_scipy(regions):
    """(H, W) float64: one transform per value; whatever has another value is outside."""
    result = np.zeros(regions.shape)
    for value in np.unique(regions[regions >= 0]):
        inside = regions == value
        # Without any pixel outside scipy measures to a corner that is not there.
        distance = scipy_ndimage.distance_transform_edt(inside)
        result[inside] = np.inf if inside.all() else distance[inside]
    return result


def by_all_pairs(regions):
    """(H, W) int64 squares from every pixel to every other."""
    height, width = regions.shape
    result = np.zeros(regions.shape, dtype=np.int64)
    for i in range(height):
        for j in range(width):
            if regions[i, j] >= 0:
                result[i, j] = min(
                    (
                        (i - y) ** 2 + (j - x) ** 2
                        for y in range(height)
                        for x in range(width)
                        if regions[y, x] != regions[i, j]
                    ),
                    default=height**2 + width**2,
                )
    return result


def random_regions(size, values, cell, seed):
    """Blocks of ``cell`` pixels with values from -1 (of no region) up."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randint(-1, values, tuple(-(-n // cell) for n in size), generator=g)
    fine = coarse.repeat_interleave(cell, -2).repeat_interleave(cell, -1)
    return fine[..., : size[-2], : size[-1]]


def assert_equals_scipy(regions):
    expected = by_scipy(regions.numpy()).astype(np.float32)
    np.testing.assert_array_equal(distance_to_boundary(regions).numpy(), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    values=st.integers(0, 6),
    cell=st.sampled_from([1, 2, 5, 13]),
    seed=st.integers(0, 99),
)
def test_equals_scipy_on_random_maps(height, width, values, cell, seed):
    assert_equals_scipy(random_regions((height, width), values, cell, seed))


@pytest.mark.parametrize("density", [0.002, 0.05, 0.5, 0.95, 0.998])
@pytest.mark.parametrize("size", [(33, 70), (70, 33)])
def test_equals_scipy_on_sparse_and_dense_error_maps(density, size):
    g = torch.Generator().manual_seed(0)
    errors = torch.rand(size, generator=g) < density
    assert_equals_scipy(torch.randint(3, size, generator=g).where(errors, -1))
    assert_equals_scipy(torch.zeros(size, dtype=torch.int64).where(errors, -1))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (6, 11), (11, 6)])
@pytest.mark.parametrize("values", [1, 2, 4])
def test_the_squares_are_exact(size, values):
    for seed in range(4):
        regions = random_regions(size, values, 1, seed)
        squared = squared_distance_to_boundary(regions)
        np.testing.assert_array_equal(squared.numpy(), by_all_pairs(regions.numpy()))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (5, 8)])
def test_without_a_boundary_the_distance_is_inf_and_outside_of_all_regions_zero(size):
    assert torch.all(distance_to_boundary(torch.full(size, 3)) == torch.inf)
    assert torch.all(distance_to_boundary(torch.full(size, -1)) == 0)
    # Negative values of several kinds are outside, too: no infinities, no distances.
    assert torch.all(distance_to_boundary(torch.full(size, -7)) == 0)


def test_one_pixel_on_either_side():
    lonely = torch.full((5, 5), -1)
    lonely[2, 3] = 0
    expected = torch.zeros(5, 5)
    expected[2, 3] = 1
    assert torch.equal(distance_to_boundary(lonely), expected)
    hole = torch.zeros(4, 6, dtype=torch.int64)
    hole[0, 0] = -1
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    assert torch.equal(distance_to_boundary(hole), torch.hypot(rows, columns))


def test_the_border_of_the_image_is_no_boundary():
    regions = torch.zeros(4, 10, dtype=torch.int64)
    regions[:, 5:] = 1
    expected = torch.tensor([5, 4, 3, 2, 1, 1, 2, 3, 4, 5.0]).expand(4, 10)
    assert torch.equal(distance_to_boundary(regions), expected)
    assert torch.equal(distance_to_boundary(regions.t()), expected.t())


def test_leading_dimensions_are_independent_maps():
    regions = torch.stack([random_regions((12, 17), 3, 4, seed) for seed in range(6)])
    regions[4] = 2
    single = torch.stack([distance_to_boundary(r) for r in regions])
    assert torch.equal(distance_to_boundary(regions), single)
    assert torch.equal(distance_to_boundary(regions.view(2, 3, 12, 17)).flatten(0, 1), single)
    assert single[4].isinf().all() and single[3].isfinite().all()


@pytest.mark.parametrize("size", [(60, 90), (90, 60)])
def test_any_chunk_gives_the_same(size, monkeypatch):
    regions = torch.stack([random_regions(size, 2, 30, seed) for seed in range(2)])
    expected = distance_to_boundary(regions)
    for chunk in (1, 7 * regions.numel(), 10**9):
        monkeypatch.setattr(
            "d2_pixcontrast.contrast.distance_transform._chunk", lambda device, c=chunk: c
        )
        assert torch.equal(distance_to_boundary(regions), expected)


def test_a_long_map_does_not_overflow():
    """The squares of these sides do not fit in 32 bits."""
    regions = torch.zeros(1, 50_000, dtype=torch.int64)
    assert torch.all(squared_distance_to_boundary(regions) == unreachable((1, 50_000)))
    regions[0, 0] = 1
    squared = squared_distance_to_boundary(regions)
    assert torch.equal(squared[0, 1:], torch.arange(1, 50_000) ** 2)


def test_no_sync_and_bounded_memory():
    regions = random_regions((64, 96), 3, 10, 0)[None].repeat(30, 1, 1)
    with Operators() as operators:
        distance_to_boundary(regions)
    operators.assert_no_sync()
    # All pairs of rows at once would be 64 times the map.
    assert operators.largest <= 2 * regions.numel()


def test_the_cost_does_not_depend_on_the_number_of_regions():
    counts = []
    for values in (1, 200):
        with Operators() as operators:
            distance_to_boundary(random_regions((32, 48), values, 2, 0))
        counts.append(sum(operators.numel.values()))
    assert counts[0] == counts[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_as_on_the_cpu():
    regions = torch.stack([random_regions((128, 200), 19, 6, seed) for seed in range(3)])
    on_gpu = distance_to_boundary(regions.cuda())
    assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), distance_to_boundary(regions))
