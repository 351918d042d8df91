#!/usr/bin/env python
"""Make the labelTrainIds files of Cityscapes from its labelIds files.

    cityscapes/gtFine/{train,val,test}/*/*_gtFine_labelIds.png       gtFine_trainvaltest.zip
    cityscapes/gtFine/{train,val,test}/*/*_gtFine_labelTrainIds.png  made: 0..18, 255 = ignored

The 19 classes and their ids are those of cityscapesscripts, which makes the same files from the
polygons (createTrainIdLabelImgs.py). Nothing else is read or written.
"""

from pathlib import Path

import numpy as np

from d2_pixcontrast.data.datasets.classes import CITYSCAPES_TRAIN_IDS
from d2_pixcontrast.data.labels import read_label
from d2_pixcontrast.data.prepare import Plan, Task, files_below, renumber, run

IGNORED = (*range(34), 255)  # all ids that there are; the trained ones replace theirs
IDS = {**dict.fromkeys(IGNORED, 255), **CITYSCAPES_TRAIN_IDS}


def plan(root: Path) -> Plan:
    what = "the folder gtFine of gtFine_trainvaltest.zip, https://www.cityscapes-dataset.com"
    sources = files_below(root / "cityscapes" / "gtFine", "_gtFine_labelIds.png", what)
    return Plan(
        [Task(s, s.with_name(s.name.replace("labelIds", "labelTrainIds"))) for s in sources]
    )


def convert(task: Task) -> np.ndarray:
    return renumber(read_label(str(task.source)), IDS, task.source)


if __name__ == "__main__":
    run("cityscapes", plan, convert, __doc__)
