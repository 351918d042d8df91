"""Registers the datasets that detectron2 lacks, and completes the metadata of those it has.

A new dataset is one more :class:`SemSegDataset` in a file of its own, registered below.
"""

from . import builtin, camvid, shapes
from .spec import SemSegDataset, match_files, register

__all__ = ["SemSegDataset", "match_files", "register"]

for _dataset in (*camvid.DATASETS, *shapes.DATASETS):
    register(_dataset)
builtin.complete_metadata()
