"""Two processes over gloo."""

import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.nn import functional as F

from d2_pixcontrast.contrast import MemoryBank, gather_batch, random_keys

IGNORE = 255


def spawn(function, tmp_path, ranks=2):
    """Results of ``function(rank)`` of each rank."""
    run_ranks(_worker, (function, ranks, str(tmp_path)), ranks)
    return [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]


def _worker(rank, function, ranks, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    try:
        torch.save(function(rank), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def global_batch(iteration, batch=4, dim=4, size=(5, 6), classes=3):
    g = torch.Generator().manual_seed(iteration)
    embeddings = F.normalize(torch.randn(batch, dim, *size, generator=g), dim=1)
    labels = torch.randint(classes, (batch, *size), generator=g)
    labels[iteration % batch] = IGNORE  # one rank has less to give than the other
    return embeddings, labels, random_keys(7, iteration, torch.arange(batch), size[0] * size[1])


def fill_bank(shard=slice(None)):
    bank = MemoryBank(3, 4, region_size=5, pixel_size=30)
    for iteration in range(6):
        parts = (value[shard] for value in global_batch(iteration))
        bank.enqueue(*parts, ignore_value=IGNORE)
    return bank.state_dict()


def _bank_of_rank(rank):
    return fill_bank(slice(2 * rank, 2 * rank + 2))


def _gather_of_rank(rank):
    return [
        gather_batch(torch.full((2, 3), rank, dtype=torch.int64)),
        gather_batch(torch.tensor([[rank == 0, True]])),
        gather_batch(torch.full((1, 2), 0.1 + rank, dtype=torch.bfloat16).requires_grad_()),
        gather_batch(torch.arange(6.0).view(2, 3).t() + rank),  # not contiguous
    ]


def test_one_process_gathers_itself():
    tensor = torch.randn(2, 3)
    assert torch.equal(gather_batch(tensor), tensor)


def test_gather_is_in_rank_order_for_every_dtype(tmp_path):
    first, second = spawn(_gather_of_rank, tmp_path)
    for a, b in zip(first, second):
        assert torch.equal(a, b) and not a.requires_grad
    assert first[0].tolist() == [[0] * 3] * 2 + [[1] * 3] * 2
    assert first[1].tolist() == [[True, True], [False, True]]
    assert first[2].dtype == torch.bfloat16
    expected = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(first[3], torch.cat([expected, expected + 1]))


def test_banks_of_two_ranks_are_bit_equal_and_hold_the_global_batch_in_order(tmp_path):
    """The published banks differed from rank to rank, and only rank 0's were saved."""
    first, second = spawn(_bank_of_rank, tmp_path)
    whole = fill_bank()
    for name, expected in whole.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected)
