"""Attention between two maps: against naive loops, and what it asks of memory."""

import math

import pytest
import torch
from operator_record import Operators

from d2_pixcontrast.modeling.aggregation import GridAttention


def make_attention(norm="BN", **options):
    torch.manual_seed(0)
    sizes = dict(query_channels=5, source_channels=7, key_channels=4, out_channels=6)
    return GridAttention(**{**sizes, "norm": norm, **options})


def naive_attention(query, key, value):
    """softmax(q k / sqrt(E)) v, one pair of positions at a time."""
    out = torch.zeros_like(query)
    for b in range(query.shape[0]):
        vectors = [[m[b, :, y, x].tolist() for y, x in places(m)] for m in (query, key, value)]
        for (y, x), q in zip(places(query), vectors[0], strict=True):
            scores = [sum(i * j for i, j in zip(q, k)) / math.sqrt(len(q)) for k in vectors[1]]
            weights = [math.exp(score - max(scores)) for score in scores]
            for e in range(query.shape[1]):
                terms = [w * v[e] for w, v in zip(weights, vectors[2], strict=True)]
                out[b, e, y, x] = sum(terms) / sum(weights)
    return out


def places(features):
    return [(y, x) for y in range(features.shape[2]) for x in range(features.shape[3])]


@pytest.mark.parametrize("source_size", [(3, 4), (2, 3), (5, 1)])
@torch.no_grad()
def test_equals_the_naive_sum_on_any_two_grids(source_size):
    attention = make_attention().double().eval()
    asking = 3 * torch.randn(2, 5, 3, 4).double()
    source = 3 * torch.randn(2, 7, *source_size).double()
    query, key, value = attention.query(asking), attention.key(source), attention.value(source)
    assert query.std() > 0.1 and key.std() > 0.1
    expected = attention.out(naive_attention(query, key, value))
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(attention(asking, source), expected)


def test_gradients_equal_those_of_the_explicit_product():
    attention = make_attention().double().eval()
    asking = torch.randn(2, 5, 6, 4).double().requires_grad_()
    source = torch.randn(2, 7, 3, 4).double().requires_grad_()
    wanted = [asking, source, *attention.parameters()]
    loss = attention(asking, source).square().sum()
    fused = torch.autograd.grad(loss, wanted)
    query, key, value = (
        x.flatten(2)
        for x in (attention.query(asking), attention.key(source), attention.value(source))
    )
    table = (query.transpose(1, 2) @ key / 2).softmax(dim=2)
    explicit = attention.out((value @ table.transpose(1, 2)).unflatten(2, (6, 4)))
    expected = torch.autograd.grad(explicit.square().sum(), wanted)
    torch.testing.assert_close(fused, expected)


def test_published_layers():
    """Two convolutions for queries and for keys, one for values and the result, all with ReLU."""
    attention = make_attention(query_channels=512, key_channels=256)
    shapes = {name: tuple(p.shape[:2]) for name, p in attention.named_parameters() if p.dim() > 1}
    assert shapes == {
        "query.0.weight": (256, 512),
        "query.1.weight": (256, 256),
        "key.0.weight": (256, 7),
        "key.1.weight": (256, 256),
        "value.weight": (256, 7),
        "out.weight": (6, 256),
    }
    assert sum("norm.weight" in name for name, _ in attention.named_parameters()) == 6
    assert torch.all(attention(torch.randn(2, 512, 3, 3), torch.randn(2, 7, 2, 2)) >= 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_table_of_all_pairs_is_never_written(dtype):
    """Four times the positions, four times the largest tensor, in the backward pass too: not 16."""
    attention, largest = make_attention(norm=""), {}
    for side in (24, 48):
        maps = [torch.randn(1, c, side, side, requires_grad=True) for c in (5, 7)]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), Operators() as record:
            attention(*maps).float().sum().backward()
        assert record.numel["_scaled_dot_product_flash_attention_for_cpu"]
        largest[side] = record.largest
    assert largest[48] <= 4 * largest[24] < 48**4 / 8
