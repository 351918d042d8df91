#!/usr/bin/env python
"""Training images per second and core: this package's mapper against detectron2's, in one run.

Both read, scale by 0.5 to 2, crop 512x1024, flip and jitter the colours of every Cityscapes image
that is there, on one thread, and hand out the tensors that a model takes. Detectron2's mapper gets
its own augmentations of this kind: ResizeScale, RandomCrop, RandomFlip and PointRend's
ColorAugSSDTransform; ours jitters by the same amounts. The mappers alternate image by image, so
that whatever else the machine does hits both alike. Times are processor time, which waiting for
other programs is no part of; ``time_ratio`` is that of the means.

Example::

    DETECTRON2_DATASETS=/path/to/datasets python tools/benchmark_data.py --json out.json
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import cv2
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

from d2_pixcontrast import add_pixcontrast_config
from d2_pixcontrast.compat import DETECTRON2_VERSION
from d2_pixcontrast.data import SemSegMapper
from d2_pixcontrast.data.seeding import seeded

CROP = (512, 1024)
SCALES = (0.5, 2.0)
CITYSCAPES_IDS = 34  # of the labelIds files; which ids are trained on takes no time


def our_mapper() -> SemSegMapper:
    """This package's, configured as its Cityscapes recipes are, with colour jitter."""
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = True, CROP
    cfg.INPUT.SCALE_RANGE = SCALES
    # As ColorAugSSDTransform; its 18 units of OpenCV's hue are 36 degrees.
    jitter = cfg.INPUT.COLOR_JITTER
    jitter.BRIGHTNESS, jitter.CONTRAST, jitter.SATURATION = 32.0, (0.5, 1.5), (0.5, 1.5)
    jitter.HUE, jitter.PROB = 36.0, 0.5
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CITYSCAPES_IDS
    return SemSegMapper(cfg, is_train=True)


def detectron2_mapper(height: int, width: int) -> DatasetMapper:
    """Detectron2's for images of this size."""
    augmentations = [
        T.ResizeScale(*SCALES, height, width),
        T.RandomCrop("absolute", CROP),
        T.RandomFlip(horizontal=True),
        ColorAugSSDTransform(img_format="RGB"),
    ]
    return DatasetMapper(is_train=True, augmentations=augmentations, image_format="RGB")


def find_samples(root: Path) -> list[dict]:
    """Dataset dicts of all Cityscapes images below ``root`` that have a labelIds file."""
    samples = []
    for image in sorted((root / "cityscapes" / "leftImg8bit").glob("*/*/*_leftImg8bit.png")):
        name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        label = root / "cityscapes" / "gtFine" / image.parent.relative_to(image.parents[2]) / name
        if label.is_file():
            samples.append({"file_name": str(image), "sem_seg_file_name": str(label)})
    return samples


def compare(samples: list[dict], rounds: int) -> dict:
    """The result described at the top of this file."""
    width, height = Image.open(samples[0]["file_name"]).size
    mappers = {"detectron2": detectron2_mapper(height, width), "ours": our_mapper()}
    seconds = {name: [] for name in mappers}
    for number in range(rounds + 1):
        for index, sample in enumerate(samples):
            for name, mapper in mappers.items():
                with seeded(number, index):
                    start = time.process_time()
                    out = mapper(sample)
                    taken = time.process_time() - start
                if out["image"].shape[1:] != CROP or out["sem_seg"].shape != CROP:
                    raise RuntimeError(f"{name} made {tuple(out['image'].shape)} of {sample}")
                if number:  # the first round warms up
                    seconds[name].append(taken)
    means = {name: statistics.fmean(values) for name, values in seconds.items()}
    return {
        "time_ratio": means["detectron2"] / means["ours"],
        **{
            name: {"images_per_second_and_core": 1 / mean, "milliseconds": 1000 * mean}
            for name, mean in means.items()
        },
        "images": f"{len(samples)} of {width}x{height}",
        "crop": f"{CROP[1]}x{CROP[0]}",
        "rounds": rounds,
        "processor": platform.processor() or platform.machine(),
        "opencv": cv2.__version__,
        "detectron2_version": DETECTRON2_VERSION,
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="where to write the result, too")
    parser.add_argument("--rounds", type=int, default=20, help="over all images (default 20)")
    args = parser.parse_args(argv)
    root = Path(os.getenv("DETECTRON2_DATASETS", "datasets"))
    samples = find_samples(root)
    if not samples:
        parser.error(f"{root} has no Cityscapes images; DETECTRON2_DATASETS names the folder")
    if args.rounds < 1:
        parser.error("--rounds has to be at least 1")
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    text = json.dumps(compare(samples, args.rounds), indent=2)
    if args.json:
        Path(args.json).write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
