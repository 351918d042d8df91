"""DatasetMemory against loops over classes and pixels, and the faults of the published code."""

import logging

import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from memory_oracle import IGNORE, naive_update, pixels_of, random_batch
from operator_record import Operators
from torch import nn
from torch.nn import functional as F

from d2_pixcontrast.contrast import DatasetMemory, nearest_resize


def memory_of(entries, **options):
    """A memory in float64 that holds ``entries`` (C, K, D)."""
    classes, per_class, channels = entries.shape
    options = {"entries_per_class": per_class, "dtype": torch.float64, **options}
    memory = DatasetMemory(classes, channels, **options)
    memory.entries.copy_(entries)
    return memory


def random_entries(classes=4, per_class=1, channels=6, seed=9):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(classes, per_class, channels, generator=g, dtype=torch.float64)


def update(memory, features, labels, momentum=0.4, ignore_value=IGNORE):
    memory.update(features, labels, momentum=momentum, ignore_value=ignore_value)
    return memory.entries


SIZES = [((4, 5), (4, 5)), ((4, 5), (8, 10)), ((3, 5), (10, 7)), ((6, 7), (5, 4)), ((1, 3), (6, 6))]


@pytest.mark.parametrize("strategy", ["cosine", "mean"])
@pytest.mark.parametrize("per_class", [1, 3])
@pytest.mark.parametrize("size, label_size", SIZES)
def test_updates_are_the_published_ones_on_upsampled_features(
    size, label_size, per_class, strategy
):
    """From an empty memory on, with classes that come and go."""
    memory = DatasetMemory(
        4, 6, entries_per_class=per_class, strategy=strategy, dtype=torch.float64
    )
    expected = memory.entries.clone()
    for step in range(6):
        missing = [1] if step % 2 else [3] if step < 5 else [0, 2]
        features, labels = random_batch(step, size, label_size, missing=missing)
        momentum = 0.9 - 0.1 * step
        expected = naive_update(expected, features, labels, momentum, strategy)
        update(memory, features, labels, momentum)
        torch.testing.assert_close(memory.entries, expected, rtol=1e-9, atol=1e-10)
    assert memory.filled[0].all() and memory.filled.any(dim=1).all()


@pytest.mark.parametrize("strategy", ["cosine", "mean"])
def test_labels_can_be_taken_to_the_grid_instead(strategy):
    features, labels = random_batch(0, (4, 6), (16, 21))
    memory = memory_of(random_entries(), update_at="grid", strategy=strategy)
    expected = naive_update(memory.entries, features, nearest_resize(labels, (4, 6)), 0.4, strategy)
    assert not torch.allclose(expected, naive_update(memory.entries, features, labels, 0.4))
    torch.testing.assert_close(update(memory, features, labels), expected)


def test_float32_is_close_to_float64():
    features, labels = random_batch(0, (6, 7), (23, 30), channels=32)
    entries = random_entries(channels=32, per_class=2)
    memory = memory_of(entries, dtype=torch.float32)
    expected = naive_update(entries, features, labels, 0.4)
    result = update(memory, features.float(), labels)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=3e-6)


# Faults of the published code.


def test_an_absent_class_stays_as_it_is_and_an_empty_one_stays_empty():
    """Published: averaging over ranks that lack a class shrinks it, filled or not."""
    features, labels = random_batch(0, (4, 5), (8, 10), missing=[1, 2])
    entries = random_entries()
    entries[2] = 0
    memory = memory_of(entries)
    result = update(memory, features.float(), labels)
    assert torch.equal(result[1:3], entries[1:3])
    assert not torch.isclose(result[[0, 3]], entries[[0, 3]]).any()
    assert memory.filled[:, 0].tolist() == [True, True, False, True]


