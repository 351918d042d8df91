"""When checkpoints are written."""

import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

PREEMPTED = 143  # exit status after SIGTERM: 128 + its number, as of a process that it ended


class CheckpointHook(HookBase):
    """Writes ``model_<iteration>.pth`` periodically, and ``model_final.pth`` at the end.

    It comes after all hooks that evaluate and record: when a checkpoint is there, so is what its
    iteration had to say, and a resumed run need not say it again. If one of these hooks fails, the
    step that came before it is saved all the same.
    """

    def __init__(self, checkpointer, period: int):
        """
        Args:
            checkpointer: a :class:`~d2_pixcontrast.engine.SemSegCheckpointer`.
            period: iterations between two checkpoints.
        """
        self._checkpointer = checkpointer
        self._period = period
        self._saved = -1

    def after_step(self):
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.save("model_final")
        elif done % self._period == 0:
            self.save()

    def after_train(self):
        # iter has moved on unless an exception came between the step and its checkpoint.
        if self.trainer.completed_iter == self.trainer.iter != self._saved:
            self.save()

    def save(self, name: str | None = None) -> None:
        """Write the state after this iteration; under its number unless there is a ``name``."""
        iteration = self.trainer.iter
        if self._saved != iteration:
            self._saved = iteration  # first, so that a full disk is not tried twice
            self._checkpointer.save(name or f"model_{iteration:07d}", iteration=iteration)


class PreemptionHook(HookBase):
    """On SIGTERM: finish the step, write a checkpoint, and leave with status :data:`PREEMPTED`.

    Several processes look every ``period`` iterations whether one of them has been told to go,
    since all of them have to leave after the same step. ``--resume`` then goes on.
    """

    def __init__(self, checkpoint_hook: CheckpointHook | None, period: int = 20):
        """
        Args:
            checkpoint_hook: of the main process.
            period: iterations; every single one where there is one process.
        """
        self._checkpoint_hook = checkpoint_hook
        self._period = period if comm.get_world_size() > 1 else 1
        self._told = False
        self._previous = None

    def before_train(self):
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._remember)

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self._period or done == self.trainer.max_iter or not self._any_told():
            return
        if self._checkpoint_hook is not None:
            self._checkpoint_hook.save()
        comm.synchronize()  # nobody leaves, and by that ends the others, before it is written
        logging.getLogger(__name__).warning(
            f"Stopped by SIGTERM after iteration {self.trainer.iter}; --resume goes on from there"
        )
        raise SystemExit(PREEMPTED)

    def after_train(self):
        # Once told it stays: the launcher ends the other processes when the first one has left.
        if self._previous is not None and not self._told:
            signal.signal(signal.SIGTERM, self._previous)

    def _remember(self, signum, frame):
        self._told = True

    def _any_told(self) -> bool:
        if comm.get_world_size() == 1:
            return self._told
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        told = torch.tensor(int(self._told), device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)


def forward_sigterm() -> None:
    """Make the launching process hand SIGTERM on to the processes that train, and wait for them."""

    def forward(signum, frame):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, forward)


class BestCheckpointHook(HookBase):
    """Keeps ``model_best.pth``, the checkpoint with the highest value of one evaluation result."""

    def __init__(self, checkpointer, metric: str, datasets: Sequence[str] = ()):
        """
        Args:
            checkpointer: a :class:`~d2_pixcontrast.engine.SemSegCheckpointer`.
            metric: a scalar that the evaluation puts into the event storage ("sem_seg/mIoU").
            datasets: what is evaluated. Results of several have their names in front
                ("NAME/sem_seg/mIoU"): such a metric is that of one, else it is the mean of all.
        """
        self._checkpointer = checkpointer
        self._metric = metric
        self._names = [metric]
        if len(datasets) > 1 and not metric.startswith(tuple(f"{name}/" for name in datasets)):
            self._names = [f"{name}/{metric}" for name in datasets]
        self._warned = False
        self.best: float | None = None
        self.best_iteration: int | None = None

    def _keep_if_best(self):
        # latest() also holds results of earlier evaluations.
        now = (self.trainer.iter, self.trainer.storage.iter)
        latest = self.trainer.storage.latest()
        fresh = {name: value for name, (value, iteration) in latest.items() if iteration in now}
        if not all(name in fresh for name in self._names):
            self._warn_if_evaluated(fresh)
            return
        value = sum(fresh[name] for name in self._names) / len(self._names)
        if not (self.best is None or value > self.best) or math.isnan(value):  # NaN compares false
            return
        # After training, the iteration is one beyond the last whose update is in the weights.
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        self.best, self.best_iteration = float(value), int(iteration)
        self._checkpointer.save("model_best", tag=False, iteration=iteration)
        logging.getLogger(__name__).info(
            f"Best {self._metric} so far: {self.best:.3f}, kept as model_best.pth"
        )

    def _warn_if_evaluated(self, fresh: dict[str, float]) -> None:
        found = sorted(name for name in fresh if "sem_seg/" in name and name.endswith("mIoU"))
        if found and not self._warned:
            self._warned = True
            logging.getLogger(__name__).warning(
                f"No model_best.pth is kept: SOLVER.BEST_CHECKPOINT_METRIC is {self._metric!r}, "
                f"but the evaluation gives {', '.join(found)} and others of this form"
            )

    def after_step(self):
        self._keep_if_best()

    def after_train(self):
        self._keep_if_best()

    def state_dict(self) -> dict:
        return {"best": self.best, "best_iteration": self.best_iteration}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.best_iteration = state["best"], state["best_iteration"]
