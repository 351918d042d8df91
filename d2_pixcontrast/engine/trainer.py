"""The training loop."""

import logging
import weakref

import torch
from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from timm.layers import convert_sync_batchnorm

from ..compat import create_ddp_model
from ..data import build_test_loader, build_train_loader
from ..evaluation import SemSegEvaluator
from ..solver import build_lr_scheduler, build_optimizer
from .checkpoint import SemSegCheckpointer
from .hooks import BestCheckpointHook, TrainingProgressHook
from .step import StepTrainer


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer for semantic segmentation, on GPUs and CPUs, on both versions.

    Hooks, writers and evaluation are detectron2's. Optimiser, grad-scaler and seed are part of the
    checkpoint, and the data stream goes on where it was. ``model``, ``optimizer`` and
    ``data_loader`` are those of the step trainer, as in DefaultTrainer.
    """

    def __init__(self, cfg):
        # Not DefaultTrainer's constructor: its DDP set-up fails on CPU modules.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        data_loader = self.build_train_loader(cfg)
        self.seed = data_loader.seed  # drawn there where SEED is negative
        seed_all_rng(self.seed)  # the same initial weights on every rank, and for every method
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = StepTrainer(
            create_ddp_model(model),
            data_loader,
            optimizer,
            amp_dtype=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SemSegCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Load OUTPUT_DIR's last checkpoint with all states if ``resume``, else MODEL.WEIGHTS."""
        super().resume_or_load(resume=resume)
        self.data_loader.start_iter = self.start_iter
        if self.start_iter:
            logging.getLogger(__name__).info(f"Resuming at iteration {self.start_iter}")

    def build_hooks(self) -> list:
        self._progress_hook = TrainingProgressHook(
            self.model, self.scheduler, self.seed, comm.get_rank()
        )
        hooks = [self._progress_hook, *super().build_hooks()]
        if self.cfg.SOLVER.BEST_CHECKPOINT_METRIC:
            best = BestCheckpointHook(self.checkpointer, self.cfg.SOLVER.BEST_CHECKPOINT_METRIC)
            writers = int(comm.is_main_process())  # they come last, and only there
            hooks.insert(len(hooks) - writers, best)
        return hooks

    def state_dict(self) -> dict:
        # Not DefaultTrainer's: 0.5 leaves out the optimiser and the grad-scaler.
        step = self._trainer.state_dict()
        return {**TrainerBase.state_dict(self), "_trainer": step, "seed": self.seed}

    def load_state_dict(self, state: dict) -> None:
        TrainerBase.load_state_dict(self, state)
        self._trainer.load_state_dict(state["_trainer"])
        self.seed = self.data_loader.seed = self._progress_hook.seed = state["seed"]

    @classmethod
    def build_model(cls, cfg) -> torch.nn.Module:
        """The model of the config; batch norm over all ranks where there are several GPUs."""
        model = build_model(cfg)
        if cfg.MODEL.SYNC_BN and comm.get_world_size() > 1 and cfg.MODEL.DEVICE.startswith("cuda"):
            # timm's function, since torch's would lose the activations in timm's norm layers.
            model = convert_sync_batchnorm(model)
        logging.getLogger(__name__).info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return SemSegEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)