@pytest.mark.parametrize("per_class", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_along_their_entry_give_their_mean(per_class, dtype):
    """Published: 0 / 0 is NaN for ever; rounding could make weights of both signs."""
    entries = torch.zeros(1, per_class, 8)
    for k in range(per_class):
        entries[0, k, 3 * k] = 0.1
        entries[0, k, 3 * k + 1] = 0.7
    lengths = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    features = (entries[0, 0].view(1, -1, 1, 1) * lengths).to(dtype)
    memory = memory_of(entries, dtype=dtype)
    labels = torch.zeros(2, 5, 6, dtype=torch.int64)
    result = update(memory, features, labels, momentum=1)
    # In float32 the weights are rounding errors, but never more than a mean's weights.
    largest = float(lengths.max()) * entries[0, 0].norm()
    assert result.isfinite().all() and result[0, 0].norm() <= largest * (1 + 1e-6)
    if dtype == torch.float64:
        torch.testing.assert_close(result[0, 0], features.mean(dim=(0, 2, 3)))
    assert torch.equal(result[0, 1:], memory_of(entries, dtype=dtype).entries[0, 1:])


@pytest.mark.parametrize("total, length", [(9e-7, 2.0), (1.1e-6, 2.5)])
def test_the_plain_mean_is_taken_below_the_published_sum_of_distances(total, length):
    """Two pixels of lengths 1 and 3 whose distances to the entry are 1 : 3 and add up to this."""
    entries = torch.zeros(1, 1, 4)
    entries[0, 0, 0] = 0.5
    features = torch.zeros(1, 4, 1, 2, dtype=torch.float64)
    for i, (size, distance) in enumerate([(1.0, total / 4), (3.0, 3 * total / 4)]):
        features[0, 0, 0, i] = size
        features[0, 1, 0, i] = size * ((1 - distance) ** -2 - 1) ** 0.5  # tangent of the angle
    memory = memory_of(entries, dtype=torch.float64)
    result = update(memory, features, torch.zeros(1, 1, 2, dtype=torch.int64), momentum=1)
    assert result[0, 0, 0].item() == pytest.approx(length, rel=1e-6)


def test_pixels_between_cells_that_cancel_out_do_not_outweigh_the_others():
    """What rounding leaves of them has no direction: its cosine may come out as anything."""
    g = torch.Generator().manual_seed(0)
    left = torch.randn(1, 64, 50, 1, generator=g)
    features = torch.cat([left, -2.6 * left], dim=3)
    labels = torch.zeros(1, 50, 9, dtype=torch.int64)
    length = F.interpolate(features, (50, 9), mode="bilinear").norm(dim=1)
    assert (length[0, :, 3] < 1e-5).all()  # 13/18 - 2.6 * 5/18 = 0
    entries = random_entries(classes=1, channels=64)
    expected = naive_update(entries, features, labels, 1)
    result = update(memory_of(entries, dtype=torch.float32), features, labels, momentum=1)
    assert (result - expected).norm() < 0.02 * expected.norm()


def test_an_entry_without_a_pixel_of_its_class_stays_as_it_is():
    """Published: a sum over no pixel pulls one of several entries to zero."""
    features, labels = random_batch(0, (4, 5), (8, 10))
    entries = random_entries(per_class=3)
    entries[:, 1] = -100  # far from all features, which lie around +0.3
    entries[:, 0] = 100
    assert all(float(p.sum()) > -10 for c in range(4) for p in pixels_of(features, labels, c))
    features = features.abs()
    result = update(memory_of(entries), features, labels)
    assert torch.equal(result[:, 1], entries[:, 1])
    assert (result[:, 0] < 99).all()


def test_the_first_empty_entry_takes_the_plain_mean_and_nothing_else_moves():
    memory = DatasetMemory(4, 6, entries_per_class=3, dtype=torch.float64)
    state = torch.random.get_rng_state()
    for k in range(3):
        before = memory.entries.clone()
        features, labels = random_batch(k, (4, 5), (8, 10))
        update(memory, features, labels, momentum=0.1)
        for c in range(4):
            mean = torch.stack(pixels_of(features, labels, c)).mean(dim=0)
            torch.testing.assert_close(memory.entries[c, k], mean)
        others = [j for j in range(3) if j != k]
        assert torch.equal(memory.entries[:, others], before[:, others])
        torch.testing.assert_close(memory.fill_ratio(), torch.full((4,), (k + 1) / 3))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e25])
def test_features_that_are_not_finite_stay_out(bad):
    """An overflow in one step would stay for ever: the cells that hold it are left out."""
    features, labels = random_batch(0, (4, 5), (8, 10))
    labels[:, :4, :5] = 1
    labels[0, :, -1] = 3
    labels[labels == 2] = 0
    labels[0, 0, 0] = 2  # class 2 has no other pixel than one in the bad cell
    broken = features.float()
    broken[0, 2, 0, 0] = bad
    seen = labels.clone()
    seen[0, :3, :3] = IGNORE  # pixels that read cell (0, 0): 2 h / H - 0.5 < 1
    entries = random_entries()
    expected = naive_update(entries, features, seen, 0.4)
    result = update(memory_of(entries, dtype=torch.float32), broken, labels)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(result[2], entries[2].float())
    assert not torch.allclose(result[1].double(), entries[1], atol=1e-2)


