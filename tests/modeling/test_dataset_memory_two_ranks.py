"""The head with a data-set memory on two gloo ranks, against one process with the whole batch."""

import torch
import torch.distributed as dist
from ranks import run_ranks
from test_dataset_memory_head import IGNORE, PLUS_PLUS, batch, make_head

from d2_pixcontrast.compat import create_ddp_model
from d2_pixcontrast.engine import load_cfg

RANKS, ITERATIONS, PER_RANK = 2, 3, 2
OPTIONS = {"mcibi": {"CONSISTENCY__LOSS_WEIGHT": 1.0, "CONSISTENCY__START": 0.5}}
OPTIONS["mcibi++"] = PLUS_PLUS


def head_in_double(config, method):
    """Without norm layers: batch statistics would differ between shards and the whole."""
    head = make_head(load_cfg(config), norm="", DROPOUT=0.0, **OPTIONS[method])
    return head.double().train()


def shard(iteration, ranks):
    """Of these ranks. Rank 0 never sees class 3, and in the first iteration nothing at all."""
    parts = [batch(10 * iteration + rank, count=PER_RANK) for rank in ranks]
    for rank, (_, labels) in zip(ranks, parts, strict=True):
        if rank == 0:
            labels[(labels == 3) | (iteration == 0)] = IGNORE
    features = {n: torch.cat([f[n] for f, _ in parts]).double() for n in parts[0][0]}
    return features, torch.cat([labels for _, labels in parts])


def run(model, head, ranks):
    steps = []
    for iteration in range(ITERATIONS):
        model.zero_grad()
        losses = model(*shard(iteration, ranks))[1]
        sum(losses.values()).backward()
        steps.append(sorted(losses))
    assert not [name for name, p in head.named_parameters() if p.grad is None]
    return steps, head.aggregation.memory.state_dict()


def worker(rank, folder, config):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    try:
        results = {}
        for method in OPTIONS:
            head = head_in_double(config, method)
            results[method] = run(create_ddp_model(head), head, [rank])
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_the_memory_is_that_of_one_process_with_the_whole_batch(tmp_path, small_cfg):
    config = tmp_path / "config.yaml"
    config.write_text(small_cfg.dump())
    run_ranks(worker, (str(tmp_path), str(config)), RANKS)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for method in OPTIONS:
        (names0, memory0), (names1, memory1) = (results[method] for results in ranks)
        head = head_in_double(str(config), method)
        names, expected = run(head, head, list(range(RANKS)))
        assert names0 == names1 == names
        assert head.aggregation.memory.fill_ratio().min() == 1
        for name, value in expected.items():
            assert torch.equal(memory0[name], memory1[name]), name
            torch.testing.assert_close(memory0[name], value)
