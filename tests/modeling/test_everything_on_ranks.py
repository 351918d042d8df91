"""All terms and a data-set memory at once on two and four gloo ranks, against one process.

One set of processes serves all tests: starting them is what takes the time.
"""

import copy
import importlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from conftest import CONFIGS
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from ranks import run_ranks

from d2_pixcontrast.compat import create_ddp_model
from d2_pixcontrast.contrast import nearest_resize
from d2_pixcontrast.engine import load_cfg
from d2_pixcontrast.engine.step import StepTrainer
from d2_pixcontrast.modeling.terms import TermInputs, TrainingProgress

CONFIG = CONFIGS / "quick_schedules" / "shapes_{}_instant_test.yaml"
KINDS = ("mcibi", "mcibi_pp")
WORLDS = (2, 4)
ITERATIONS, PER_RANK, SIZE, CLASSES, IGNORE = 4, 2, (64, 64), 8, 255
SECONDS = 300  # until the processes count as deadlocked; they take some 20

EVERYTHING = [
    *("MODEL.SEM_SEG_HEAD.TERMS", ["PixelContrast", "Contextrast", "MultiScaleContrast"]),
    *("MODEL.TIMM.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.PIXEL_CONTRAST.WARMUP", 0.5),
    *("MODEL.PIXEL_CONTRAST.MAX_VIEWS", 4),
    *("MODEL.PIXEL_CONTRAST.NEGATIVES", "bane"),
    *("MODEL.PIXEL_CONTRAST.MINING.MODE", "semi_hard"),
    *("MODEL.PIXEL_CONTRAST.MINING.NUM_POSITIVES", 3),
    *("MODEL.PIXEL_CONTRAST.MINING.NUM_NEGATIVES", 9),
    *("MODEL.PIXEL_CONTRAST.MEMORY.ENABLED", True),
    *("MODEL.PIXEL_CONTRAST.MEMORY.REGION_SIZE", 6),
    *("MODEL.PIXEL_CONTRAST.MEMORY.PIXEL_SIZE", 20),
    *("MODEL.CONTEXTRAST.WARMUP", 0.25),
    *("MODEL.CONTEXTRAST.ANCHORS.ALL_RANKS", True),
    *("MODEL.CONTEXTRAST.PROJECTOR.DIM", 16),
    *("MODEL.MULTI_SCALE_CONTRAST.MAX_SAMPLES", 50),
    *("MODEL.MULTI_SCALE_CONTRAST.MIN_PIXELS", 1),
    *("MODEL.MULTI_SCALE_CONTRAST.PROJECTOR.DIM", 16),
]
LOSSES = {
    *("loss_sem_seg", "loss_sem_seg_stage1", "loss_pixel_contrast", "loss_contextrast"),
    *("loss_multiscale_contrast", "loss_crossscale_contrast"),
}


def make_model(kind, *opts):
    cfg = load_cfg(str(CONFIG).format(kind), [*EVERYTHING, *opts])
    torch.manual_seed(0)
    return build_model(cfg).train()


def shard(iteration, rank):
    """Every rank sees more classes than the one before; one of them sees none in a while."""
    g = torch.Generator().manual_seed(1000 * iteration + rank)
    images = torch.randint(256, (PER_RANK, 3, *SIZE), generator=g).double()
    labels = torch.randint(2 * rank + 1, (PER_RANK, 4, 4), generator=g).clamp(max=CLASSES - 1)
    labels = nearest_resize(labels, SIZE).clone()
    labels[:, :4] = IGNORE
    if rank == iteration - 1:
        labels[:] = IGNORE
    name = f"iteration{iteration}_rank{rank}_{{}}.png"
    return [
        {"image": images[i], "sem_seg": labels[i], "file_name": name.format(i)}
        for i in range(PER_RANK)
    ]


def set_progress(model, iteration):
    model.sem_seg_head.set_progress(
        TrainingProgress(iteration, ITERATIONS, lr_factor=1 - iteration / ITERATIONS, seed=3)
    )


def update(model):
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad


def detached(losses):
    return {name: loss.detach() for name, loss in losses.items()}


