"""Colours and file checks for the datasets that detectron2 registers itself."""

import colorsys

from detectron2.data import MetadataCatalog

from .spec import match_files

__all__ = ["check_files", "complete_metadata", "distinct_colors"]

CITYSCAPES_COLORS = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)

# Name: (metadata key of the image folder and of the label folder, suffixes, origin).
_CITYSCAPES = (
    ("image_dir", "gt_dir"),
    ("_leftImg8bit.png", "_gtFine_labelTrainIds.png"),
    "Cityscapes comes from https://www.cityscapes-dataset.com; its *_labelTrainIds.png are made by "
    "cityscapesscripts/preparation/createTrainIdLabelImgs.py.",
)
_ADE20K = (
    ("image_root", "sem_seg_root"),
    (".jpg", ".png"),
    "ADE20K comes from http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip); its folder "
    "annotations_detectron2 is made by detectron2's datasets/prepare_ade20k_sem_seg.py.",
)
_COCO_STUFF_ONLY = (
    ("image_root", "sem_seg_root"),
    (".jpg", ".png"),
    "COCO comes from https://cocodataset.org (images and panoptic annotations of 2017); its "
    "folders panoptic_stuff_* are made by detectron2's datasets/prepare_panoptic_fpn.py.",
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
            colors = CITYSCAPES_COLORS if files is _CITYSCAPES else distinct_colors(150)
            metadata.set(stuff_colors=list(colors))


def check_files(name: str) -> None:
    """Raise DataError unless all images of one of these datasets have labels and vice versa.

    Detectron2's loaders drop unmatched files (ADE20K, COCO) or fail only when one is read
    (Cityscapes). Other names are not looked at.
    """
    if name not in _FILES:
        return
    keys, suffixes, origin = _FILES[name]
    metadata = MetadataCatalog.get(name)
    match_files(name, *(metadata.get(key) for key in keys), *suffixes, origin)


def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """``count`` different (R, G, B) colours, always the same; neighbours in the list differ most.

    Hues are spread by the golden ratio, in four steps of saturation and lightness.
    """
    colors = []
    for index in range(count):
        hue = (index * 0.61803398875) % 1.0
        saturation, value = ((0.85, 0.95), (0.55, 0.75), (0.95, 0.6), (0.4, 0.95))[index % 4]
        rgb = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append(tuple(round(255 * channel) for channel in rgb))
    return tuple(colors)
