#!/usr/bin/env python
"""Number the 150 classes of ADE20K from 0, as detectron2 expects them.

ADEChallengeData2016/annotations/{training,validation}/*.png
                                                  published: 1..150, 0 = anything else
ADEChallengeData2016/annotations_detectron2/{training,validation}/*.png
                                                  made: 0..149, 255 = anything else
"""

from pathlib import Path

import numpy as np

from d2_pixcontrast.data.labels import read_label
from d2_pixcontrast.data.prepare import Plan, Task, files_below, renumber, run

IDS = {0: 255, **{number: number - 1 for number in range(1, 151)}}


def plan(root: Path) -> Plan:
    what = "from ADEChallengeData2016.zip, http://sceneparsing.csail.mit.edu"
    folder = root / "ADEChallengeData2016"
    todo = Plan()
    for source in files_below(folder / "annotations", ".png", what):
        path = source.relative_to(folder / "annotations")
        if path.parts[0] in ("training", "validation"):
            todo.tasks.append(Task(source, folder / "annotations_detectron2" / path))
        else:
            todo.ignored.append(source)
    return todo


def convert(task: Task) -> np.ndarray:
    return renumber(read_label(str(task.source)), IDS, task.source)


if __name__ == "__main__":
    run("ade20k", plan, convert, __doc__)
