"""UpsampledFeatures against features that are really upsampled."""

import pytest
import torch
from operator_record import Operators
from torch.nn import functional as F

from d2_pixcontrast.contrast.upsampled import UpsampledFeatures

# Grid and label sizes: equal, whole and broken scales, odd, shrunk, one axis alone, single cells.
SIZES = [
    ((4, 5), (4, 5)),
    ((4, 6), (16, 24)),
    ((5, 7), (13, 9)),
    ((5, 7), (39, 54)),
    ((6, 8), (4, 5)),
    ((5, 4), (5, 11)),
    ((5, 4), (9, 4)),
    ((7, 4), (3, 8)),
    ((1, 6), (5, 6)),
    ((6, 1), (9, 3)),
    ((1, 1), (3, 2)),
    ((3, 4), (1, 1)),
    ((2, 2), (31, 3)),
]


def problem(size, pixels, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, *size, generator=g, dtype=torch.float64)
    vectors = torch.randn(7, 5, generator=g, dtype=torch.float64)
    slots = torch.randint(7, (2, 3, *pixels), generator=g)
    weights = torch.rand(2, 2, *pixels, generator=g, dtype=torch.float64)
    return features.to(dtype), vectors.to(dtype), slots, weights.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size, pixels", SIZES)
def test_dots_lengths_and_sums_are_those_of_upsampled_features(size, pixels, dtype):
    features, vectors, slots, weights = problem(size, pixels, dtype)
    ours = UpsampledFeatures(features, pixels)
    upsampled = F.interpolate(features.double(), pixels, mode="bilinear", align_corners=False)
    rtol, atol = (1e-10, 1e-12) if dtype == torch.float64 else (1e-6, 3e-5)
    close = {"rtol": rtol, "atol": atol}
    assert ours.finite.all() and ours.finite.shape == slots[:, 0].shape

    lengths, dots = ours.lengths(), ours.dots(vectors, slots)
    assert lengths.dtype == dots.dtype == dtype
    torch.testing.assert_close(lengths.double(), upsampled.norm(dim=1), **close)
    expected = torch.einsum("bkhwd,bdhw->bkhw", vectors.double()[slots], upsampled)
    torch.testing.assert_close(dots.double(), expected, **close)

    sums = ours.sums(list(weights), slots[:, 0], 7)
    assert sums.dtype == dtype and sums.shape == (7, 2, 6)
    members = F.one_hot(slots[:, 0], 7).double()
    vector_sums = torch.einsum("rbhw,bhws,bdhw->srd", weights.double(), members, upsampled)
    weight_sums = torch.einsum("rbhw,bhws->sr", weights.double(), members)
    torch.testing.assert_close(sums[..., :5].double(), vector_sums, **close)
    torch.testing.assert_close(sums[..., 5].double(), weight_sums, **close)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("size, pixels", SIZES)
def test_cells_that_are_not_finite_are_known_where_they_are_read(size, pixels, bad):
    features, vectors, slots, weights = problem(size, pixels, torch.float32)
    features[1, 2, -1, 0] = bad
    clean = features.clone()
    clean[1, :, -1, 0] = 0
    nudged = clean.double()
    nudged[1, 0, -1, 0] = 1
    change = F.interpolate(nudged - clean, pixels, mode="bilinear", align_corners=False)

    ours = UpsampledFeatures(features, pixels)
    assert torch.equal(ours.finite, (change == 0).all(dim=1))
    reference = UpsampledFeatures(clean, pixels)
    torch.testing.assert_close(ours.lengths(), reference.lengths())
    torch.testing.assert_close(ours.dots(vectors, slots), reference.dots(vectors, slots))
    weights = list(weights)
    torch.testing.assert_close(
        ours.sums(weights, slots[:, 0], 7), reference.sums(weights, slots[:, 0], 7)
    )


@pytest.mark.parametrize("size, pixels", [((2, 2), (9, 9)), ((50, 2), (50, 9)), ((2, 50), (9, 50))])
def test_neighbours_that_cancel_out_have_a_length(size, pixels):
    """Squared, it comes out as less than nothing about every other time."""
    g = torch.Generator().manual_seed(0)
    features = torch.randn(1, 64, 1, 1, generator=g).expand(1, 64, *size).clone()
    features *= torch.rand(size, generator=g) + 0.5
    axis = 2 if size[0] == 2 else 3
    first, second = features.split(1, dim=axis)
    second.copy_(-2.6 * first)
    lengths = UpsampledFeatures(features, pixels).lengths()
    upsampled = F.interpolate(features.double(), pixels, mode="bilinear", align_corners=False)
    assert upsampled.norm(dim=1).min() < 1e-5  # 13 / 18 - 2.6 * 5 / 18 = 0
    torch.testing.assert_close(lengths.double(), upsampled.norm(dim=1), rtol=0, atol=0.05)


def test_nothing_has_the_size_of_upsampled_features():
    features = torch.randn(1, 512, 6, 6)
    slots = torch.randint(9, (1, 1, 48, 48))
    with Operators() as operators:
        pixels = UpsampledFeatures(features, (48, 48))
        pixels.lengths()
        pixels.dots(torch.randn(9, 512), slots)
        pixels.sums([torch.rand(1, 48, 48)] * 2, slots[:, 0], 9)
    operators.assert_no_sync()
    assert operators.largest == features.numel()


def test_slots_and_weights_of_any_layout_are_read():
    features, vectors, slots, weights = problem((3, 4), (6, 5))
    ours = UpsampledFeatures(features, (6, 5))
    other, rows = slots.transpose(2, 3).contiguous().transpose(2, 3), weights.permute(0, 3, 1, 2)
    rows = rows.contiguous().permute(0, 2, 3, 1)
    assert not other.is_contiguous() and not rows[0].is_contiguous()
    torch.testing.assert_close(ours.dots(vectors, other), ours.dots(vectors, slots))
    expected = ours.sums(list(weights), slots[:, 0], 7)
    torch.testing.assert_close(ours.sums(list(rows), other[:, 0], 7), expected)