@pytest.mark.parametrize("per_class", [1, 2])
def test_batches_without_a_label_change_nothing(per_class):
    features, labels = random_batch(0, (4, 5), (8, 10))
    entries = random_entries(per_class=per_class)
    entries[2] = 0
    for nothing in (IGNORE, -1, 4, 77):
        memory = memory_of(entries)
        assert torch.equal(update(memory, features, torch.full_like(labels, nothing)), entries)
        update(memory, features * torch.nan, labels)
        assert torch.equal(memory.entries, entries)


@pytest.mark.parametrize("ignore", [0, 3, -1])
def test_any_label_can_be_ignored_and_class_0_is_a_class(ignore):
    features, labels = random_batch(0, (4, 5), (8, 10))
    labels = labels.where(labels != IGNORE, ignore)
    expected = naive_update(random_entries(), features, labels.where(labels != ignore, IGNORE), 0.4)
    result = update(memory_of(random_entries()), features, labels, ignore_value=ignore)
    torch.testing.assert_close(result, expected)
    changed = (result != random_entries()).flatten(1).any(dim=1)
    assert changed.tolist() == [c != ignore for c in range(4)]


def test_one_pixel_of_one_class():
    features, labels = random_batch(0, (4, 5), (9, 10))
    labels[:] = IGNORE
    labels[1, 4, 9] = 2
    expected = F.interpolate(features, (9, 10), mode="bilinear")[1, :, 4, 9]
    entries = random_entries()
    result = update(memory_of(entries), features, labels, momentum=0.25)
    torch.testing.assert_close(result[2, 0], 0.75 * entries[2, 0] + 0.25 * expected)
    assert torch.equal(result[[0, 1, 3]], entries[[0, 1, 3]])


def test_features_of_zeros_are_at_distance_1_and_fill_nothing():
    features, labels = random_batch(0, (4, 5), (8, 10))
    features[0] = 0
    labels[1] = labels[1].where(labels[1] != 2, IGNORE)
    entries = random_entries()
    entries[2] = 0
    memory = memory_of(entries)
    expected = naive_update(entries, features, labels, 0.4)
    torch.testing.assert_close(update(memory, features, labels), expected)
    assert memory.filled[:, 0].tolist() == [True, True, False, True]


@pytest.mark.parametrize("momentum", [0, 1, torch.tensor(0.5, dtype=torch.float64)])
def test_momentum(momentum):
    features, labels = random_batch(0, (4, 5), (8, 10))
    entries = random_entries()
    result = update(memory_of(entries), features, labels, momentum)
    torch.testing.assert_close(result, naive_update(entries, features, labels, float(momentum)))
    assert torch.equal(result, entries) == (momentum == 0)


# As a part of a network.


@pytest.mark.parametrize("strategy", ["cosine", "mean"])
@pytest.mark.parametrize("per_class", [1, 2])
def test_an_update_waits_for_nothing_and_has_no_loops(per_class, strategy):
    counts = []
    for batch, classes in ((1, 3), (5, 60)):
        features, labels = random_batch(0, (4, 5), (8, 10), batch=batch, classes=classes)
        memory = DatasetMemory(classes, 6, entries_per_class=per_class, strategy=strategy)
        with Operators() as operators:
            update(memory, features.float(), labels)
        operators.assert_no_sync()
        counts.append(len(operators.names))
    assert counts[0] == counts[1]


def test_an_update_computes_in_float32_under_autocast():
    features, labels = random_batch(0, (4, 5), (8, 10))
    features = features.half()
    memory, other = DatasetMemory(4, 6), DatasetMemory(4, 6)
    for _ in range(2):
        update(memory, features.float(), labels)
        with torch.autocast("cpu", torch.bfloat16):
            update(other, features, labels)
    assert torch.equal(memory.entries, other.entries)
    probabilities = torch.rand(2, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        read = other.read(probabilities)
    assert torch.equal(read, memory.read(probabilities))


def test_an_update_between_forward_and_backward_leaves_the_gradient_alone():
    features, labels = random_batch(0, (4, 5), (8, 10))
    memory = memory_of(random_entries())
    gradients = []
    for and_update in (False, True):
        probabilities = torch.rand(
            2, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        ).requires_grad_()
        weight = torch.ones(5, 6, dtype=torch.float64, requires_grad=True)
        consistency = (memory.class_entries().rows @ weight.t()).square().sum()
        loss = memory.read(probabilities).square().sum() + consistency
        if and_update:
            update(memory, features.requires_grad_(), labels)
        gradients.append(torch.autograd.grad(loss, [probabilities, weight]))
    torch.testing.assert_close(*gradients)
    assert features.grad is None and not memory.entries.requires_grad


@pytest.mark.parametrize("per_class", [1, 2])
@pytest.mark.parametrize("hard", [False, True])
def test_read(per_class, hard):
    entries = random_entries(per_class=per_class)
    entries[3, 0] = 0  # empty: reads as zeros, its probability is not spread over the others
    memory = memory_of(entries)
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(2)).double()
    probabilities = logits.softmax(dim=1)
    probabilities[0, :, 0, 0] = torch.tensor([0.1, 0.1, 0.1, 0.7])
    read = memory.read(probabilities.requires_grad_(), hard=hard)
    assert read.shape == (2, memory.read_channels, 3, 5)
    assert read.requires_grad is not hard
    for b in range(2):
        for y in range(3):
            for x in range(5):
                p = probabilities[b, :, y, x].tolist()
                if hard:
                    p = [float(value == max(p)) for value in p]
                expected = [sum(p[c] * entries[c, k] for c in range(4)) for k in range(per_class)]
                torch.testing.assert_close(read[b, :, y, x], torch.cat(expected))
    assert (read[0, :6, 0, 0] == 0).all() == hard


