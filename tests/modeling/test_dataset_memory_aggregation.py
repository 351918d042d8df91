"""The data-set memory's module against a naive re-derivation, and its options."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from test_grid_attention import naive_attention, places
from torch import nn
from torch.nn import functional as F

from d2_pixcontrast.contrast import DatasetMemory, StatisticsMemory
from d2_pixcontrast.modeling.aggregation import (
    DatasetMemoryAggregation,
    JoinedFeatures,
    NetworkOptions,
    PixelRepresentations,
    TrainingOptions,
)

CLASSES, D, CONTEXT = 4, 6, 5
SHAPES = {"res2": ShapeSpec(channels=3, stride=4), "res5": ShapeSpec(channels=7, stride=16)}
SIZE = (32, 48)


def features(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(1, s.channels, *grid(s.stride), generator=g).double()
        for name, s in SHAPES.items()
    }


def grid(stride):
    return SIZE[0] // stride, SIZE[1] // stride


def make_module(in_features=("res5",), context_stride=16, memory=None, entries=1, **options):
    """In double and in evaluation, with random norms, and with one empty class in the memory."""
    torch.manual_seed(0)
    pixels = None
    if in_features:
        shapes = {name: SHAPES[name] for name in in_features}
        pixels = PixelRepresentations(shapes, channels=D, norm="BN")
    module = DatasetMemoryAggregation(
        memory=memory or DatasetMemory(CLASSES, D, entries_per_class=entries),
        pixels=pixels,
        pixel_stride=pixels.stride if pixels else context_stride,
        context_channels=CONTEXT if in_features else D,
        context_stride=context_stride,
        num_classes=CLASSES,
        network=NetworkOptions(channels=D, key_channels=4, **options),
        training=TrainingOptions(),
    )
    randomise(module)
    if memory is None:
        module.memory.entries.normal_()[2] = 0
    return module.double().eval()


def randomise(module):
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
    for p in module.parameters():  # classifiers start at almost 0
        p.data.add_(0.3 * torch.randn_like(p))


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def naive_read(entries, logits, hard):
    """(C, D) entries and (1, C, h, w) logits: their mean by probability, a number at a time."""
    out = torch.zeros(1, D, *logits.shape[2:]).double()
    for y, x in places(logits):
        weights = [math.exp(v) for v in logits[0, :, y, x].tolist()]
        if hard:
            weights = [float(w == max(weights)) for w in weights]
        for c, weight in enumerate(weights):
            out[0, :, y, x] += weight / sum(weights) * entries[c]
    return out


def attend(attention, asking, source):
    maps = attention.query(asking), attention.key(source), attention.value(source)
    return attention.out(naive_attention(*maps))


def naive_module(module, f, m, entries, read_logits, hard=False):
    """Section 3 of the paper: read, attend, fuse; attend to the context and fuse."""
    attended = [
        attend(attention, f, naive_read(entries[:, k], read_logits, hard))
        for k, attention in enumerate(module.memory_attentions)
    ]
    if len(attended) > 1:
        attended = [module.merge(torch.cat(attended, 1))]
    o = module.fuse(torch.cat([f, *attended], 1))
    if m is None:
        return module.hidden(o)
    finest = max(f.shape[2:], m.shape[2:])
    if o.shape[2:] != finest:
        f, o = resized(f, finest), resized(o, finest)
    if module.context_attention is None:
        m = m if m.shape[2:] == finest else resized(m, finest)
        return module.hidden(torch.cat([o, m], 1))
    o = module.context_fuse(torch.cat([attend(module.context_attention, f, m), o], 1))
    return module.hidden(o)


@pytest.mark.parametrize("context_head", [False, True])
def test_training_reads_with_the_logits_of_inference(context_head):
    """Those of the context head where there is one, although the pixels' classifier runs, too."""
    module = make_module(fusion="concat", context_head=context_head).train()
    out = module(features(), torch.randn(1, CONTEXT, *grid(16)).double())
    assert out.pixel_logits is not None and (out.context_logits is not None) == context_head
    assert out.read_logits is (out.context_logits if context_head else out.pixel_logits)


@pytest.mark.parametrize("context_stride", [16, 4], ids=["one grid", "finer context"])
@pytest.mark.parametrize("fusion", ["attention", "concat"])
@pytest.mark.parametrize("context_head", [False, True])
@torch.no_grad()
def test_module_equals_its_equations(context_stride, fusion, context_head):
    module = make_module(context_stride=context_stride, fusion=fusion, context_head=context_head)
    inputs, m = features(), torch.randn(1, CONTEXT, *grid(context_stride)).double()
    out = module(inputs, m)
    f = module.pixels.conv(inputs["res5"])
    logits = module.context_head(m) if context_head else module.stage1(f)
    torch.testing.assert_close(out.context_logits if context_head else out.pixel_logits, logits)
    if context_stride == 4 and context_head:
        logits = resized(logits, f.shape[2:])
    assert logits.std() > 0.1
    expected = naive_module(module, f, m, module.memory.entries, logits)
    assert expected.std() > 0.05 and module.out_stride == context_stride
    torch.testing.assert_close(out.features, expected)


