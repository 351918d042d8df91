"""MemoryBank against a deque per class, and through checkpoints."""

import collections
import logging

import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from operator_record import Operators
from torch import nn
from torch.nn import functional as F

from d2_pixcontrast.contrast import ClassQueue, MemoryBank, random_keys, region_means

IGNORE = 255


def random_batch(batch=3, dim=4, size=(6, 7), classes=5, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(batch, dim, *size, generator=g, dtype=dtype), dim=1)
    labels = torch.randint(classes, (batch, *size), generator=g)
    # Only some classes in each image, and some void.
    present = torch.rand(batch, classes, generator=g) < 0.6
    keep = present[torch.arange(batch)[:, None, None], labels]
    labels = labels.where(keep, IGNORE)
    return embeddings, labels, random_keys(seed, 0, torch.arange(batch), size[0] * size[1])


def contents(queue, c):
    """Entries of class c, oldest first."""
    size, written = queue.rows.shape[1], int(queue.written[c])
    order = [i % size for i in range(max(0, written - size), written)]
    return queue.rows[c, order]


@pytest.mark.parametrize("size, per_push", [(1, 1), (7, 3), (5, 5), (4, 11), (50, 8)])
def test_queue_equals_a_deque_per_class(size, per_push):
    """The published pointer moved by 1 whatever was written, and a wrap hit the newest entries."""
    g = torch.Generator().manual_seed(size)
    queue = ClassQueue(3, size, 2)
    oracle = [collections.deque(maxlen=size) for _ in range(3)]
    for step in range(12):
        rows = torch.randn(3, per_push, 2, generator=g)
        mask = torch.rand(3, per_push, generator=g) < (0.0 if step == 5 else 0.6)
        queue.push(rows, mask)
        for c in range(3):
            oracle[c].extend(rows[c, k] for k in range(per_push) if mask[c, k])
            assert queue.fill[c] == len(oracle[c])
            if oracle[c]:
                assert torch.equal(contents(queue, c), torch.stack(list(oracle[c])))
    empty = torch.arange(size) >= queue.fill[:, None]
    assert torch.all(queue.rows[empty] == 0)


def naive_regions(embeddings, labels):
    """{class: unit means in image order}."""
    found = {}
    for image, image_labels in zip(embeddings, labels):
        for c in image_labels.unique().tolist():
            if c != IGNORE:
                mean = image[:, image_labels == c].mean(dim=1)
                found.setdefault(c, []).append(mean / mean.norm())
    return found


def test_regions_are_unit_means_of_every_class_present_however_small():
    bank = MemoryBank(5, 4, region_size=20, pixel_size=0)
    for seed in range(3):
        embeddings, labels, keys = random_batch(seed=seed)
        labels[0, 0, 0] = 4  # one pixel is enough
        expected = naive_regions(embeddings, labels)
        before = bank.region.written.clone()
        bank.enqueue(embeddings, labels, keys, ignore_value=IGNORE)
        new = bank.region.written - before
        for c in range(5):
            assert new[c] == len(expected.get(c, []))
            if new[c]:
                torch.testing.assert_close(
                    contents(bank.region, c)[-int(new[c]) :], torch.stack(expected[c])
                )
    assert bank.region.written[0] > 0  # class 0 is a class


def test_pixels_are_random_pixels_of_their_own_class():
    """The published code took them from wrong positions."""
    embeddings, labels, keys = random_batch(size=(9, 9))
    labels[1] = IGNORE
    labels[1, 3, :4] = 2  # four pixels of class 2 in image 1
    bank = MemoryBank(5, 4, region_size=0, pixel_size=100, pixels_per_group=6)
    bank.enqueue(embeddings, labels, keys, ignore_value=IGNORE)
    for c in range(5):
        entries = iter(contents(bank.pixel, c))
        for image, image_labels in zip(embeddings, labels):
            pixels = image[:, image_labels == c].t().tolist()
            drawn = [next(entries).tolist() for _ in range(min(6, len(pixels)))]
            assert all(row in pixels for row in drawn)
            assert len({tuple(row) for row in drawn}) == len(drawn)
        assert next(entries, None) is None
    other = MemoryBank(5, 4, region_size=0, pixel_size=100, pixels_per_group=6)
    other.enqueue(embeddings, labels, keys.flip(1), ignore_value=IGNORE)
    assert not torch.equal(bank.pixel.rows, other.pixel.rows)


