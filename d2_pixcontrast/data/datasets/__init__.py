"""Registers the datasets that detectron2 lacks, and completes the metadata of those it has.

A new dataset of public interest is one more entry in :mod:`.table`; one's own needs no code
(:mod:`.folders`).
"""

from . import builtin, shapes, table
from .folders import register_folders_of, register_sem_seg_folder
from .pairing import find_pairs, match_files
from .spec import SemSegDataset, register, registered

__all__ = [
    "SemSegDataset",
    "find_pairs",
    "match_files",
    "register",
    "register_folders_of",
    "register_sem_seg_folder",
    "registered",
]

for _dataset in (*table.DATASETS, *shapes.DATASETS):
    register(_dataset)
builtin.complete_metadata()
