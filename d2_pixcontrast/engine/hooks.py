"""Hooks that detectron2 0.5 lacks, or that only this project needs."""

import logging
import math

import torch
from detectron2.engine import HookBase

from ..modeling.terms import TrainingProgress


class TrainingProgressHook(HookBase):
    """Before each step: tells the heads where training stands, and seeds torch's generators.

    The generators' state (dropout, say) is thus a function of seed, rank and iteration: a resumed
    run goes on as the uninterrupted one, and two methods with the same seed drop the same units.
    """

    def __init__(self, model: torch.nn.Module, scheduler, seed: int, rank: int):
        """
        Args:
            model: every module of it with a ``set_progress`` method is told.
            scheduler: the learning rate schedule (for its current factor).
            seed, rank: of this run and process.
        """
        self._targets = [m for m in model.modules() if hasattr(m, "set_progress")]
        self._scheduler = scheduler
        self.seed = seed
        self._rank = rank

    def before_step(self):
        iteration = self.trainer.iter
        base_lr = self._scheduler.base_lrs[0]
        progress = TrainingProgress(
            iteration=iteration,
            max_iter=self.trainer.max_iter,
            lr_factor=self._scheduler.get_last_lr()[0] / base_lr if base_lr else 0.0,
            seed=self.seed,
        )
        for module in self._targets:
            module.set_progress(progress)
        # Distinct for every (iteration, rank) of one seed; torch mixes the bits itself.
        torch.manual_seed(((self.seed * 1_000_003 + iteration) * 65_537 + self._rank) % 2**63)


class BestCheckpointHook(HookBase):
    """Keeps ``model_best.pth``, the checkpoint with the highest value of one evaluation result."""

    def __init__(self, checkpointer, metric: str):
        """
        Args:
            checkpointer: a :class:`~d2_pixcontrast.engine.SemSegCheckpointer`.
            metric: a scalar that the evaluation puts into the event storage ("sem_seg/mIoU").
        """
        self._checkpointer = checkpointer
        self._metric = metric
        self.best: float | None = None
        self.best_iteration: int | None = None

    def _keep_if_best(self):
        value, iteration = self.trainer.storage.latest().get(self._metric, (math.nan, -1))
        # latest() also holds results of earlier evaluations; NaN compares false.
        fresh = iteration in (self.trainer.iter, self.trainer.storage.iter)
        if not fresh or not (self.best is None or value > self.best) or math.isnan(value):
            return
        self.best, self.best_iteration = float(value), int(self.trainer.iter)
        self._checkpointer.save("model_best", tag=False, iteration=self.trainer.iter)
        logging.getLogger(__name__).info(
            f"Best {self._metric} so far: {self.best:.3f}, kept as model_best.pth"
        )

    def after_step(self):
        self._keep_if_best()

    def after_train(self):
        self._keep_if_best()

    def state_dict(self) -> dict:
        return {"best": self.best, "best_iteration": self.best_iteration}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.best_iteration = state["best"], state["best_iteration"]
