"""One run of the demo."""

import contextlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import HookBase

from ..compat import CfgNode
from ..engine import Trainer
from ..visualization import RunResult, Sample, project, sample_embeddings

NUM_SAMPLES = 6
LOGGERS = ("detectron2", "fvcore", "d2_pixcontrast", "py.warnings")


@dataclass
class Finished:
    """A trained model's results.

    Attributes:
        result: for the report.
        samples: the images that ``result.predictions`` belong to.
        cfg: config of the run.
        seconds: that the training took, evaluations included.
        parameters: of the network without its training-only part.
    """

    result: RunResult
    samples: list[Sample]
    cfg: CfgNode
    seconds: float
    parameters: int


@contextlib.contextmanager
def log_to(path: Path):
    """Within the block the libraries' messages and warnings go into this file alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        handler.close()


def train(cfg: CfgNode, name: str, hook: HookBase) -> Finished:
    """Train and evaluate one model, and look at its predictions and features.

    Args:
        cfg: config of the run; its OUTPUT_DIR exists.
        name: of the model in the report.
        hook: one more hook for the training.
    """
    folder = Path(cfg.OUTPUT_DIR)
    # Of a demo before this one, which the trainer would otherwise move aside.
    for pattern in ("config.yaml", "metrics.json", "model_*.pth", "last_checkpoint"):
        for path in folder.glob(pattern):
            path.unlink()
    trainer = Trainer(cfg)
    trainer.register_hooks([hook])
    trainer.resume_or_load(resume=False)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start

    model = trainer.model
    scores = Trainer.test(cfg, model)["sem_seg"]
    batches = list(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]))
    shown = [batches[i] for i in np.linspace(0, len(batches) - 1, NUM_SAMPLES).round().astype(int)]
    pixels = sample_embeddings(
        model, batches, num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, seed=cfg.SEED
    )
    result = RunResult(
        name,
        scores,
        history=[json.loads(line) for line in (folder / "metrics.json").open()],
        predictions=[_predict(model, batch) for batch in shown],
        embedding=project(pixels.embeddings, pixels.classes, seed=cfg.SEED),
    )
    parameters = sum(p.numel() for n, p in model.named_parameters() if ".terms." not in n)
    samples = [_sample(batch[0], cfg) for batch in shown]
    return Finished(result, samples, cfg, seconds, parameters)


@torch.no_grad()
def _predict(model: torch.nn.Module, batch: list[dict]) -> np.ndarray:
    model.eval()
    return model(batch)[0]["sem_seg"].argmax(dim=0).cpu().numpy()


def _sample(sample: dict, cfg: CfgNode) -> Sample:
    image = sample["image"].numpy().transpose(1, 2, 0)
    image = image[..., ::-1] if cfg.INPUT.FORMAT == "BGR" else image
    name = Path(sample["file_name"]).name
    return Sample(np.ascontiguousarray(image), sample["label"].numpy(), name)
