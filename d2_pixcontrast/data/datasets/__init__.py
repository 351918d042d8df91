"""Registers the datasets that detectron2 lacks, and completes the metadata of those it has.

A new dataset is one more :class:`SemSegDataset` in a file of its own, registered below.
"""

from . import builtin, camvid, coco_stuff, pascal_context, shapes
from .spec import SemSegDataset, match_files, register

__all__ = ["SemSegDataset", "match_files", "register"]

for _table in (camvid, coco_stuff, pascal_context, shapes):
    for _dataset in _table.DATASETS:
        register(_dataset)
builtin.complete_metadata()
