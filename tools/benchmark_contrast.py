#!/usr/bin/env python
"""Time and memory of the contrast losses and memories against the published form of the same.

    python tools/benchmark_contrast.py --preset memory --json memory.json
    python tools/benchmark_contrast.py --preset batch --json batch.json --device cuda
    python tools/benchmark_contrast.py --preset bane --json bane.json
    python tools/benchmark_contrast.py --preset mcibi --json mcibi.json

The forms run in turn, in one process, and the medians are compared: losses forward and backward,
distances, the update of MCIBI's memory, attention forward. The peak memory of each is measured in a
fresh process, above the inputs. The file holds `time_ratio` and `memory_ratio` (published / ours),
and under `published` and `ours` their `seconds` and `extra_bytes`. On Linux and CUDA.

Preset `bane` has no published code; `published` is a loop of calls of scipy, one per image and
class, on the host. A loop of calls of OpenCV is in the file as `cv2`. With `mcibi`, `loss` is the
sum of the entries, and `attention` holds the `extra_bytes` of attention at two sizes.
"""

import argparse
import functools
import json
import logging
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from d2_pixcontrast.contrast import (
    ClassEntries,
    DatasetMemory,
    distance_to_boundary,
    gather_pixels,
    pixel_contrast_loss,
    random_keys,
    sample_hard_anchors,
)

TEMPERATURE, BASE_TEMPERATURE = 0.1, 0.07
MAX_SAMPLES, MAX_VIEWS = 1024, 100
IGNORE = 255
logger = logging.getLogger("benchmark_contrast")


class Memory:
    """1024 anchors against a full memory of 19 classes x 2 x 5000 entries of 256 channels."""

    forms = ("published", "ours")

    def __init__(self, device, tiny=False):
        anchors, classes, size, dim = (16, 3, 4, 8) if tiny else (1024, 19, 5000, 256)
        torch.manual_seed(0)
        self.leaf = F.normalize(torch.randn(anchors, dim, device=device), dim=1).requires_grad_()
        self.labels = torch.randint(classes, (anchors,), device=device)
        self.stores = []
        for _ in range(2):
            rows = torch.empty(classes, size, dim, device=device)
            for of_class in rows:  # no second copy, whose memory the process might keep
                of_class.normal_()
                of_class /= of_class.norm(dim=1, keepdim=True)
            self.stores.append(rows)

    def ours(self):
        fill = torch.full((len(self.stores[0]),), self.stores[0].shape[1], device=self.leaf.device)
        bank = [ClassEntries(rows, fill) for rows in self.stores]
        return pixel_contrast_loss(
            self.leaf,
            self.labels,
            bank=bank,
            temperature=TEMPERATURE,
            base_temperature=BASE_TEMPERATURE,
        ).loss

    def published(self, mask_self=True):
        contrast = torch.cat([rows.flatten(0, 1) for rows in self.stores])
        classes = torch.arange(len(self.stores[0]), device=self.leaf.device)
        classes = classes.repeat_interleave(self.stores[0].shape[1]).repeat(2)
        return dense_loss(self.leaf, self.labels, contrast, classes, mask_self)


