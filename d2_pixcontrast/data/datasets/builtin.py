"""Colours and file checks for the datasets that detectron2 registers itself."""

from detectron2.data import MetadataCatalog

from .classes import ADE20K_COLORS, CITYSCAPES_COLORS
from .pairing import match_files
from .spec import ROOT_HINT

__all__ = ["check_files", "complete_metadata"]

# Metadata keys of the image folder and of the label folder, suffixes, origin.
_CITYSCAPES = (
    ("image_dir", "gt_dir"),
    ("_leftImg8bit.png", "_gtFine_labelTrainIds.png"),
    "Cityscapes comes from https://www.cityscapes-dataset.com; `python "
    "datasets/prepare_cityscapes.py` makes its *_labelTrainIds.png.",
)
_ADE20K = (
    ("image_root", "sem_seg_root"),
    (".jpg", ".png"),
    "ADE20K comes from http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip); `python "
    "datasets/prepare_ade20k.py` makes its folder annotations_detectron2.",
)
_COCO_STUFF_ONLY = (
    ("image_root", "sem_seg_root"),
    (".jpg", ".png"),
    "COCO comes from https://cocodataset.org (images and panoptic annotations of 2017); `python "
    "datasets/prepare_coco_panoptic_stuffonly.py` makes its folders panoptic_stuff_*.",
)
_FILES = {f"cityscapes_fine_sem_seg_{split}": _CITYSCAPES for split in ("train", "val", "test")}
_FILES.update({f"ade20k_sem_seg_{split}": _ADE20K for split in ("train", "val")})
_FILES.update(
    {f"coco_2017_{split}_panoptic_stuffonly": _COCO_STUFF_ONLY for split in ("train", "val")}
)


def complete_metadata() -> None:
    """Add ``stuff_colors`` to the datasets that have none: Cityscapes and ADE20K."""
    for name, files in _FILES.items():
        metadata = MetadataCatalog.get(name)
        if not metadata.get("stuff_colors"):
            colors = CITYSCAPES_COLORS if files is _CITYSCAPES else ADE20K_COLORS
            metadata.set(stuff_colors=list(colors))


def check_files(name: str) -> None:
    """Raise DataError unless all images of one of these datasets have labels and vice versa.

    Detectron2's loaders drop unmatched files (ADE20K, COCO) or fail only when one is read
    (Cityscapes). Other names are not looked at.
    """
    if name not in _FILES:
        return
    (image_key, label_key), (image_suffix, label_suffix), origin = _FILES[name]
    metadata = MetadataCatalog.get(name)
    match_files(
        name,
        f"{origin} {ROOT_HINT}",
        image_root=metadata.get(image_key),
        label_root=metadata.get(label_key),
        image_suffix=image_suffix,
        label_suffix=label_suffix,
    )
