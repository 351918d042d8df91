"""Memories of two processes over gloo are those of one process with the whole batch."""

import torch
from memory_oracle import IGNORE, naive_statistics, naive_update, random_batch
from test_distributed import spawn

from d2_pixcontrast.contrast import DatasetMemory, StatisticsMemory, sum_over_ranks

CLASSES, CHANNELS, MOMENTUM = 5, 6, 0.7


def global_batch(step):
    """Four images, two for each rank. What a rank sees differs from step to step."""
    features, labels = random_batch(step, (4, 5), (9, 11), batch=4, classes=CLASSES)
    labels[labels == 4] = IGNORE  # class 4 is on no rank
    if step in (0, 3):
        labels[2:] = labels[2:].where(labels[2:] != 1, IGNORE)  # class 1 on rank 0 alone
    if step == 1:
        labels[:2] = labels[:2].where(labels[:2] != 2, IGNORE)  # class 2 on rank 1 alone
    if step == 2:
        labels[:2] = IGNORE  # rank 0 has nothing to give
    return features, labels


def train(dtype, shard=slice(None)):
    """Entries of each memory after every step."""
    memories = {
        "cosine": DatasetMemory(CLASSES, CHANNELS, dtype=dtype),
        "mean": DatasetMemory(CLASSES, CHANNELS, strategy="mean", dtype=dtype),
        "two": DatasetMemory(CLASSES, CHANNELS, entries_per_class=2, dtype=dtype),
        "statistics": StatisticsMemory(CLASSES, CHANNELS).to(dtype),
    }
    history = {name: [] for name in memories}
    for step in range(5):
        features, labels = global_batch(step)
        features = features.to(dtype)
        if step == 4:
            features[3, 0, 1, 1] = torch.nan  # an overflow on rank 1
        for name, memory in memories.items():
            memory.update(features[shard], labels[shard], momentum=MOMENTUM, ignore_value=IGNORE)
            state = memory.statistics if name == "statistics" else memory.entries
            history[name].append(state.clone())
    return history


def train_both(shard=slice(None)):
    return {str(dtype): train(dtype, shard) for dtype in (torch.float64, torch.float32)}


def _rank(rank):
    summed = sum_over_ranks(torch.tensor([1.0 + rank, 0.1]))
    return {"summed": summed, **train_both(slice(2 * rank, 2 * rank + 2))}


def test_one_process_sums_itself():
    tensor = torch.randn(2, 3)
    assert torch.equal(sum_over_ranks(tensor.clone()), tensor)


def test_two_ranks_learn_what_one_process_learns_from_the_whole_batch(tmp_path):
    """The published code divides what one rank saw by the number of ranks."""
    first, second = spawn(_rank, tmp_path)
    torch.testing.assert_close(first.pop("summed"), torch.tensor([3.0, 0.2]))
    second.pop("summed")
    whole = train_both()
    for precision, histories in whole.items():
        tolerance = 1e-12 if precision == "torch.float64" else 2e-6
        for name, history in histories.items():
            for step, expected in enumerate(history):
                a, b = (ranks[precision][name][step] for ranks in (first, second))
                assert torch.equal(a, b), (precision, name, step)
                assert expected.isfinite().all()
                assert name == "statistics" or not expected[4].any()
                torch.testing.assert_close(a, expected, rtol=tolerance, atol=tolerance)


def test_one_process_learns_what_the_loops_say():
    """The reference of the test above, up to the overflow."""
    history = train(torch.float64)
    expected = {name: torch.zeros_like(steps[0]) for name, steps in history.items()}
    expected["statistics"][:, 1] = 1
    for step in range(4):
        features, labels = global_batch(step)
        for name, state in expected.items():
            if name == "statistics":
                expected[name] = naive_statistics(state, features, labels, MOMENTUM)
            else:
                strategy = "mean" if name == "mean" else "cosine"
                expected[name] = naive_update(state, features, labels, MOMENTUM, strategy)
            torch.testing.assert_close(history[name][step], expected[name])
