#!/usr/bin/env python
"""Time and memory per training iteration of several configs, and the time relative to the first.

The steps of the models alternate, on the same batches, so that whatever else the machine does hits
all of them alike; the ratio is that of the medians. A step is the training's own, mixed precision
included, without data loading and the scalars that terms record every SCALARS_PERIOD. Terms are
timed after their warm-up. Peak memory is that of two steps in a fresh process: allocated on a GPU,
else resident (Linux). Example::

    python tools/benchmark_training.py A_ce.yaml A_pixcontrast.yaml --iterations 20 --json out.json
"""

import argparse
import json
import logging
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape

from d2_pixcontrast import inference_config
from d2_pixcontrast.engine import Trainer, load_cfg
from d2_pixcontrast.engine.step import StepTrainer
from d2_pixcontrast.modeling import TrainingProgress
from d2_pixcontrast.solver import build_optimizer


class Feed:
    """A data loader that gives the batch that it has been given."""

    batch: list[dict]

    def __iter__(self):
        while True:
            yield self.batch


class Contestant:
    """One config's model, and the steps that its training takes."""

    def __init__(self, path: str, opts: list[str]):
        self.cfg = load_cfg(path, opts)
        torch.backends.cudnn.benchmark = self.cfg.CUDNN_BENCHMARK
        if self.cfg.MODEL.DEVICE.startswith("cuda:"):
            torch.cuda.set_device(self.cfg.MODEL.DEVICE)  # which is waited for, and its memory read
        self.model = Trainer.build_model(self.cfg).train()
        self.seconds: list[float] = []
        self._feed = Feed()
        solver = self.cfg.SOLVER
        self._trainer = StepTrainer(
            self.model,
            self._feed,
            build_optimizer(self.cfg, self.model),
            amp_dtype=solver.AMP.DTYPE if solver.AMP.ENABLED else None,
            max_skipped_steps=solver.MAX_SKIPPED_STEPS,
            spike_factor=solver.LOSS_SPIKE_FACTOR,
        )
        # From 2**16 on the first steps of float16 would overflow, and leave the optimiser out.
        self._trainer.grad_scaler = torch.amp.GradScaler(
            self.model.device.type, init_scale=1.0, enabled=self._trainer.grad_scaler.is_enabled()
        )
        self._trainer.iter = 1
        self._storage = EventStorage()
        for module in self.model.modules():
            if hasattr(module, "set_progress"):
                module.set_progress(TrainingProgress(iteration=1, max_iter=1))

    def step(self, batch) -> None:
        self._feed.batch = batch
        _synchronize()
        start = time.perf_counter()
        with self._storage:
            self._trainer.run_step()
        _synchronize()
        self.seconds.append(time.perf_counter() - start)

    def plain_cost(self, batch) -> dict:
        """Parameters and FLOPs (fvcore) of the model for inference, on one training image."""
        model = Trainer.build_model(inference_config(self.cfg)).eval()
        image = (batch[0]["image"].to(model.device)[None] - model.pixel_mean) / model.pixel_std
        body = torch.nn.Sequential(model.backbone, _Logits(model.sem_seg_head))
        flops = FlopCountAnalysis(body.eval(), image)
        flops.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        parameters = sum(p.numel() for p in model.parameters())
        return {"parameters": parameters, "gflops": flops.total() / 1e9}


def _attention_flops(inputs, outputs) -> int:
    """Of the two products, which fvcore does not know: one for a multiplication and addition."""
    query, key, value = (get_shape(x) for x in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (key[-1] + value[-1])


class _Logits(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features):
        return self.head(features)[0]


def peak_memory(path: str, opts: list[str]) -> int:
    """Bytes at the peak of two training steps, in a fresh process."""
    command = [sys.executable, __file__, path, "--peak-memory", "--opts", *opts]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise ValueError(f"the step of {path} cannot be measured, see above")
    return int(run.stdout)


def own_peak_memory(path: str, opts: list[str]) -> int:
    """:func:`peak_memory` of this process."""
    contestant = Contestant(path, opts)
    batches = iter(Trainer.build_train_loader(contestant.cfg))
    for _ in range(2):
        contestant.step(next(batches))
    if contestant.model.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not getrusage, whose maximum a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Run; bad input ends in one line."""
    args = _parser().parse_args()
    logging.disable(logging.INFO)
    try:
        _run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"benchmark_training.py: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", help="the first one is the reference")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--peak-memory", action="store_true", help="print that of one config alone")
    parser.add_argument("--json", type=Path, help="write the result there, too")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs for all configs")
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.peak_memory:
        sys.stdout.write(f"{own_peak_memory(args.configs[0], args.opts)}\n")
        return

    peaks = [peak_memory(path, args.opts) for path in args.configs]  # while a GPU is empty
    contestants = [Contestant(path, args.opts) for path in args.configs]
    batches = iter(Trainer.build_train_loader(contestants[0].cfg))
    for _ in range(args.warm_up + args.iterations):
        batch = next(batches)
        for contestant in contestants:
            contestant.step(batch)

    medians = [statistics.median(c.seconds[args.warm_up :]) for c in contestants]
    result = {
        path: {
            "seconds": median,
            "time_ratio": median / medians[0],
            "peak_memory": peak,
            "training_parameters": sum(p.numel() for p in contestant.model.parameters()),
            "inference": contestant.plain_cost(batch),
        }
        for path, median, peak, contestant in zip(
            args.configs, medians, peaks, contestants, strict=True
        )
    }
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