def train_as_rank(model, rank):
    """Losses of every step, gradients of the last one, and the state after it."""
    wrapped, steps = create_ddp_model(model), []
    for iteration in range(ITERATIONS):
        set_progress(model, iteration)
        model.zero_grad()
        losses = wrapped(shard(iteration, rank))
        sum(losses.values()).backward()
        steps.append(detached(losses))
        update(model)
    return steps, [p.grad for p in model.parameters()], model.state_dict()


class Ranks:
    """Ranks that are threads of one process, and share one graph from which autograd derives."""

    def __init__(self, size):
        self.size = size
        self._local = threading.local()
        self._parts = [None] * size
        self._barrier = threading.Barrier(size, timeout=SECONDS)

    def run(self, function):
        """The results of function(rank) of all ranks."""

        def as_rank(rank):
            self._local.rank = rank
            return function(rank)

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(as_rank, range(self.size)))

    def rank(self):
        return self._local.rank

    def sum_over_ranks(self, tensor):
        return sum(self._exchange(tensor))

    def gather_batch(self, tensor):
        return torch.cat(self._exchange(tensor.detach()))

    def _exchange(self, tensor):
        self._parts[self.rank()] = tensor
        self._barrier.wait()
        parts = list(self._parts)
        self._barrier.wait()
        return parts


def train_in_one_process(model, world, monkeypatch):
    """What :func:`train_as_rank` returns, by rank."""
    ranks = Ranks(world)
    monkeypatch.setattr(comm, "get_rank", ranks.rank)
    for module, name in (
        ("class_anchors", "sum_over_ranks"),
        ("dataset_memory", "sum_over_ranks"),
        ("statistics_memory", "sum_over_ranks"),
        ("memory_bank", "gather_batch"),
    ):
        found = importlib.import_module(f"d2_pixcontrast.contrast.{module}")
        monkeypatch.setattr(found, name, getattr(ranks, name))
    models = [copy.deepcopy(model) for _ in range(world)]
    steps = [[] for _ in range(world)]
    for iteration in range(ITERATIONS):
        for m in models:
            set_progress(m, iteration)
            m.zero_grad()
        losses = ranks.run(lambda rank: models[rank](shard(iteration, rank)))  # noqa: B023
        (sum(sum(of_rank.values()) for of_rank in losses) / world).backward()
        for shared in zip(*(m.parameters() for m in models), strict=True):
            mean = sum(p.grad for p in shared)
            for p in shared:
                p.grad = mean
        for rank, m in enumerate(models):
            steps[rank].append(detached(losses[rank]))
            update(m)
    return [(s, [p.grad for p in m.parameters()], m.state_dict()) for s, m in zip(steps, models)]


def train_with_a_bad_image(rank, amp_dtype):
    """Rank 1's images are NaN in the second of three steps, which may be skipped."""
    model = make_model("mcibi")
    batches = [shard(iteration, rank) for iteration in range(3)]
    for sample in (s for batch in batches for s in batch):
        sample["image"] = sample["image"].float()
    if rank == 1:
        batches[1][0]["image"].fill_(torch.nan)
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logger = logging.getLogger("d2_pixcontrast.engine.step")
    logger.addHandler(handler)
    trainer = StepTrainer(
        create_ddp_model(model),
        batches,
        torch.optim.SGD(model.parameters(), 0.01),
        amp_dtype=amp_dtype,
        max_skipped_steps=1,
    )
    states = []
    with EventStorage() as storage:
        for trainer.iter in range(3):
            storage.iter = trainer.iter
            set_progress(model, trainer.iter + 1)
            trainer.run_step()
            states.append(copy.deepcopy(model.state_dict()))
    logger.removeHandler(handler)
    return states, logged