@pytest.mark.parametrize("ignore", [IGNORE, 0, 3, -1])
def test_ignored_and_foreign_labels_are_skipped(ignore):
    embeddings, labels, keys = random_batch()
    labels = torch.full_like(labels, ignore)
    labels[0, 0] = 77
    labels[0, 1] = -5
    bank = MemoryBank(5, 4, region_size=3, pixel_size=3)
    bank.enqueue(embeddings, labels, keys, ignore_value=ignore)
    assert torch.all(bank.region.written == 0) and torch.all(bank.pixel.written == 0)


def test_labels_on_another_grid_are_refused():
    embeddings, labels, keys = random_batch()
    with pytest.raises(ValueError, match="different grids"):
        MemoryBank(5, 4).enqueue(embeddings, labels[:, ::2], keys, ignore_value=IGNORE)


def test_overflown_and_zero_embeddings_stay_out():
    embeddings, labels, keys = random_batch(seed=1)
    embeddings[2, :, 2, 3] = 0
    embeddings[0, :, 2, 2] = torch.nan
    embeddings[1, 0, 3, 3] = torch.inf
    labels[:, 2:4, 2:4] = 1
    bank = MemoryBank(5, 4, region_size=9, pixel_size=200, pixels_per_group=90)
    bank.enqueue(embeddings, labels, keys, ignore_value=IGNORE)
    assert bank.region.rows.isfinite().all() and bank.pixel.rows.isfinite().all()
    assert bank.region.written.sum() > 0 and bank.pixel.written[1] > 0
    assert torch.all(bank.pixel.rows[1].norm(dim=1)[: bank.pixel.fill[1]] > 0.9)


def test_autocast_changes_nothing():
    banks = []
    for enabled in (False, True):
        banks.append(MemoryBank(5, 4))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            banks[-1].enqueue(*random_batch(), ignore_value=IGNORE)
    for wide, half in zip(*(bank.buffers() for bank in banks), strict=True):
        assert wide.any() and torch.equal(wide, half)


def test_a_mean_without_direction_is_no_entry():
    embeddings = torch.tensor([[1.0, -1.0, 0.6], [0.0, 0.0, 0.8]]).view(1, 2, 1, 3)
    rows, mask = region_means(embeddings, torch.tensor([[[0, 0, 1]]]), 2, IGNORE)
    assert mask.tolist() == [[False, True]]
    torch.testing.assert_close(rows[0, 1], torch.tensor([0.6, 0.8]))


def test_enqueue_waits_for_nothing():
    embeddings, labels, keys = random_batch()
    bank = MemoryBank(5, 4, region_size=6, pixel_size=8)
    with Operators() as operators:
        bank.enqueue(embeddings, labels, keys, ignore_value=IGNORE)
    operators.assert_no_sync()
    few = len(operators.names)
    embeddings, labels, keys = random_batch(batch=9, classes=50)
    bank = MemoryBank(50, 4, region_size=6, pixel_size=8)
    with Operators() as operators:
        bank.enqueue(embeddings, labels, keys, ignore_value=IGNORE)
    assert len(operators.names) == few  # no loop over images or classes


def test_entries_have_no_gradient():
    embeddings, labels, keys = random_batch()
    bank = MemoryBank(5, 4, region_size=6, pixel_size=6)
    bank.enqueue(embeddings.requires_grad_(), labels, keys, ignore_value=IGNORE)
    assert not any(buffer.requires_grad for buffer in bank.buffers())


def filled_bank(**options):
    bank = MemoryBank(5, 4, **{"region_size": 6, "pixel_size": 8, **options})
    for seed in range(4):
        embeddings, labels, keys = random_batch(seed=seed)
        bank.enqueue(embeddings, labels, keys, ignore_value=IGNORE)
    return bank


