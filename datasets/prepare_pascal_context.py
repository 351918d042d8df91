#!/usr/bin/env python
"""Make the labels of PASCAL-Context with 59 and with 60 classes from its full annotation.

    VOCdevkit/VOC2010/                                       VOCtrainval_03-May-2010.tar
        ImageSets/Main/{train,val}.txt                       the splits: 4998 and 5105 images
        trainval/*.mat                                       trainval.tar.gz of PASCAL-Context
                                                             variable LabelMap: 1..459
        annotations_detectron2/pc59_{train,val}/*.png        made: 0..58, 255 = anything else
        annotations_detectron2/pc60_{train,val}/*.png        made: 1..59, 0 = anything else

The .mat files are at https://cs.stanford.edu/~roozbeh/pascal-context. Its 33 and 59 class PNGs and
the JSON of the Detail API are not needed.
"""

from pathlib import Path

import numpy as np

from d2_pixcontrast.data.datasets.classes import PASCAL_CONTEXT_TRAIN_IDS
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

# By the number of classes: the new ids, and that of everything else.
PROTOCOLS = {
    59: (PASCAL_CONTEXT_TRAIN_IDS, 255),
    60: ({number: index + 1 for number, index in PASCAL_CONTEXT_TRAIN_IDS.items()}, 0),
}


def plan(root: Path) -> Plan:
    what = "trainval of trainval.tar.gz, https://cs.stanford.edu/~roozbeh/pascal-context"
    lists = "from VOCtrainval_03-May-2010.tar, http://host.robots.ox.ac.uk/pascal/VOC/voc2010"
    folder = root / "VOCdevkit" / "VOC2010"
    annotations = set(files_below(folder / "trainval", ".mat", what))
    todo = Plan()
    for split in ("train", "val"):
        for name in read_list(folder / "ImageSets" / "Main" / f"{split}.txt", lists):
            source = require(folder / "trainval" / f"{name}.mat", f"in {what}")
            annotations.discard(source)
            for count in PROTOCOLS:
                target = folder / "annotations_detectron2" / f"pc{count}_{split}" / f"{name}.png"
                todo.tasks.append(Task(source, target, count))
    todo.ignored = sorted(annotations)
    return todo


def convert(task: Task) -> np.ndarray:
    ids, others = PROTOCOLS[task.extra]
    return renumber(load_mat(task.source, "LabelMap"), ids, task.source, others)


if __name__ == "__main__":
    run("pascal_context", plan, convert, __doc__)
