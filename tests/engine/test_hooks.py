import math

import pytest
import torch
from detectron2.engine import HookBase, TrainerBase
from detectron2.solver.lr_scheduler import LRMultiplier
from detectron2.utils.events import EventStorage

from d2_pixcontrast.engine import BestCheckpointHook, TrainingProgressHook
from d2_pixcontrast.solver import WarmupPolySchedule


class Loop(TrainerBase):
    """A training that evaluates after given iterations with given results."""

    def __init__(self, results, max_iter):
        super().__init__()
        self.results, self.length = results, max_iter

    def run_step(self):
        pass

    def after_step(self):
        if self.iter in self.results:
            self.storage.put_scalars(**{"sem_seg/mIoU": self.results[self.iter]})
        super().after_step()


class Checkpointer:
    def __init__(self):
        self.saved = []

    def save(self, name, tag, iteration):
        assert name == "model_best" and not tag
        self.saved.append(iteration)


@pytest.mark.parametrize(
    "results, saved, best",
    [
        ({1: 10.0, 3: 30.0, 5: 20.0}, [1, 3], 30.0),
        ({1: math.nan, 3: 0.0, 5: math.nan}, [3], 0.0),
        ({}, [], None),
    ],
)
def test_the_best_checkpoint_is_kept(results, saved, best):
    loop, checkpointer = Loop(results, 7), Checkpointer()
    hook = BestCheckpointHook(checkpointer, "sem_seg/mIoU")
    loop.register_hooks([hook])
    loop.train(0, 7)
    assert checkpointer.saved == saved and hook.best == best


def test_the_best_of_the_last_evaluation_has_the_last_iteration():
    """As model_final has it, which is the same network."""
    loop, checkpointer = Loop({}, 7), Checkpointer()

    class Evaluation(HookBase):
        def after_train(self):
            self.trainer.storage.put_scalar("sem_seg/mIoU", 5.0)

    hook = BestCheckpointHook(checkpointer, "sem_seg/mIoU")
    loop.register_hooks([Evaluation(), hook])
    loop.train(0, 7)
    assert checkpointer.saved == [6] and hook.best_iteration == 6


class SeveralSets(Loop):
    """Evaluates two data sets: one scores what ``results`` says, the other ten less."""

    def after_step(self):
        if self.iter in self.results:
            self.storage.put_scalar("a/sem_seg/mIoU", self.results[self.iter])
            self.storage.put_scalar("b/sem_seg/mIoU", self.results[self.iter] - 10)
        TrainerBase.after_step(self)


@pytest.mark.parametrize(
    "metric, best", [("sem_seg/mIoU", 25.0), ("a/sem_seg/mIoU", 30.0), ("b/sem_seg/mIoU", 20.0)]
)
def test_of_several_data_sets_it_is_the_mean_or_one(metric, best):
    loop, checkpointer = SeveralSets({1: 10.0, 3: 30.0, 5: 20.0}, 7), Checkpointer()
    hook = BestCheckpointHook(checkpointer, metric, ["a", "b"])
    loop.register_hooks([hook])
    loop.train(0, 7)
    assert checkpointer.saved == [1, 3] and hook.best == best


def test_a_metric_that_the_evaluation_does_not_give_is_told_once(caplog):
    loop, checkpointer = Loop({1: 10.0, 3: 30.0}, 7), Checkpointer()
    loop.register_hooks([BestCheckpointHook(checkpointer, "sem_seg/miou", ["a"])])
    loop.train(0, 7)
    assert not checkpointer.saved
    (record,) = caplog.records
    assert "'sem_seg/miou', but the evaluation gives sem_seg/mIoU" in record.getMessage()


def test_a_resumed_run_remembers_its_best():
    checkpointer = Checkpointer()
    first = BestCheckpointHook(checkpointer, "sem_seg/mIoU")
    loop = Loop({1: 30.0}, 2)
    loop.register_hooks([first])
    loop.train(0, 2)
    second = BestCheckpointHook(checkpointer, "sem_seg/mIoU")
    second.load_state_dict(first.state_dict())
    loop = Loop({3: 20.0, 4: 31.0}, 6)
    loop.register_hooks([second])
    loop.train(2, 6)
    assert checkpointer.saved == [1, 4]


class Told(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen, self.draws = [], []

    def set_progress(self, progress):
        self.seen.append(progress)


def make_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    return optimizer, LRMultiplier(optimizer, WarmupPolySchedule(1.0), max_iter=10)


def run_with_progress(start, stop, seed=3, rank=0):
    model = Told()
    optimizer, scheduler = make_schedule()
    loop = Loop({}, 10)
    loop.run_step = lambda: (
        model.draws.append(torch.rand(()).item()),
        optimizer.step(),
        scheduler.step(),
    )
    if start:  # as from a checkpoint
        before = make_schedule()
        for _ in range(start):
            for part in before:
                part.step()
        for part, saved in zip((optimizer, scheduler), before, strict=True):
            part.load_state_dict(saved.state_dict())
    loop.register_hooks([TrainingProgressHook(torch.nn.Sequential(model), scheduler, seed, rank)])
    with EventStorage(start):
        loop.train(start, 10)
    return model


def test_a_frozen_backbone_does_not_hide_the_schedule():
    """Its group comes first, and its learning rate is 0 from the start."""
    head, backbone = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [backbone], "lr": 0.0}, {"params": [head]}], lr=0.5)
    scheduler = LRMultiplier(optimizer, WarmupPolySchedule(1.0), max_iter=10)
    model, loop = Told(), Loop({}, 10)
    loop.run_step = lambda: (optimizer.step(), scheduler.step())
    loop.register_hooks([TrainingProgressHook(model, scheduler, seed=0, rank=0)])
    loop.train(0, 10)
    assert [p.lr_factor for p in model.seen] == pytest.approx([1 - i / 10 for i in range(10)])


def test_progress_and_generators_are_functions_of_the_iteration():
    whole = run_with_progress(0, 10)
    assert [p.iteration for p in whole.seen] == list(range(10))
    assert [p.lr_factor for p in whole.seen] == pytest.approx([1 - i / 10 for i in range(10)])
    assert {p.max_iter for p in whole.seen} == {10} and {p.seed for p in whole.seen} == {3}
    resumed = run_with_progress(6, 10)
    assert resumed.draws == whole.draws[6:]
    assert resumed.seen == whole.seen[6:]
    assert len(set(whole.draws)) == 10
    assert not set(run_with_progress(0, 10, rank=1).draws) & set(whole.draws)
    assert not set(run_with_progress(0, 10, seed=4).draws) & set(whole.draws)
    run_with_progress(8, 10, seed=2**31 - 1)  # torch's generators take no number of any size