def test_class_entries_are_sorted_by_class_and_say_which_are_filled():
    entries = random_entries(classes=3, per_class=2)
    entries[1, 1] = 0
    memory = memory_of(entries)
    rows, labels, mask = memory.class_entries()
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert mask.tolist() == [True, True, True, False, True, True]
    for number in range(6):
        assert torch.equal(rows[number], entries[number // 2, number % 2])
    assert memory.fill_ratio().tolist() == [1, 0.5, 1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"strategy": "median"}, "STRATEGY is 'median'.*cosine"),
        ({"update_at": "image"}, "UPDATE_AT is 'image'.*grid"),
        ({"entries_per_class": 0}, "0 entries.*ENTRIES_PER_CLASS"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DatasetMemory(3, 4, **options)


@pytest.mark.parametrize("features", [(2, 5, 4, 4), (3, 6, 4, 4)])
def test_features_that_do_not_fit_are_refused(features):
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="do not fit"):
        update(DatasetMemory(4, 6), torch.zeros(features), labels)


# Checkpoints.


class Model(nn.Module):
    def __init__(self, memory):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.memory = memory


def trained(classes=4, **options):
    memory = DatasetMemory(classes, 6, **options)
    for seed in range(2):
        update(memory, *random_batch(seed, (4, 5), (8, 10)))
    return memory


def test_a_checkpoint_restores_the_memory_bit_for_bit(tmp_path):
    source, target = Model(trained()), Model(DatasetMemory(4, 6))
    Checkpointer(source, str(tmp_path)).save("model")
    Checkpointer(target).load(str(tmp_path / "model.pth"))
    assert torch.equal(target.memory.entries, source.memory.entries)
    assert torch.equal(target.memory.filled, source.memory.filled) and target.memory.filled.all()


@pytest.mark.parametrize("load", ["checkpointer", "load_state_dict"])
@pytest.mark.parametrize("options", [{"classes": 5}, {"entries_per_class": 2}])
def test_a_memory_of_another_shape_starts_empty(tmp_path, caplog, load, options):
    source, target = Model(trained()), Model(trained(**options))
    with caplog.at_level(logging.INFO):
        if load == "checkpointer":
            Checkpointer(source, str(tmp_path)).save("model")
            Checkpointer(target).load(str(tmp_path / "model.pth"))
        else:
            target.load_state_dict(source.state_dict())
    assert not target.memory.filled.any() and not target.memory.class_entries().mask.any()
    assert torch.equal(target.layer.weight, source.layer.weight)
    assert any("memory" in record.getMessage() for record in caplog.records)


def test_a_checkpoint_without_a_memory_empties_it_and_says_what_is_missing():
    target = Model(trained())
    state = {k: v for k, v in target.state_dict().items() if "memory" not in k}
    assert target.load_state_dict(state, strict=False).missing_keys == ["memory.entries"]
    assert not target.memory.filled.any()


def test_half_the_bytes():
    memory = trained().half()
    assert memory.entries.dtype == torch.float16 and memory.filled.all()
    probabilities = torch.rand(1, 4, 2, 2)
    read = memory.read(probabilities)
    assert read.dtype == torch.float16
    torch.testing.assert_close(read.float(), trained().read(probabilities), rtol=0, atol=5e-3)


def test_a_memory_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        memory = DatasetMemory(171, 512)
        assert memory.read(torch.zeros(1, 171, 8, 8)).shape == (1, 512, 8, 8)
