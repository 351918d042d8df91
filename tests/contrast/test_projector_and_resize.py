import pytest
import torch
from torch import nn
from torch.nn import functional as F

from d2_pixcontrast.contrast import ProjectionHead, nearest_resize


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_embeddings_have_length_one(kind):
    head = ProjectionHead(12, dim=7, kind=kind)
    embeddings = head(torch.randn(2, 12, 5, 6))
    assert embeddings.shape == (2, 7, 5, 6)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, 5, 6))


def test_layers_are_those_of_the_paper():
    def hidden(**options):
        return [type(module) for module in ProjectionHead(8, **options).hidden]

    assert hidden() == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert hidden(norm=None) == [nn.Conv2d, nn.ReLU]
    assert hidden(kind="linear") == []


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_embedding_single_pixels_equals_embedding_all(kind):
    head = ProjectionHead(6, dim=5, kind=kind).double()
    features = torch.randn(2, 6, 4, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([23, 0, 7, 7])
    all_rows = head(features).permute(0, 2, 3, 1).reshape(-1, 5)
    weights = torch.randn(4, 5, dtype=torch.float64)
    expected = torch.autograd.grad((all_rows[index] * weights).sum(), features)
    rows = head.at(features, index)
    torch.testing.assert_close(rows, all_rows[index])
    actual = torch.autograd.grad((rows * weights).sum(), features)
    torch.testing.assert_close(actual, expected)


def test_half_precision_gives_float32_of_length_one():
    head = ProjectionHead(64, dim=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = head(torch.randn(2, 64, 4, 4) * 1e-3)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, 4, 4))


@pytest.mark.parametrize("options", [{"kind": "conv"}, {"dim": 0}])
def test_bad_options(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        ProjectionHead(8, **options)


@pytest.mark.parametrize("size", [(3, 5), (8, 8), (1, 1), (7, 16), (30, 9)])
def test_nearest_resize_is_torchs(size):
    labels = torch.randint(255, (2, 15, 16))
    expected = F.interpolate(labels[:, None].double(), size, mode="nearest")[:, 0].long()
    assert torch.equal(nearest_resize(labels, size), expected)