def worker(rank, folder):
    torch.set_num_threads(1)
    results = {}
    for world in (w for w in WORLDS if rank < w):
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world
        )
        for kind in KINDS:
            results[kind, world] = train_as_rank(make_model(kind).double(), rank)
        if world == 2:
            for amp_dtype in (None, "float16"):
                results["skip", amp_dtype] = train_with_a_bad_image(rank, amp_dtype)
        dist.barrier()
        dist.destroy_process_group()
        comm._get_global_gloo_group.cache_clear()
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    """What :func:`worker` has found, by rank; fails where the processes do not come to an end."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(worker, (str(folder),), max(WORLDS), SECONDS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(max(WORLDS))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_equal_one_process_with_the_same_keys(by_rank, monkeypatch, kind, world):
    expected = train_in_one_process(make_model(kind).double(), world, monkeypatch)
    for rank in range(world):
        (steps, gradients, state), (their_steps, their_gradients, their_state) = (
            by_rank[rank][kind, world],
            expected[rank],
        )
        for iteration, (losses, theirs) in enumerate(zip(steps, their_steps, strict=True)):
            assert set(losses) >= LOSSES
            torch.testing.assert_close(losses, theirs, rtol=1e-5, atol=1e-12)
            void = rank == iteration - 1
            assert (losses["loss_sem_seg"] > 0) != void
            assert (losses["loss_contextrast"] == 0) == (iteration < 1 or rank < 1 or void)
            assert iteration >= 2 or losses["loss_pixel_contrast"] == 0
        torch.testing.assert_close(gradients, their_gradients, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(state, their_state, rtol=1e-4, atol=1e-7)
    last = by_rank[1][kind, world][0][-1]
    assert all(last[name] > 0 for name in LOSSES), last


def shared_names(state):
    """Weights, banks and memories; the statistics of norm layers are each rank's own."""
    own = ("running_mean", "running_var", "num_batches_tracked")
    return [name for name in state if not name.endswith(own)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", WORLDS)
def test_weights_banks_and_memories_are_bit_equal_on_all_ranks(by_rank, kind, world):
    states = [by_rank[rank][kind, world][2] for rank in range(world)]
    names = shared_names(states[0])
    stores = ["terms.PixelContrast.bank.region.rows", "terms.PixelContrast.bank.pixel.written"]
    stores.append("aggregation.memory." + ("entries" if kind == "mcibi" else "statistics"))
    for name in stores:
        assert f"sem_seg_head.{name}" in names and states[0][f"sem_seg_head.{name}"].any()
    for state in states[1:]:
        assert not [name for name in names if not torch.equal(state[name], states[0][name])]


@pytest.mark.parametrize("amp_dtype", [None, "float16"])
def test_all_ranks_skip_a_step_that_is_bad_on_one(by_rank, amp_dtype):
    (states, logged), (other_states, other_logged) = (
        by_rank[rank]["skip", amp_dtype] for rank in range(2)
    )
    for logs in (logged, other_logged):
        (line,) = logs
        assert "not finite at iteration 1: loss_sem_seg" in line and "the step is skipped" in line
        assert "iteration1_rank1_0.png" in line
    for of_rank in (states, other_states):
        assert all(value.isfinite().all() for value in of_rank[2].values())
        learnt = [n for n in of_rank[0] if ".bank." not in n and ".memory." not in n]
        assert all(torch.equal(of_rank[1][n], of_rank[0][n]) for n in learnt)
        assert any(not torch.equal(of_rank[2][n], of_rank[1][n]) for n in learnt)
    for state, other in zip(states, other_states, strict=True):
        assert all(torch.equal(state[name], other[name]) for name in shared_names(state))


@pytest.mark.parametrize("sampler", ["per_image", "per_class"])
def test_no_two_draws_of_a_step_share_a_stream(sampler, monkeypatch):
    """Equal streams are equal keys: what one draw takes would foretell what another does."""
    model = make_model("mcibi", "MODEL.PIXEL_CONTRAST.SAMPLER", sampler).double()
    set_progress(model, ITERATIONS - 1)
    streams, draw = [], TermInputs.random_keys

    def record(inputs, count, stream):
        streams.append(stream)
        return draw(inputs, count, stream)

    monkeypatch.setattr(TermInputs, "random_keys", record)
    model(shard(0, 1))
    assert len(streams) > 20
    assert len(streams) == len(set(streams))
