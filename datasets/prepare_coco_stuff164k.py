#!/usr/bin/env python
"""Number the 171 classes of COCO-Stuff 164k without gaps.

coco/stuffthingmaps/{train,val}2017/*.png             stuffthingmaps_trainval2017.zip
                                                      0..181 with gaps, 255 = unlabelled
coco/stuffthingmaps_detectron2/{train,val}2017/*.png  made: 0..170, 255 = unlabelled
"""

from pathlib import Path

import numpy as np

from d2_pixcontrast.data.datasets.classes import COCO_STUFF_NAMES, COCO_STUFF_TRAIN_IDS
from d2_pixcontrast.data.labels import read_label
from d2_pixcontrast.data.prepare import Plan, Task, files_below, renumber, run

# The listed ids that no image is said to have are unlabelled, too.
IDS = {255: 255, **dict.fromkeys(range(len(COCO_STUFF_NAMES)), 255), **COCO_STUFF_TRAIN_IDS}


def plan(root: Path) -> Plan:
    what = (
        "what is in stuffthingmaps_trainval2017.zip, https://github.com/nightrome/cocostuff "
        "(folders train2017 and val2017)"
    )
    folder = root / "coco" / "stuffthingmaps"
    todo = Plan()
    for source in files_below(folder, ".png", what):
        path = source.relative_to(folder)
        if path.parts[0] in ("train2017", "val2017"):
            todo.tasks.append(Task(source, root / "coco" / "stuffthingmaps_detectron2" / path))
        else:
            todo.ignored.append(source)
    return todo


def convert(task: Task) -> np.ndarray:
    return renumber(read_label(str(task.source)), IDS, task.source)


if __name__ == "__main__":
    run("coco_stuff164k", plan, convert, __doc__)
