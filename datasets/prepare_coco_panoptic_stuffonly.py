#!/usr/bin/env python
"""Make detectron2's COCO with 53 kinds of stuff and one class for all things.

coco/annotations/panoptic_{train,val}2017.json       panoptic_annotations_trainval2017.zip
coco/panoptic_{train,val}2017/*.png                  the two archives within
coco/panoptic_stuff_{train,val}2017/*.png            made: 0 = things, 1..53, 255 = unlabelled
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from d2_pixcontrast.data.labels import DataError
from d2_pixcontrast.data.prepare import Plan, Task, files_below, renumber, require, run


def plan(root: Path) -> Plan:
    what = "from panoptic_annotations_trainval2017.zip, https://cocodataset.org"
    folder = root / "coco"
    todo = Plan()
    for split in ("train2017", "val2017"):
        path = require(folder / "annotations" / f"panoptic_{split}.json", what)
        content = json.loads(path.read_text(encoding="utf-8"))
        classes = stuff_classes(content["categories"])
        images = set(files_below(folder / f"panoptic_{split}", ".png", what))
        for entry in content["annotations"]:
            source = require(folder / f"panoptic_{split}" / entry["file_name"], what)
            images.discard(source)
            segments = {s["id"]: classes[s["category_id"]] for s in entry["segments_info"]}
            target = folder / f"panoptic_stuff_{split}" / entry["file_name"]
            todo.tasks.append(Task(source, target, segments))
        todo.ignored += sorted(images)
    return todo


def stuff_classes(categories: list[dict]) -> dict[int, int]:
    """0 for things; stuff counts from 1 in the order of the category ids, as in detectron2."""
    stuff = sorted(category["id"] for category in categories if not category["isthing"])
    return {c["id"]: 0 if c["isthing"] else stuff.index(c["id"]) + 1 for c in categories}


def convert(task: Task) -> np.ndarray:
    try:
        colors = np.asarray(Image.open(task.source).convert("RGB")).astype(np.int64)
    except (OSError, SyntaxError) as error:  # what PIL says of a damaged file
        raise DataError(f"label {task.source} cannot be read: {error}") from error
    found, indices = np.unique(colors @ (1, 256, 256**2), return_inverse=True)
    classes = {0: 255, **task.extra}
    if not classes.keys() >= set(found.tolist()):
        raise DataError(f"label {task.source} has a segment that the JSON file does not list")
    table = {index: classes[segment] for index, segment in enumerate(found.tolist())}
    return renumber(indices.reshape(colors.shape[:2]), table, task.source)


if __name__ == "__main__":
    run("coco_panoptic_stuffonly", plan, convert, __doc__)
