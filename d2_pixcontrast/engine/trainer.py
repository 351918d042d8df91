"""The training loop."""

import logging
import os
import weakref
from collections import OrderedDict
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, TensorboardXWriter
from timm.layers import convert_sync_batchnorm

from ..compat import create_ddp_model
from ..data import build_test_loader, build_train_loader
from ..evaluation import SemSegEvaluator
from ..modeling import build_model
from ..modeling.inference import with_sliding_window, with_test_time_augmentation
from ..solver import build_lr_scheduler, build_optimizer
from .checkpoint import SemSegCheckpointer
from .checkpoint_hooks import BestCheckpointHook, CheckpointHook, PreemptionHook
from .hooks import TrainingProgressHook
from .records import WINDOW, MetricsWriter, RecordsHook
from .run_folder import changes, record_config, set_aside
from .step import NORM_STATISTICS, StepTrainer


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer for semantic segmentation, on GPUs and CPUs, on both versions.

    Hooks, writers and evaluation are detectron2's. Optimiser, grad-scaler and seed are part of the
    checkpoint, and the data stream goes on where it was. ``model``, ``optimizer`` and
    ``data_loader`` are those of the step trainer, as in DefaultTrainer.
    """

    def __init__(self, cfg):
        # Not DefaultTrainer's constructor: its DDP set-up fails on CPU modules.
        TrainerBase.__init__(self)
        self._configured = cfg
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
            max_skipped_steps=cfg.SOLVER.MAX_SKIPPED_STEPS,
            spike_factor=cfg.SOLVER.LOSS_SPIKE_FACTOR,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SemSegCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            checkpoints_to_keep=cfg.SOLVER.CHECKPOINTS_TO_KEEP,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.completed_iter = -1  # the last one whose update is in the weights
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Load OUTPUT_DIR's last checkpoint with all states if ``resume``, else MODEL.WEIGHTS.

        From then on OUTPUT_DIR is this training's: its config is written there, and the files of
        another training, if it is not resumed, are moved into ``previous.<n>``.
        """
        super().resume_or_load(resume=resume)
        self.data_loader.start_iter = self.start_iter
        logger = logging.getLogger(__name__)
        if self.start_iter:
            logger.info(f"Resuming at iteration {self.start_iter}")
        elif resume:
            logger.warning(
                f"--resume: {self.cfg.OUTPUT_DIR} holds no checkpoint; the training starts from "
                "MODEL.WEIGHTS"
            )
        comm.synchronize()  # MODEL.WEIGHTS may be among the files that are moved
        if comm.is_main_process() and os.path.isdir(self.cfg.OUTPUT_DIR):
            self._take_over(Path(self.cfg.OUTPUT_DIR))

    def _take_over(self, folder: Path) -> None:
        logger = logging.getLogger(__name__)
        cfg = self._configured.clone()
        if cfg.SEED >= 0:
            cfg.defrost()
            cfg.SEED = self.seed  # a resumed run's own
        if self.start_iter:
            told = {*self._schedule(), "SOLVER.AMP.ENABLED", "SOLVER.AMP.DTYPE"}
            for key, before, now in changes(folder, cfg):
                if key not in told:
                    logger.warning(f"Resuming with {key} {now}, before {before}")
        elif self.checkpointer.has_checkpoint():
            aside = set_aside(folder)
            logger.warning(
                f"{folder} held another training, whose files are in {aside} now; --resume would "
                "have gone on from it"
            )
        record_config(folder, cfg)

    def run_step(self) -> None:
        super().run_step()
        self.completed_iter = self.iter

    def after_train(self) -> None:
        # Resumed after its last step (or beyond a MAX_ITER that is smaller now), only the final
        # evaluation is left; detectron2 counts one up.
        self.iter = min(self.iter, max(self.max_iter, self.start_iter))
        super().after_train()

    def build_hooks(self) -> list:
        """Detectron2's hooks, with checkpoints after all that a checkpoint vouches for."""
        cfg, main = self.cfg, comm.is_main_process()
        self._progress_hook = TrainingProgressHook(
            self.model, self.scheduler, self.seed, comm.get_rank()
        )
        kept = [
            hook
            for hook in super().build_hooks()
            if not isinstance(hook, (hooks.PeriodicCheckpointer, hooks.PeriodicWriter))
        ]
        if cfg.TEST.AUG.ENABLED:
            kept.append(hooks.EvalHook(0, self._test_with_TTA_in_the_end))
        if cfg.SOLVER.BEST_CHECKPOINT_METRIC:
            metric = cfg.SOLVER.BEST_CHECKPOINT_METRIC
            kept.append(BestCheckpointHook(self.checkpointer, metric, cfg.DATASETS.TEST))
        writers = self.build_writers() if main else []
        metrics = next((w for w in writers if isinstance(w, MetricsWriter)), None)
        period = cfg.SOLVER.CHECKPOINT_PERIOD
        checkpoints = CheckpointHook(self.checkpointer, period) if main else None
        return [
            self._progress_hook,
            *kept,
            RecordsHook(metrics),
            hooks.PeriodicWriter(writers, period=WINDOW) if main else None,
            checkpoints,
            PreemptionHook(checkpoints),
        ]

    def build_writers(self) -> list:
        """Detectron2's writers, but for the one of metrics.json."""
        folder = self.cfg.OUTPUT_DIR
        return [
            CommonMetricPrinter(self.max_iter),
            MetricsWriter(os.path.join(folder, "metrics.json"), self.max_iter),
            TensorboardXWriter(folder),
        ]

    def _test_with_TTA_in_the_end(self) -> dict:
        results = self.test_with_TTA(self.cfg, self.model)
        merge_results(self._last_eval_results, results)  # for TEST.EXPECTED_RESULTS
        return results

    def state_dict(self) -> dict:
        # Not DefaultTrainer's: 0.5 leaves out the optimiser and the grad-scaler.
        step = self._trainer.state_dict()
        return {
            **TrainerBase.state_dict(self),
            "_trainer": step,
            "seed": self.seed,
            "schedule": self._schedule(),
        }

    def load_state_dict(self, state: dict) -> None:
        solver, saved = self.cfg.SOLVER, state.get("schedule", {})
        optimizer = saved.get("SOLVER.OPTIMIZER", solver.OPTIMIZER)
        if optimizer != solver.OPTIMIZER:
            raise ValueError(
                f"SOLVER.OPTIMIZER is {solver.OPTIMIZER}, but it was written with {optimizer}, "
                "whose state fits no other; resume with that, or start from its weights: append "
                "MODEL.WEIGHTS with this file and another OUTPUT_DIR, without --resume"
            )
        configured = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        TrainerBase.load_state_dict(self, state)
        self._trainer.load_state_dict(state["_trainer"])
        self._set_groups(configured)
        if 0 <= self.cfg.SEED != state["seed"]:
            logging.getLogger(__name__).warning(
                f"Resuming with SEED {state['seed']}, the run's own; {self.cfg.SEED} is not used"
            )
        self.seed = self.data_loader.seed = self._progress_hook.seed = state["seed"]
        for key, now in self._schedule().items():
            before = saved.get(key, now)
            if before != now:
                logging.getLogger(__name__).warning(f"Resuming with {key} {now}, before {before}")

    def _set_groups(self, configured: list[dict]) -> None:
        """Let learning rates, weight decays and momentum be the config's, which a resumed run may
        change; the loaded states of optimiser and schedule hold those of the run before."""
        groups = self.optimizer.param_groups
        for group, own in zip(groups, configured, strict=True):
            group.update({key: value for key, value in own.items() if key != "lr"})
        self.scheduler.base_lrs = [group["initial_lr"] for group in groups]
        if self.scheduler.last_epoch <= self.max_iter:  # else no step is left to take
            for group, lr in zip(groups, self.scheduler.get_lr(), strict=True):
                group["lr"] = lr

    def _schedule(self) -> dict:
        """What a resumed run is told of if it changes; all but the optimiser may."""
        solver = self.cfg.SOLVER
        return {
            "SOLVER.OPTIMIZER": solver.OPTIMIZER,
            "SOLVER.MAX_ITER": solver.MAX_ITER,
            "SOLVER.IMS_PER_BATCH": solver.IMS_PER_BATCH,
            "SOLVER.BASE_LR": solver.BASE_LR,
            "SOLVER.WEIGHT_DECAY": solver.WEIGHT_DECAY,
            "SOLVER.MOMENTUM": solver.MOMENTUM,
            "SOLVER.AMP": solver.AMP.DTYPE if solver.AMP.ENABLED else "off",
            "number of processes": comm.get_world_size(),
        }

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
    def build_evaluator(cls, cfg, dataset_name, folder: str = ""):
        """The evaluator of one data set, which writes into ``folder`` of OUTPUT_DIR."""
        several = len(cfg.DATASETS.TEST) > 1
        return SemSegEvaluator(
            dataset_name,
            output_dir=os.path.join(cfg.OUTPUT_DIR, folder, dataset_name if several else ""),
            boundary_width=cfg.TEST.BOUNDARY_IOU.WIDTH if cfg.TEST.BOUNDARY_IOU.ENABLED else None,
        )

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Detectron2's evaluation on DATASETS.TEST at a single scale, with TEST.SLIDING."""
        take_norm_statistics_of_first_rank(model)
        return super().test(cfg, with_sliding_window(cfg, model), evaluators)

    @classmethod
    def test_with_TTA(cls, cfg, model) -> OrderedDict:
        """Evaluation at several scales, with TEST.AUG and TEST.SLIDING.

        It takes some ten times as long as :meth:`test`. As in detectron2's projects, it is done
        after the last iteration and by ``--eval-only`` when TEST.AUG.ENABLED, beside the evaluation
        at a single scale; what is written goes into OUTPUT_DIR/inference_TTA.

        Returns:
            results like :meth:`test`'s, under "sem_seg_TTA".
        """
        take_norm_statistics_of_first_rank(model)
        model = with_sliding_window(cfg, model)
        results = OrderedDict()
        for name in cfg.DATASETS.TEST:
            found = inference_on_dataset(
                with_test_time_augmentation(cfg, model, name),
                cls.build_test_loader(cfg, name),
                cls.build_evaluator(cfg, name, "inference_TTA"),
            )
            results[name] = OrderedDict((f"{k}_TTA", v) for k, v in found.items())
            if comm.is_main_process():
                print_csv_format(results[name])
        return results[name] if len(results) == 1 else results


def take_norm_statistics_of_first_rank(model: torch.nn.Module) -> None:
    """Make the networks of all ranks the one that is saved; each evaluates a part of the images.

    Without SyncBN (always so on CPUs) batch norm's running statistics are those of a rank's own
    images. Training does not read them.
    """
    if comm.get_world_size() == 1:
        return
    for name, buffer in model.named_buffers():
        if name.endswith(NORM_STATISTICS):
            dist.broadcast(buffer, 0)


def merge_results(results: dict, more: dict) -> None:
    """Add tasks to the results of a test; with several data sets they are one level further down.

    Args:
        results: of :meth:`Trainer.test`; changed in place.
        more: of :meth:`Trainer.test_with_TTA`.
    """
    for key, value in more.items():
        results[key] = {**results.get(key, {}), **value}
