"""Files for the benchmark server of Cityscapes, which takes labelIds instead of trainIds."""

import re
from pathlib import Path

import numpy as np

from ..data import DataError

# trainId -> labelId, as in cityscapesscripts/helpers/labels.py.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

_IMAGE = re.compile(r"([a-zA-Z-]+_\d{6}_\d{6})(_leftImg8bit)?")


def to_label_ids(train_ids: np.ndarray) -> np.ndarray:
    """(H, W) trainIds 0..18 to (H, W) uint8 labelIds.

    Raises:
        IndexError: an id is none of the 19.
    """
    return np.array(LABEL_IDS, dtype=np.uint8)[train_ids]


def submission_name(path: str) -> str:
    """``<city>_<sequence>_<frame>_pred.png``: the server finds a file by the first three.

    Args:
        path: of an image with the official name, ``<city>_<sequence>_<frame>_leftImg8bit.png``.

    Raises:
        DataError: the image has another name.
    """
    match = _IMAGE.fullmatch(Path(path).stem)
    if match is None:
        raise DataError(
            f"--cityscapes-submission: {path} is not named as Cityscapes names its images "
            "(berlin_000000_000019_leftImg8bit.png)"
        )
    return f"{match[1]}_pred.png"