class Batch:
    """Sampling, gathering and loss on 2 x 128 x 256 x 256 embeddings of 19 classes."""

    forms = ("published", "ours")

    def __init__(self, device, tiny=False):
        size, dim, cell = (32, 8, 16) if tiny else (256, 128, 32)
        torch.manual_seed(0)
        self.leaf = F.normalize(torch.randn(2, dim, size, size, device=device), dim=1)
        self.leaf.requires_grad_()
        labels = torch.randint(19, (2, size // cell, size // cell), device=device)
        self.labels = labels.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        wrong = torch.rand(self.labels.shape, device=device) < 0.2
        self.predictions = self.labels.where(~wrong, (self.labels + 1) % 19)

    def ours(self):
        images = torch.arange(2, device=self.leaf.device)
        sample = sample_hard_anchors(
            self.labels,
            self.predictions,
            random_keys(0, 0, images, self.labels[0].numel(), 0),
            random_keys(0, 0, images, 19, 1),
            ignore_value=IGNORE,
            max_samples=MAX_SAMPLES,
            max_views=MAX_VIEWS,
        )
        return pixel_contrast_loss(
            gather_pixels(self.leaf, sample.index),
            sample.labels,
            mask=sample.mask,
            temperature=TEMPERATURE,
            base_temperature=BASE_TEMPERATURE,
        ).loss

    def published(self):
        anchors, labels = loop_sampling(self.leaf, self.labels, self.predictions)
        views = anchors.shape[1]
        rows, labels = anchors.flatten(0, 1), labels.repeat_interleave(views)
        return dense_loss(rows, labels, rows, labels)


class Bane:
    """Distances inside the error maps of 2 images and 19 classes, on a grid of 128 x 256.

    A fifth of the pixels is wrong, in round spots. Each form returns the sum of all distances.
    """

    forms = ("published", "cv2", "ours")

    def __init__(self, device, tiny=False):
        height, width = (24, 40) if tiny else (128, 256)
        torch.manual_seed(0)
        labels = torch.randint(19, (2, height // 8, width // 8))
        labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
        noise = F.avg_pool2d(torch.rand(2, height, width), 9, stride=1, padding=4)
        errors = labels.where(noise > noise.quantile(0.8), -1)
        self.leaf = errors.to(device)
        classes = torch.arange(19)[:, None, None]
        self.masks = (errors[:, None] == classes).flatten(0, 1).numpy().astype(np.uint8)

    def ours(self):
        return distance_to_boundary(self.leaf).sum()

    def published(self):
        from scipy.ndimage import distance_transform_edt

        return torch.tensor(sum(distance_transform_edt(mask).sum() for mask in self.masks))

    def cv2(self):
        transform = (cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return torch.tensor(
            sum(float(cv2.distanceTransform(mask, *transform).sum()) for mask in self.masks)
        )


class Update:
    """Update of a memory of 150 classes by 2 x 512 x 64 x 64 features and 512 x 512 labels."""

    forms = ("published", "ours")
    MOMENTUM = 0.9

    def __init__(self, device, tiny=False):
        classes, dim, size, labels = (5, 8, 4, 32) if tiny else (150, 512, 64, 512)
        torch.manual_seed(0)
        self.leaf = torch.rand(2, dim, size, size, device=device)
        cells = torch.randint(classes, (2, labels // 32 + 1, labels // 32 + 1), device=device)
        cells[0, 0, 0] = IGNORE
        self.labels = cells.repeat_interleave(32, 1).repeat_interleave(32, 2)
        self.labels = self.labels[:, 16:-16, 16:-16].contiguous()
        self.before = torch.rand(classes, dim, device=device)
        self.before[0] = 0  # empty
        self.memory = DatasetMemory(*self.before.shape).to(device)

    def ours(self):
        self.memory.entries.copy_(self.before[:, None])
        self.memory.update(self.leaf, self.labels, momentum=self.MOMENTUM, ignore_value=IGNORE)
        return self.memory.entries.sum()

    def published(self):
        return loop_update(self.before, self.leaf, self.labels, self.MOMENTUM).sum()


class Attention:
    """Attention of every position of a 256-channel map to every other one, without gradient."""

    forms = ("published", "ours")

    def __init__(self, height, width, device, tiny=False):
        height, width = (4, 6) if tiny else (height, width)
        torch.manual_seed(0)
        self.leaf = torch.rand(3, 1, 1, height * width, 256, device=device)

    def ours(self):
        return F.scaled_dot_product_attention(*self.leaf).sum()

    def published(self):
        query, key, value = self.leaf
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return (scores.softmax(dim=-1) @ value).sum()


def dense_loss(anchors, labels, contrast, contrast_labels, mask_self=True):
    """Equation (3) of Wang et al., ICCV 2021, with every (N, K) matrix written out.

    The steps are those of the published code: float masks, the row maximum subtracted, exp taken
    twice, a logarithm for every pair, and entry i masked for anchor i, with a memory too (where
    that is a fault, which costs a class one of its many positives).
    """
    positive = (labels[:, None] == contrast_labels[None, :]).float()
    negative = 1 - positive
    if mask_self:
        itself = torch.arange(len(anchors), device=anchors.device)[:, None]
        others = torch.ones_like(positive).scatter_(1, itself, 0)
        positive = positive * others
    similarity = anchors @ contrast.t() / TEMPERATURE
    logits = similarity - similarity.max(dim=1, keepdim=True).values.detach()
    negatives = (torch.exp(logits) * negative).sum(dim=1, keepdim=True)
    log_probability = logits - torch.log(torch.exp(logits) + negatives)
    per_anchor = (positive * log_probability).sum(dim=1) / positive.sum(dim=1)
    return -(TEMPERATURE / BASE_TEMPERATURE) * per_anchor.mean()


def loop_sampling(embeddings, labels, predictions):
    """Hard anchors by loops over images and classes, as published: (A, V, D) and labels (A,)."""
    rows = embeddings.permute(0, 2, 3, 1).flatten(1, 2).contiguous()
    labels, predictions = labels.flatten(1), predictions.flatten(1)
    groups = [
        (b, c)
        for b in range(len(labels))
        for c in labels[b].unique().tolist()
        if c != IGNORE and (labels[b] == c).sum() > MAX_VIEWS
    ]
    views = min(MAX_SAMPLES // len(groups), MAX_VIEWS)
    anchors = []
    for b, c in groups:
        hard = ((labels[b] == c) & (predictions[b] != c)).nonzero().flatten()
        easy = ((labels[b] == c) & (predictions[b] == c)).nonzero().flatten()
        if len(hard) >= views / 2 and len(easy) >= views / 2:
            keep = views // 2
        elif len(hard) >= views / 2:
            keep = views - len(easy)
        else:
            keep = len(hard)
        hard = hard[torch.randperm(len(hard))[:keep]]
        easy = easy[torch.randperm(len(easy))[: views - keep]]
        anchors.append(rows[b, torch.cat([hard, easy])])
    return torch.stack(anchors), torch.tensor([c for _, c in groups], device=labels.device)


def loop_update(memory, features, labels, momentum):
    """(C, D) entries after an update in the published steps.

    Features are upsampled to the labels and made channels-last, then there is a loop over the
    classes that occur.
    """
    memory = memory.clone()
    upsampled = F.interpolate(features, labels.shape[1:], mode="bilinear", align_corners=False)
    rows = upsampled.permute(0, 2, 3, 1).contiguous().flatten(0, 2)
    flat = labels.flatten()
    for c in flat.unique().tolist():
        if c == IGNORE:
            continue
        of_class = rows[flat == c]
        if not memory[c].any():
            memory[c] = of_class.mean(dim=0)
            continue
        distance = 1 - F.cosine_similarity(of_class, memory[c].expand_as(of_class))
        new = (of_class * (distance / distance.sum())[:, None]).sum(dim=0)
        memory[c] = (1 - momentum) * memory[c] + momentum * new
    return memory


PRESETS = {
    "bane": Bane,
    "batch": Batch,
    "memory": Memory,
    "mcibi": Update,
    "attention-64x128": functools.partial(Attention, 64, 128),
    "attention-128x256": functools.partial(Attention, 128, 256),
}


class Step(NamedTuple):
    """One forward, and backward if there is a gradient."""

    seconds: float
    loss: float


def step(problem, form: str) -> Step:
    """Run one form; the gradient is dropped again."""
    cuda = problem.leaf.is_cuda
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    loss = getattr(problem, form)()
    if loss.requires_grad:
        loss.backward()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    problem.leaf.grad = None
    return Step(seconds, loss.item())


def extra_bytes(problem, form: str) -> int:
    """Peak memory of one step above what there was before it."""
    if problem.leaf.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(problem, form)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    step(problem, form)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def extra_bytes_of_fresh_process(preset: str, form: str, device: str) -> int:
    """:func:`extra_bytes` in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--preset",
        preset,
        "--device",
        device,
        "--memory-of",
        form,
    ]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(run.stdout.split()[-1])


def compare(preset: str, device: str, rounds: int) -> dict:
    """The result described at the top of this file."""
    problem = PRESETS[preset](device)
    steps = {form: [] for form in problem.forms}
    for number in range(rounds + 1):
        for form in steps:
            taken = step(problem, form)
            logger.info("round %d, %s: %.3f s, loss %.6f", number, form, *taken)
            if number:  # the first one warms up
                steps[form].append(taken)
    del problem
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # for the processes that measure memory
    result = {
        form: {
            "seconds": statistics.median(s.seconds for s in steps[form]),
            "extra_bytes": extra_bytes_of_fresh_process(preset, form, device),
            "loss": steps[form][-1].loss,
        }
        for form in steps
    }
    if preset == "mcibi":
        result["attention"] = {
            name: {f: extra_bytes_of_fresh_process(name, f, device) for f in Attention.forms}
            for name in PRESETS
            if name.startswith("attention")
        }
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor()
    return {
        "preset": preset,
        "time_ratio": result["published"]["seconds"] / result["ours"]["seconds"],
        "memory_ratio": result["published"]["extra_bytes"] / result["ours"]["extra_bytes"],
        **result,
        "rounds": rounds,
        "device": f"{device} {name}".strip(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True)
    parser.add_argument("--json", metavar="FILE", help="where to write the result")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if args.rounds < 1:
        parser.error("--rounds has to be at least 1")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if args.device.startswith("cuda:"):
        torch.cuda.set_device(args.device)  # which is waited for, and whose memory is read
    if args.memory_of:
        step(PRESETS[args.preset](args.device, tiny=True), args.memory_of)  # loads the libraries
        peak = extra_bytes(PRESETS[args.preset](args.device), args.memory_of)
        sys.stdout.write(f"{peak}\n")
        return
    result = compare(args.preset, args.device, args.rounds)
    text = json.dumps(result, indent=2)
    if args.json:
        Path(args.json).write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
