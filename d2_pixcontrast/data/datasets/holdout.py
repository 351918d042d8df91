"""A part of a training set that is held out, to choose hyper-parameters on.

CamVid is a few drives, filmed at one image per second or more: neighbouring images are nearly the
same. A part drawn at random would be as good as known; the end of each drive is not.
"""

import os
from itertools import groupby

HELD_SHARE = 0.2  # of each drive, its last images


def drive_ends(dicts: list[dict]) -> list[dict]:
    """The held-out images: the last fifth of each drive.

    Args:
        dicts: dataset dicts in the order of their file names, which begin with the drive's name
            ("0016E5_08640.png").
    """
    return [sample for drive in _drives(dicts) for sample in drive[_kept(drive) :]]


def without_drive_ends(dicts: list[dict]) -> list[dict]:
    """The rest of what :func:`drive_ends` holds out."""
    return [sample for drive in _drives(dicts) for sample in drive[: _kept(drive)]]


def _drives(dicts: list[dict]) -> list[list[dict]]:
    return [list(drive) for _, drive in groupby(dicts, key=_drive_of)]


def _drive_of(sample: dict) -> str:
    return os.path.basename(sample["file_name"]).partition("_")[0]


def _kept(drive: list[dict]) -> int:
    return len(drive) - round(HELD_SHARE * len(drive))
