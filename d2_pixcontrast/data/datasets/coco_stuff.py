"""COCO-Stuff with its 171 classes: 80 things and 91 kinds of stuff.

Caesar et al., "COCO-Stuff: Thing and stuff classes in context", CVPR 2018.

The published labels have 182 ids, of which eleven occur in no image. Models count without these
gaps: :data:`TRAIN_IDS` maps the published ids to 0..170.
"""

from .builtin import distinct_colors
from .spec import SemSegDataset

# All names in the order of the published ids, from https://github.com/nightrome/cocostuff
# (labels.txt), which counts them from 1; the label maps of the 164k edition count from 0.
_NAMES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
    hydrant, street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow,
    elephant, bear, zebra, giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie,
    suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
    skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon,
    bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake,
    chair, couch, potted plant, bed, mirror, dining table, window, desk, toilet, door, tv,
    laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator,
    blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush,
    banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
    ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain,
    desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile,
    floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other,
    hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net,
    paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad,
    river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow,
    solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel,
    tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile,
    wall-wood, water-other, waterdrops, window-blind, window-other, wood
"""
NAMES = tuple(" ".join(_NAMES.split()).split(", "))
# Listed, but in no label.
UNUSED = {
    *("street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door"),
    *("blender", "hair brush"),
}
CLASSES = tuple(name for name in NAMES if name not in UNUSED)
# From the ids of the 164k label maps (0..181) to those of a model.
TRAIN_IDS = {NAMES.index(name): index for index, name in enumerate(CLASSES)}

_TEN_K = (
    "Expected are coco/coco_stuff_10k/images_detectron2/{split}/*.jpg and coco/coco_stuff_10k/"
    "annotations_detectron2/{split}/*.png: COCO-Stuff 10k v1.1 from "
    "https://github.com/nightrome/cocostuff10k, divided by its image lists, with the labels as "
    "8-bit images of the 171 classes without gaps (0..170, 255 = unlabelled)."
)
_FULL = (
    "Expected are coco/{split}2017/*.jpg from https://cocodataset.org and coco/"
    "stuffthingmaps_detectron2/{split}2017/*.png: stuffthingmaps_trainval2017 from "
    "https://github.com/nightrome/cocostuff with its ids 0..181 renumbered without gaps "
    "(0..170, 255 = unlabelled)."
)


def _dataset(name: str, image_dir: str, label_dir: str, origin: str) -> SemSegDataset:
    return SemSegDataset(
        name=name,
        image_dir=f"coco/{image_dir}",
        label_dir=f"coco/{label_dir}",
        image_suffix=".jpg",
        label_suffix=".png",
        classes=CLASSES,
        colors=distinct_colors(len(CLASSES)),
        ignore_label=255,
        origin=origin,
    )


# The 10k edition has Mask2Former's name and folders; the 164k edition, which Mask2Former lacks, a
# name like it and the folder that SimSeg, SAN and CAT-Seg read.
DATASETS = [
    *(
        _dataset(
            f"coco_2017_{split}_stuff_10k_sem_seg",
            f"coco_stuff_10k/images_detectron2/{split}",
            f"coco_stuff_10k/annotations_detectron2/{split}",
            _TEN_K.format(split=split),
        )
        for split in ("train", "test")
    ),
    *(
        _dataset(
            f"coco_2017_{split}_stuff_164k_sem_seg",
            f"{split}2017",
            f"stuffthingmaps_detectron2/{split}2017",
            _FULL.format(split=split),
        )
        for split in ("train", "val")
    ),
]
