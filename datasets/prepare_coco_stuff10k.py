#!/usr/bin/env python
"""Divide COCO-Stuff 10k by its lists, and number its 171 classes without gaps.

coco/coco_stuff_10k/                                cocostuff-10k-v1.1.zip
    images/*.jpg
    annotations/*.mat                               variable S: 1..182, 0 = unlabelled
    imageLists/{train,test}.txt
    images_detectron2/{train,test}/*.jpg            made: links to the images
    annotations_detectron2/{train,test}/*.png       made: 0..170, 255 = unlabelled
    annotations_182_detectron2/{train,test}/*.png   made: 0..181, 255 = unlabelled
"""

from pathlib import Path

import numpy as np

from d2_pixcontrast.data.datasets.classes import COCO_STUFF_NAMES, COCO_STUFF_TRAIN_IDS
from d2_pixcontrast.data.prepare import (
    Plan,
    Task,
    files_below,
    load_mat,
    read_list,
    renumber,
    require,
    run,
)

# The listed ids that no image is said to have are unlabelled, too.
IDS = dict.fromkeys(range(len(COCO_STUFF_NAMES) + 1), 255)
IDS |= {number + 1: index for number, index in COCO_STUFF_TRAIN_IDS.items()}
# As listed, with gaps.
IDS_182 = {0: 255, **{number + 1: number for number in range(len(COCO_STUFF_NAMES))}}
FOLDERS = {"annotations_detectron2": IDS, "annotations_182_detectron2": IDS_182}


def plan(root: Path) -> Plan:
    what = "from cocostuff-10k-v1.1.zip, https://github.com/nightrome/cocostuff10k"
    folder = root / "coco" / "coco_stuff_10k"
    annotations = set(files_below(folder / "annotations", ".mat", what))
    todo = Plan()
    for split in ("train", "test"):
        for name in read_list(folder / "imageLists" / f"{split}.txt", what):
            image = require(folder / "images" / f"{name}.jpg", what)
            source = require(folder / "annotations" / f"{name}.mat", what)
            annotations.discard(source)
            for made in FOLDERS:
                todo.tasks.append(Task(source, folder / made / split / f"{name}.png"))
            todo.links.append((image, folder / "images_detectron2" / split / image.name))
    todo.ignored = sorted(annotations)
    return todo


def convert(task: Task) -> np.ndarray:
    ids = FOLDERS[task.target.parent.parent.name]
    return renumber(load_mat(task.source, "S"), ids, task.source)


if __name__ == "__main__":
    run("coco_stuff10k", plan, convert, __doc__)
