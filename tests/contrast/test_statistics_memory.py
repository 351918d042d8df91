"""StatisticsMemory (MCIBI++) against loops over classes and pixels."""

import logging

import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from memory_oracle import IGNORE, naive_statistics, random_batch
from operator_record import Operators
from torch import nn

from d2_pixcontrast.contrast import DatasetMemory, StatisticsMemory, nearest_resize

START = torch.tensor([[0.0, 1.0]])


def update(memory, features, labels, momentum=0.1, ignore_value=IGNORE):
    memory.update(features, labels, momentum=momentum, ignore_value=ignore_value)


def trained(classes=4, channels=6, **options):
    memory = StatisticsMemory(classes, channels, **options)
    for seed in range(3):
        update(memory, *random_batch(seed, (4, 5), (8, 10), channels=channels), momentum=0.3)
    return memory


@pytest.mark.parametrize(
    "size, label_size", [((4, 5), (4, 5)), ((3, 5), (10, 7)), ((6, 7), (5, 4))]
)
def test_updates_are_the_published_ones_on_upsampled_features(size, label_size):
    """A class that was not there moves neither towards 0 nor back to (0, 1)."""
    memory = StatisticsMemory(4, 6).double()
    expected = START.repeat(4, 1).double()
    for step in range(4):
        features, labels = random_batch(step, size, label_size, missing=[3, step % 2])
        expected = naive_statistics(expected, features, labels, 0.3)
        update(memory, features, labels, momentum=0.3)
        torch.testing.assert_close(memory.statistics, expected)
    assert memory.filled[:, 0].tolist() == [True, True, True, False]
    assert torch.equal(memory.statistics[3:], START.double())
    assert memory.fill_ratio().tolist() == [1, 1, 1, 0]


