"""PixelContrast with a memory on two gloo ranks, against one process."""

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from test_pixel_contrast_memory import make_inputs, make_term, state_of

from d2_pixcontrast.compat import create_ddp_model
from d2_pixcontrast.contrast import Mining

RANKS, ITERATIONS, PER_RANK = 2, 4, 2


def term_in_double(mode):
    """Norm layers frozen: batch statistics would differ between shards and the whole."""
    term = make_term(warmup=0.1, mining=Mining(mode, num_positives=3, num_negatives=9))
    term.projector.eval()
    return term.double()


def shard(iteration, rank):
    inputs = make_inputs(iteration, batch=PER_RANK, first_image=rank * PER_RANK)
    features = inputs.features["res5"].detach().double()
    inputs.features = {"res5": features.requires_grad_()}
    return inputs


def gradients(term):
    return [p.grad.clone() for p in term.parameters()]


def worker(rank, folder, mode):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    try:
        term = term_in_double(mode)
        model = create_ddp_model(term)
        steps = []
        for iteration in range(ITERATIONS):
            model.zero_grad()
            losses, _ = model(shard(iteration, rank))
            losses["loss_pixel_contrast"].backward()
            steps.append((losses["loss_pixel_contrast"].detach(), gradients(term)))
        torch.save((steps, state_of(term)), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def in_turn(mode):
    """The shards one after the other, against the memory of the step before."""
    term = term_in_double(mode)
    steps = []
    for iteration in range(ITERATIONS):
        term.zero_grad()
        before, losses = state_of(term), []
        for rank in range(RANKS):
            loss = term(shard(iteration, rank))[0]["loss_pixel_contrast"]
            (loss / RANKS).backward()
            losses.append(loss.detach())
            for name, value in before.items():
                term.bank.get_buffer(name).copy_(value)
        steps.append((losses, gradients(term)))
        for rank in range(RANKS):
            inputs = shard(iteration, rank)
            term._remember(term.projector.hidden(inputs.features["res5"]), inputs)
    return steps, state_of(term)


@pytest.mark.parametrize("mode", ["all", "semi_hard"])
def test_two_ranks_equal_one_process_that_runs_the_shards_in_turn(tmp_path, mode):
    run_ranks(worker, (str(tmp_path), mode), RANKS)
    (steps0, bank0), (steps1, bank1) = (torch.load(tmp_path / f"{r}.pt") for r in range(RANKS))
    expected_steps, expected_bank = in_turn(mode)
    for name, expected in expected_bank.items():
        assert torch.equal(bank0[name], bank1[name]), name
        torch.testing.assert_close(bank0[name], expected)
    assert expected_steps[-1][0][0] > 0
    for (loss0, grads0), (loss1, grads1), (losses, grads) in zip(steps0, steps1, expected_steps):
        torch.testing.assert_close([loss0, loss1], losses, rtol=1e-5, atol=0)
        torch.testing.assert_close(grads0, grads, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(grads1, grads, rtol=1e-5, atol=1e-9)