@pytest.mark.parametrize("fusion", ["attention", "concat"])
@torch.no_grad()
def test_pixel_representations_on_a_finer_grid_than_the_context(fusion):
    module = make_module(("res2", "res5"), context_stride=16, fusion=fusion)
    inputs, m = features(), torch.randn(1, CONTEXT, *grid(16)).double()
    joined = torch.cat([inputs["res2"], resized(inputs["res5"], grid(4))], 1)
    f = module.pixels.conv(joined)
    expected = naive_module(module, f, m, module.memory.entries, module.stage1(f))
    assert module.out_stride == 4
    torch.testing.assert_close(module(inputs, m).features, expected)


@pytest.mark.parametrize("read", ["soft", "hard", "zeros"])
@pytest.mark.parametrize("entries", [1, 3])
@torch.no_grad()
def test_without_context_the_decoders_output_is_what_is_stored(entries, read):
    module = make_module(None, entries=entries, read=read)
    f = torch.randn(1, D, *grid(16)).double()
    out = module({}, f)
    assert out.pixels is f and out.context is None
    held = module.memory.entries * (read != "zeros")
    expected = naive_module(module, f, None, held, module.stage1(f), read == "hard")
    assert len(module.memory_attentions) == entries
    torch.testing.assert_close(out.features, expected)


@torch.no_grad()
def test_statistics_and_the_second_pass():
    """MCIBI++: a class stands for mean + std * code; final logits sharpen the second read."""
    memory = StatisticsMemory(CLASSES, D)
    memory.statistics.copy_(torch.rand(CLASSES, 2) + 0.5)
    module = make_module(
        memory=memory, fusion="concat", context_head=True, second_pass=(0.8, 0.6), context_stride=4
    )
    inputs, m = features(), torch.randn(1, CONTEXT, *grid(4)).double()
    first = module(inputs, m)
    final = torch.randn(1, CLASSES, *grid(4)).double()
    second = module.again(first, final)
    statistics, codes = memory.statistics.double(), memory.codes.double()
    entries = torch.stack([statistics[c, 0] + statistics[c, 1] * codes[c] for c in range(CLASSES)])
    f = module.pixels.conv(inputs["res5"])
    read = resized(module.context_head(m), grid(16))
    for output, logits in (
        (first.features, read),
        (second, 0.8 * read + 0.6 * resized(final, grid(16))),
    ):
        expected = naive_module(module, f, m, entries[:, None], logits)
        torch.testing.assert_close(output, expected)
    assert not torch.allclose(first.features, second)


def test_an_empty_memory_reads_as_nothing_and_trains_everything():
    module = make_module(context_stride=4).train()
    module.memory.reset()
    f = features()
    out = module(f, torch.randn(1, CONTEXT, *grid(4)).double())
    (out.features.sum() + out.pixel_logits.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_stage1_learns_from_the_final_classifier_and_the_memory_does_not():
    module = make_module()
    out = module(features(), torch.randn(1, CONTEXT, *grid(16)).double())
    out.features.square().sum().backward()
    assert module.stage1[0].weight.grad.abs().sum() > 0
    assert not module.memory.entries.requires_grad


@pytest.mark.parametrize("align_corners", [False, True])
@torch.no_grad()
def test_joined_features(align_corners):
    inputs = features()
    deep = F.interpolate(inputs["res5"], grid(4), mode="bilinear", align_corners=align_corners)
    joined = torch.cat([inputs["res2"], deep], 1)
    options = {"norm": "BN", "align_corners": align_corners}
    module = JoinedFeatures(SHAPES, stride=1, **options)
    assert list(module.parameters()) == [] and module.shape == ShapeSpec(channels=10, stride=4)
    torch.testing.assert_close(module(inputs), {"joined": joined})
    halved = JoinedFeatures(SHAPES, stride=2, **options).double().eval()
    assert halved.shape == ShapeSpec(channels=10, stride=8)
    assert tuple(halved.conv.weight.shape) == (10, 10, 3, 3)
    expected = F.conv2d(joined, halved.conv.weight, stride=2, padding=1)
    torch.testing.assert_close(
        halved(inputs)["joined"], F.relu(halved.conv.norm(expected)), check_stride=False
    )