def test_labels_can_be_taken_to_the_grid_instead():
    features, labels = random_batch(0, (4, 6), (16, 21))
    memory = StatisticsMemory(4, 6, update_at="grid").double()
    update(memory, features, labels)
    on_grid = nearest_resize(labels, (4, 6))
    expected = naive_statistics(START.repeat(4, 1), features, on_grid, 0.1)
    torch.testing.assert_close(memory.statistics, expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_nothing_to_learn_from(bad):
    features, labels = random_batch(0, (4, 5), (8, 10))
    memory = StatisticsMemory(4, 6)
    update(memory, features.float(), torch.full_like(labels, IGNORE))
    update(memory, torch.full_like(features, bad).float(), labels)
    assert not memory.filled.any() and torch.equal(memory.statistics, START.repeat(4, 1))
    update(memory, features, labels)
    seen = memory.statistics.clone()
    update(memory, torch.full_like(features, bad).float(), labels)
    assert torch.equal(memory.statistics, seen)


def test_a_class_reads_as_its_code_stretched_and_shifted():
    memory = trained()
    assert torch.equal(StatisticsMemory(4, 6).entries[:, 0], memory.codes)
    probabilities = torch.rand(2, 4, 2, 3, requires_grad=True)
    read = memory.read(probabilities)
    assert read.requires_grad and read.shape == (2, memory.read_channels, 2, 3)
    entries = [float(m) + float(s) * z for (m, s), z in zip(memory.statistics, memory.codes)]
    for b, y, x in [(0, 0, 0), (1, 1, 2)]:
        p = probabilities[b, :, y, x].tolist()
        expected = sum(p[c] * entries[c] for c in range(4))
        torch.testing.assert_close(read[b, :, y, x].detach(), expected)
        hard = memory.read(probabilities, hard=True)[b, :, y, x]
        torch.testing.assert_close(hard, entries[p.index(max(p))])
    rows, labels, mask = memory.class_entries()
    torch.testing.assert_close(rows, torch.stack(entries))
    assert labels.tolist() == [0, 1, 2, 3] and mask.all()


def test_codes_are_standard_normal_and_no_other_generator_is_touched():
    """The published code reseeds the global generator by the class in every forward."""
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    memory = StatisticsMemory(150, 512)
    memory.read(torch.full((1, 150, 2, 2), 1 / 150))
    update(memory, torch.ones(1, 512, 2, 2), torch.zeros(1, 4, 4, dtype=torch.int64))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(memory.codes, StatisticsMemory(150, 512).codes)
    assert not torch.equal(memory.codes, StatisticsMemory(150, 512, seed=1).codes)
    assert abs(float(memory.codes.mean())) < 0.02 and abs(float(memory.codes.std()) - 1) < 0.02
    largest = torch.corrcoef(memory.codes).fill_diagonal_(0).abs().max()
    assert largest < 0.3  # every class has a code of its own


def test_an_update_waits_for_nothing_and_has_no_loops():
    counts = []
    for batch, classes in ((1, 3), (5, 60)):
        features, labels = random_batch(0, (4, 5), (8, 10), batch=batch, classes=classes)
        memory = StatisticsMemory(classes, 6)
        with Operators() as operators:
            update(memory, features.requires_grad_(), labels)
        operators.assert_no_sync()
        counts.append(len(operators.names))
        assert not memory.statistics.requires_grad
    assert counts[0] == counts[1]


def test_an_update_between_forward_and_backward_leaves_the_gradient_alone():
    memory = trained()
    probabilities = torch.rand(2, 4, 2, 3, requires_grad=True)
    loss = memory.read(probabilities).square().sum()
    expected = torch.autograd.grad(loss, probabilities, retain_graph=True)
    update(memory, *random_batch(7, (4, 5), (8, 10)))
    torch.testing.assert_close(torch.autograd.grad(loss, probabilities), expected)


def test_both_memories_have_one_interface():
    """So that one aggregation takes either."""
    features, labels = random_batch(0, (4, 5), (8, 10))
    for memory in (DatasetMemory(4, 6), StatisticsMemory(4, 6)):
        update(memory, features, labels)
        assert memory.read(torch.rand(2, 4, 3, 3)).shape == (2, memory.read_channels, 3, 3)
        rows, classes, mask = memory.class_entries()
        assert rows.shape == (4, 6) and classes.shape == mask.shape == (4,)
        assert memory.entries.shape == (4, 1, 6) and memory.filled.shape == (4, 1)
        assert memory.fill_ratio().tolist() == [1, 1, 1, 1]
        memory.reset()
        assert not memory.filled.any()


def test_a_single_channel_has_no_deviation():
    with pytest.raises(ValueError, match="at least 2"):
        StatisticsMemory(3, 1)
    with pytest.raises(ValueError, match="UPDATE_AT is 'pixel'"):
        StatisticsMemory(3, 4, update_at="pixel")


class Model(nn.Module):
    def __init__(self, memory):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.memory = memory


def test_a_checkpoint_restores_statistics_and_codes(tmp_path):
    source, target = Model(trained()), Model(StatisticsMemory(4, 6, seed=3))
    Checkpointer(source, str(tmp_path)).save("model")
    Checkpointer(target).load(str(tmp_path / "model.pth"))
    for name, buffer in source.memory.named_buffers():
        assert torch.equal(buffer, target.memory.get_buffer(name)), name
    assert torch.equal(source.memory.entries, target.memory.entries)


@pytest.mark.parametrize("load", ["checkpointer", "load_state_dict"])
@pytest.mark.parametrize("options", [{"classes": 5}, {"channels": 7}])
def test_a_memory_of_another_shape_starts_empty(tmp_path, caplog, load, options):
    """Of other channels the statistics alone would fit: they belong to the old features."""
    source, target = Model(trained()), Model(trained(**options))
    codes = target.memory.codes.clone()
    with caplog.at_level(logging.INFO):
        if load == "checkpointer":
            Checkpointer(source, str(tmp_path)).save("model")
            Checkpointer(target).load(str(tmp_path / "model.pth"))
        else:
            target.load_state_dict(source.state_dict())
    assert not target.memory.filled.any() and torch.equal(target.memory.codes, codes)
    assert torch.equal(target.layer.weight, source.layer.weight)
    assert any("memory" in record.getMessage() for record in caplog.records)