def test_bfloat16_takes_half_the_memory():
    bank, half = filled_bank(), filled_bank(dtype=torch.bfloat16)
    counters = 2 * 5 * 8
    assert bank.memory_bytes() == 5 * (6 + 8) * 4 * 4 + counters
    assert half.memory_bytes() == 5 * (6 + 8) * 4 * 2 + counters
    torch.testing.assert_close(half.pixel.rows, bank.pixel.rows.bfloat16())
    assert torch.equal(half.pixel.written, bank.pixel.written)


def test_stores_are_optional():
    assert list(MemoryBank(2, 3, region_size=0).stores) == ["pixel"]
    assert list(MemoryBank(2, 3, pixel_size=0, pixels_per_group=0).stores) == ["region"]
    with pytest.raises(ValueError, match="needs a store"):
        MemoryBank(2, 3, region_size=0, pixel_size=0)
    with pytest.raises(ValueError, match="PIXELS_PER_GROUP"):
        MemoryBank(2, 3, pixels_per_group=0)


def test_fill_ratio():
    bank = MemoryBank(2, 3, region_size=2, pixel_size=8)
    bank.region.written[:] = torch.tensor([5, 1])
    bank.pixel.written[:] = torch.tensor([3, 0])
    torch.testing.assert_close(bank.fill_ratio(), torch.tensor([0.5, 0.1]))


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.bank = filled_bank(**options)


def save_and_load(source, target, tmp_path):
    Checkpointer(source, str(tmp_path)).save("model")
    Checkpointer(target).load(str(tmp_path / "model.pth"))


def test_a_checkpoint_restores_the_bank_bit_for_bit(tmp_path):
    source, target = Model(), Model()
    target.bank.region.reset()
    target.bank.pixel.rows += 1
    save_and_load(source, target, tmp_path)
    for name, buffer in source.bank.named_buffers():
        assert torch.equal(buffer, target.bank.get_buffer(name)), name


@pytest.mark.parametrize("load", ["checkpointer", "load_state_dict"])
def test_a_store_of_another_size_starts_empty_and_the_other_is_kept(tmp_path, caplog, load):
    """fvcore drops the entries alone: the counter by itself would declare zeros to be entries."""
    source, target = Model(), Model(pixel_size=5)
    with caplog.at_level(logging.INFO, "d2_pixcontrast"):
        if load == "checkpointer":
            save_and_load(source, target, tmp_path)
        else:
            target.load_state_dict(source.state_dict())
    assert torch.all(target.bank.pixel.written == 0) and torch.all(target.bank.pixel.rows == 0)
    assert torch.equal(target.bank.region.rows, source.bank.region.rows)
    assert torch.equal(target.bank.region.written, source.bank.region.written)
    assert torch.equal(target.layer.weight, source.layer.weight)
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("d2_pixcontrast")]
    assert len(messages) == 1 and "bank.pixel" in messages[0] and "starts empty" in messages[0]


@pytest.mark.parametrize("part", ["rows", "written"])
def test_half_a_store_is_none(part):
    source, target = Model(), Model()
    state = source.state_dict()
    del state[f"bank.pixel.{part}"]
    target.load_state_dict(state, strict=False)
    assert torch.all(target.bank.pixel.written == 0) and torch.all(target.bank.pixel.rows == 0)


def test_another_number_of_classes_or_channels_starts_empty(tmp_path):
    for changed in (MemoryBank(6, 4, region_size=6, pixel_size=8), MemoryBank(5, 3, region_size=6)):
        source, target = Model(), Model()
        for store in changed.stores.values():
            store.written += 3
            store.rows += 1
        target.bank = changed
        save_and_load(source, target, tmp_path)
        assert all(torch.all(buffer == 0) for buffer in changed.buffers())


def test_a_checkpoint_without_a_bank_empties_it_and_says_what_is_missing():
    target = Model()
    state = {k: v for k, v in target.state_dict().items() if "bank" not in k}
    missing = target.load_state_dict(state, strict=False).missing_keys
    assert sorted(missing) == sorted(f"bank.{name}" for name, _ in target.bank.named_buffers())
    assert all(torch.all(buffer == 0) for buffer in target.bank.buffers())


def test_a_bank_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        bank = MemoryBank(171, 256)
    assert bank.memory_bytes() == 171 * 10000 * 256 * 4 + 2 * 171 * 8
