#!/usr/bin/env python
"""Time of this project's evaluator and of detectron2's on the same predictions, in one run.

The two alternate, image by image, so that whatever else the machine does hits both alike; the
ratio is that of the medians. Both read the label from its file. The data are made up: regions of
about 50 pixels, predicted with errors along their boundaries. Example::

    python tools/benchmark_evaluator.py --iterations 10 --json out.json
"""

import argparse
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator as Detectron2Evaluator
from PIL import Image
from torch.nn import functional as F

from d2_pixcontrast.compat import DETECTRON2_VERSION
from d2_pixcontrast.evaluation import SemSegEvaluator

DATASET = "benchmark_evaluator"


def make_data(folder: Path, args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """A label file and (C, H, W) logits on the device, as the evaluators get them."""
    height, width = args.size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, args.classes, height // 50, width // 50, generator=generator)
    field = F.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    label = field.argmax(dim=0).to(torch.uint8)
    label[: height // 20] = 255
    image, path = str(folder / "image.png"), str(folder / "label.png")
    Image.fromarray(label.numpy()).save(path)
    noise = F.interpolate(torch.randn(coarse.shape, generator=generator), size=(height, width))[0]
    logits = (field + 0.2 * noise).to(args.device)
    inputs = [{"file_name": image, "sem_seg_file_name": path, "height": height, "width": width}]
    return inputs, [{"sem_seg": logits}]


def contestants(boundary_width: float) -> dict:
    return {
        "detectron2": Detectron2Evaluator(DATASET, distributed=False),
        "ours": SemSegEvaluator(DATASET, distributed=False),
        "ours, boundary IoU": SemSegEvaluator(
            DATASET, distributed=False, boundary_width=boundary_width
        ),
    }


def measure(evaluators: dict, inputs: list, outputs: list, args) -> dict[str, float]:
    """Median seconds per image, and a check that the scores are the same.

    Without mIoU: detectron2's versions disagree on a class that only the predictions have.
    """
    seconds = {name: [] for name in evaluators}
    for evaluator in evaluators.values():
        evaluator.reset()
    for _ in range(args.warm_up + args.iterations):
        for name, evaluator in evaluators.items():
            _synchronize(args.device)
            start = time.perf_counter()
            evaluator.process(inputs, outputs)
            _synchronize(args.device)
            seconds[name].append(time.perf_counter() - start)
    found = {name: evaluator.evaluate()["sem_seg"] for name, evaluator in evaluators.items()}
    for scores in found.values():
        for key in ("fwIoU", "mACC", "pACC"):
            np.testing.assert_allclose(scores[key], found["detectron2"][key], rtol=1e-9)
    return {name: statistics.median(values[args.warm_up :]) for name, values in seconds.items()}


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), help="height, width")
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--boundary-width", type=float, default=0.02)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result there, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)

    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = make_data(Path(folder), args)
        DatasetCatalog.register(DATASET, lambda: inputs)
        names = [str(index) for index in range(args.classes)]
        MetadataCatalog.get(DATASET).set(stuff_classes=names, ignore_label=255)
        seconds = measure(contestants(args.boundary_width), inputs, outputs, args)
    result = {
        "height, width": list(args.size),
        "classes": args.classes,
        "device": args.device,
        "threads": args.threads,
        "iterations": args.iterations,
        "versions": {
            "torch": torch.__version__,
            "detectron2": DETECTRON2_VERSION,
            "python": platform.python_version(),
        },
        "seconds per image": seconds,
        "detectron2 / ours": {
            name: seconds["detectron2"] / value for name, value in seconds.items()
        },
    }
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
