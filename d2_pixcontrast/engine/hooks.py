"""What happens before each training step."""

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
        # Not get_last_lr(), which after a resume is that of the start until the next step. Nor just
        # the first group: a frozen backbone's rate is 0 and says nothing of the schedule.
        rates = zip(self._scheduler.optimizer.param_groups, self._scheduler.base_lrs, strict=True)
        lr_factor = next((group["lr"] / base for group, base in rates if base), 0.0)
        progress = TrainingProgress(
            iteration=iteration,
            max_iter=self.trainer.max_iter,
            lr_factor=lr_factor,
            seed=self.seed,
        )
        for module in self._targets:
            module.set_progress(progress)
        # Distinct for every (iteration, rank) of one seed; torch mixes the bits itself.
        torch.manual_seed(((self.seed * 1_000_003 + iteration) * 65_537 + self._rank) % 2**63)
