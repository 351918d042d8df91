"""Sums and products of embeddings that are not there, against embeddings that are."""

import pytest
import torch
from operator_record import Operators
from torch.nn import functional as F

from d2_pixcontrast.contrast import PixelEmbeddings, ProjectionHead

CLASSES, DIM = 4, 6
# With up to as many channels as the embedding u is never computed, with more it is.
CHANNELS = [3, 6, 9]


def level(channels, seed=0, batch=2, size=(3, 5)):
    """A head in double precision, its hidden layer's output, and labels with holes."""
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = ProjectionHead(channels, dim=DIM).double()
    torch.nn.init.normal_(head.out.bias, generator=g)
    hidden = torch.rand(batch, channels, *size, generator=g, dtype=torch.float64)
    labels = torch.randint(-1, CLASSES, (batch, *size), generator=g)
    labels[labels == 2] = 1  # a class without a pixel
    return head, hidden.requires_grad_(), labels


def naive_sums(embeddings, labels):
    sums, counts = [embeddings.new_zeros(DIM)] * CLASSES, [0] * CLASSES
    for b in range(len(labels)):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                c = int(labels[b, y, x])
                if c >= 0:
                    sums[c], counts[c] = sums[c] + embeddings[b, :, y, x], counts[c] + 1
    return torch.stack(sums), torch.tensor(counts, dtype=embeddings.dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", CHANNELS)
def test_class_sums_and_their_gradient_are_those_of_a_loop(channels, layout):
    head, hidden, labels = level(channels)
    inputs = [hidden, head.out.weight, head.out.bias]
    sums, counts = head.pixels(hidden.contiguous(memory_format=layout)).class_sums(labels, CLASSES)
    expected, numbers = naive_sums(F.normalize(head.out(hidden), dim=1), labels)
    assert torch.equal(counts, numbers) and counts[2] == 0 and counts.sum() < labels.numel()
    torch.testing.assert_close(sums, expected)
    towards = torch.randn(CLASSES, DIM, dtype=torch.float64)
    actual = torch.autograd.grad((sums * towards).sum(), inputs)
    torch.testing.assert_close(actual, torch.autograd.grad((expected * towards).sum(), inputs))


@pytest.mark.parametrize("channels", CHANNELS)
def test_cosines_and_their_gradient_are_those_of_the_rows(channels):
    head, hidden, _ = level(channels)
    anchors = torch.randn(CLASSES, DIM, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([29, 0, 7, 7, 15])
    inputs = [anchors, hidden, head.out.weight, head.out.bias]
    cosines = head.pixels(hidden).cosines(anchors, index)
    expected = anchors @ head.rows(hidden, index).t()
    torch.testing.assert_close(cosines, expected)
    towards = torch.randn(CLASSES, 5, dtype=torch.float64)
    actual = torch.autograd.grad((cosines * towards).sum(), inputs)
    torch.testing.assert_close(actual, torch.autograd.grad((expected * towards).sum(), inputs))


@pytest.mark.parametrize("channels", CHANNELS)
def test_gradcheck(channels):
    head, hidden, labels = level(channels, batch=1, size=(2, 2))
    anchors = torch.randn(CLASSES, DIM, dtype=torch.float64, requires_grad=True)

    def both(hidden, weight, bias, anchors):
        pixels = PixelEmbeddings(hidden, weight, bias)
        return pixels.class_sums(labels, CLASSES)[0], pixels.cosines(anchors, torch.arange(3))

    weight = head.out.weight.detach().flatten(1).requires_grad_()
    assert torch.autograd.gradcheck(both, (hidden, weight, head.out.bias, anchors))


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_pixel_without_direction_counts_as_zero_and_gets_no_gradient(channels):
    """No ReLU lets anything pass there, and a new head has no bias."""
    head, hidden, labels = level(channels)
    torch.nn.init.zeros_(head.out.bias)
    head, hidden = head.float(), hidden.detach().float()
    hidden[0, :, 1, 1] = 0
    hidden.requires_grad_()
    pixels = head.pixels(hidden)
    sums, _ = pixels.class_sums(torch.zeros_like(labels), CLASSES)
    torch.testing.assert_close(sums[0], head.all_rows(hidden).sum((0, 2, 3)))
    rows = head.rows(hidden, torch.tensor([6, 7]))
    cosines = pixels.cosines(torch.ones(1, DIM), torch.tensor([6, 7]))
    assert torch.all(rows[0] == 0) and cosines[0, 0] == 0 and cosines[0, 1] != 0
    (rows.sum() + sums.sum() + cosines.sum()).backward()
    assert hidden.grad.abs().max() < 10 and torch.all(hidden.grad[0, :, 1, 1] == 0)


@pytest.mark.parametrize("channels", CHANNELS)
def test_half_precision_is_widened(channels):
    head, hidden, labels = level(channels)
    head, hidden = head.float(), hidden.detach().float()
    anchors, index = F.normalize(torch.randn(CLASSES, DIM), dim=1), torch.arange(30)
    expected = head.pixels(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pixels = head.pixels(hidden.bfloat16())
        sums, cosines = pixels.class_sums(labels, CLASSES)[0], pixels.cosines(anchors, index)
    assert sums.dtype == cosines.dtype == torch.float32
    torch.testing.assert_close(sums, expected.class_sums(labels, CLASSES)[0], rtol=0.03, atol=0.03)
    torch.testing.assert_close(cosines, expected.cosines(anchors, index), rtol=0.03, atol=0.03)
    # Squares of small numbers vanish in half precision; not here.
    torch.nn.init.zeros_(head.out.bias)
    with torch.autocast("cpu", dtype=torch.float16):
        sums, counts = head.pixels((hidden * 1e-4).half()).class_sums(labels, CLASSES)
    assert sums.norm(dim=1)[0] > 0.5 * counts[0]


@pytest.mark.parametrize("channels", [8, 70])
def test_the_graph_keeps_one_map_of_the_smaller_size_and_there_is_no_sync(channels):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, channels, 32, 32, generator=g).requires_grad_()
    weight = torch.randn(64, channels, generator=g).requires_grad_()
    bias, anchors = torch.zeros(64).requires_grad_(), torch.randn(3, 64)
    labels, index = torch.randint(3, (2, 32, 32), generator=g), torch.arange(40)
    saved = {}

    def keep(tensor):
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), Operators() as record:
        pixels = PixelEmbeddings(hidden, weight, bias)
        total = pixels.class_sums(labels, 3)[0].sum() + pixels.cosines(anchors, index).sum()
    saved.pop(hidden.data_ptr())
    maps = [numel for numel in saved.values() if numel >= 8 * 2048]
    assert maps == ([] if channels < 64 else [64 * 2048])
    with record:
        total.backward()
    record.assert_no_sync()
    if channels < 64:  # the embeddings were never there, not even in passing
        assert record.largest == hidden.numel()
