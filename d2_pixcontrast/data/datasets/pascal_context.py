"""PASCAL-Context with its 59 most frequent classes.

Mottaghi et al., "The role of context for object detection and semantic segmentation in the wild",
CVPR 2014.

Ids follow the 459 classes of the full annotation, which are in alphabetical order ("table" is
diningtable there). That is the order of the label files that HRNet, OCR and mmsegmentation make
with the Detail API (mmsegmentation: tools/dataset_converters/pascal_context.py), without the
background that they put first. The list of names in mmsegmentation's dataset class has another
order, which is not that of these files.
"""

from .builtin import distinct_colors
from .spec import SemSegDataset

# Id in the full annotation (LabelMap of the .mat files) and name.
_TABLE = """
    2 aeroplane, 9 bag, 18 bed, 19 bedclothes, 22 bench, 23 bicycle, 25 bird, 31 boat,
    33 book, 34 bottle, 44 building, 45 bus, 46 cabinet, 59 car, 65 cat, 68 ceiling, 72 chair,
    80 cloth, 85 computer, 98 cow, 104 cup, 105 curtain, 113 dog, 115 door, 144 fence,
    158 floor, 159 flower, 162 food, 187 grass, 189 ground, 207 horse, 220 keyboard,
    232 light, 258 motorbike, 259 mountain, 260 mouse, 284 person, 295 plate, 296 platform,
    308 pottedplant, 324 road, 326 rock, 347 sheep, 349 shelves, 354 sidewalk, 355 sign,
    360 sky, 366 snow, 368 sofa, 397 table, 415 track, 416 train, 420 tree, 424 truck,
    427 tvmonitor, 440 wall, 445 water, 454 window, 458 wood
"""
_PAIRS = [pair.split() for pair in _TABLE.split(",")]
CLASSES = tuple(name for _, name in _PAIRS)
# From the ids of the full annotation to those of a model; all others are not labelled here.
TRAIN_IDS = {int(number): index for index, (number, _) in enumerate(_PAIRS)}

DATASETS = [
    SemSegDataset(
        name=f"pascal_context_59_sem_seg_{split}",
        image_dir="VOCdevkit/VOC2010/JPEGImages",
        label_dir=f"VOCdevkit/VOC2010/annotations_detectron2/pc59_{split}",
        image_suffix=".jpg",
        label_suffix=".png",
        classes=CLASSES,
        colors=distinct_colors(len(CLASSES)),
        ignore_label=255,
        origin=(
            "Expected are VOCdevkit/VOC2010/JPEGImages/*.jpg of PASCAL VOC 2010 and "
            f"VOCdevkit/VOC2010/annotations_detectron2/pc59_{split}/*.png, one for each image of "
            "the split: the annotation from https://cs.stanford.edu/~roozbeh/pascal-context as "
            "8-bit images of the 59 classes (0..58, 255 = anything else)."
        ),
        labels_choose=True,
    )
    for split in ("train", "val")
]
