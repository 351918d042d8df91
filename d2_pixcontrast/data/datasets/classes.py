"""Names, colours and ids of the classes of known datasets: facts, and no code to speak of.

A table is text: names in the order of their ids, each followed by its colour (RRGGBB) where the
dataset's authors give one. ``*_TRAIN_IDS`` map the ids that are published to those of a model.
"""

from .colors import Color

__all__ = [
    "ADE20K_COLORS",
    "CAMVID",
    "CITYSCAPES_COLORS",
    "CITYSCAPES_TRAIN_IDS",
    "COCO_STUFF",
    "COCO_STUFF_NAMES",
    "COCO_STUFF_TRAIN_IDS",
    "COCO_STUFF_UNUSED",
    "LIP",
    "LIP_FLIP_PAIRS",
    "MAPILLARY_VISTAS",
    "PASCAL_CONTEXT",
    "PASCAL_CONTEXT_TRAIN_IDS",
    "VOC",
]


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).split(", "))


def _rgb(code: str) -> Color:
    return tuple(bytes.fromhex(code))


def _colors(text: str) -> tuple[Color, ...]:
    return tuple(_rgb(code) for code in text.split())


def _colored(text: str) -> dict[str, Color]:
    pairs = [entry.rsplit(" ", 1) for entry in _names(text)]
    return {name: _rgb(code) for name, code in pairs}


# Of detectron2's names, in their order. https://www.cityscapes-dataset.com
CITYSCAPES_COLORS = _colors("""
    804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000
    00008e 000046 003c64 005064 0000e6 770b20
""")
# From the ids of the labelIds files; the others (void, parking, trailer, ...) are not trained on.
CITYSCAPES_TRAIN_IDS = {
    number: index
    for index, number in enumerate(
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    )
}

# Of detectron2's names, in their order; two classes share a colour.
# https://github.com/CSAILVision/sceneparsing (color150)
ADE20K_COLORS = _colors("""
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d
    787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0
    0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06
    ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00
    ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70
    00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99
    ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52
    000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00
    08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff
    9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00
    00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8
    005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
""")

# Brostow et al., "Semantic object classes in video", Pattern Recognition Letters 2009; the 11
# classes and ids of the SegNet tutorial.
CAMVID = _colored("""
    Sky 808080, Building 800000, Pole c0c080, Road 804080, Pavement 0000c0, Tree 808000,
    SignSymbol c08080, Fence 404080, Car 400080, Pedestrian 404000, Bicyclist 0080c0
""")

# Gong et al., "Look into Person", CVPR 2017. Left and right are the person's own.
LIP = _colored("""
    Background 000000, Hat 800000, Hair ff0000, Glove 005500, Sunglasses aa0033,
    UpperClothes ff5500, Dress 000055, Coat 0077dd, Socks 555500, Pants 005555, Jumpsuits 553300,
    Scarf 345680, Skirt 008000, Face 0000ff, Left-arm 33aadd, Right-arm 00ffff, Left-leg 55ffaa,
    Right-leg aaff55, Left-shoe ffff00, Right-shoe ffaa00
""")
# Ids that change places when an image is mirrored.
LIP_FLIP_PAIRS = ((14, 15), (16, 17), (18, 19))

# Neuhold et al., "The Mapillary Vistas dataset for semantic understanding of street scenes", ICCV
# 2017; version 1.2 (config.json) without its last entry, which is "Unlabeled".
MAPILLARY_VISTAS = _colored("""
    Bird a52a2a, Ground Animal 00c000, Curb c4c4c4, Fence be9999, Guard Rail b4a5b4,
    Barrier 5a7896, Wall 66669c, Bike Lane 8040ff, Crosswalk - Plain 8c8cc8, Curb Cut aaaaaa,
    Parking faaaa0, Pedestrian Area 606060, Rail Track e6968c, Road 804080, Service Lane 6e6e6e,
    Sidewalk f423e8, Bridge 966464, Building 464646, Tunnel 96785a, Person dc143c,
    Bicyclist ff0000, Motorcyclist ff0064, Other Rider ff00c8, Lane Marking - Crosswalk c88080,
    Lane Marking - General ffffff, Mountain 40aa40, Sand e6a032, Sky 4682b4, Snow beffff,
    Terrain 98fb98, Vegetation 6b8e23, Water 00aa1e, Banner ffff80, Bench fa001e,
    Bike Rack 648cb4, Billboard dcdcdc, Catch Basin dc8080, CCTV Camera de2828,
    Fire Hydrant 64aa1e, Junction Box 282828, Mailbox 212121, Manhole 6480a0, Phone Booth 8e0000,
    Pothole 466496, Street Light d2aa64, Pole 999999, Traffic Sign Frame 808080,
    Utility Pole 000050, Traffic Light faaa1e, Traffic Sign (Back) c0c0c0,
    Traffic Sign (Front) dcdc00, Trash Can 8c8c14, Bicycle 770b20, Boat 9600ff, Bus 003c64,
    Car 00008e, Caravan 00005a, Motorcycle 0000e6, On Rails 005064, Other Vehicle 804040,
    Trailer 00006e, Truck 000046, Wheeled Slow 0000c0, Car Mount 202020, Ego Vehicle 780a0a
""")

# Everingham et al., "The PASCAL visual object classes (VOC) challenge", IJCV 2010.
VOC = _names("""
    background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable,
    dog, horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor
""")

# Mottaghi et al., "The role of context for object detection and semantic segmentation in the wild",
# CVPR 2014: the 59 most frequent classes with their id in the full annotation (LabelMap of the .mat
# files). Ids follow the 459 classes of the full annotation, which are in alphabetical order
# ("table" is diningtable there). That is the order of the label files that HRNet, OCR and
# mmsegmentation make with the Detail API; the list of names in mmsegmentation's dataset class has
# another order, which is not that of these files.
_PASCAL_CONTEXT = [
    entry.split()
    for entry in _names("""
    2 aeroplane, 9 bag, 18 bed, 19 bedclothes, 22 bench, 23 bicycle, 25 bird, 31 boat,
    33 book, 34 bottle, 44 building, 45 bus, 46 cabinet, 59 car, 65 cat, 68 ceiling, 72 chair,
    80 cloth, 85 computer, 98 cow, 104 cup, 105 curtain, 113 dog, 115 door, 144 fence,
    158 floor, 159 flower, 162 food, 187 grass, 189 ground, 207 horse, 220 keyboard,
    232 light, 258 motorbike, 259 mountain, 260 mouse, 284 person, 295 plate, 296 platform,
    308 pottedplant, 324 road, 326 rock, 347 sheep, 349 shelves, 354 sidewalk, 355 sign,
    360 sky, 366 snow, 368 sofa, 397 table, 415 track, 416 train, 420 tree, 424 truck,
    427 tvmonitor, 440 wall, 445 water, 454 window, 458 wood
""")
]
PASCAL_CONTEXT = tuple(name for _, name in _PASCAL_CONTEXT)
# Without the background of the 60-class protocol, which precedes them there.
PASCAL_CONTEXT_TRAIN_IDS = {int(number): i for i, (number, _) in enumerate(_PASCAL_CONTEXT)}

# Caesar et al., "COCO-Stuff: Thing and stuff classes in context", CVPR 2018: all names in the order
# of the published ids, from https://github.com/nightrome/cocostuff (labels.txt), which counts them
# from 1, as the .mat files of the 10k edition do; the label maps of the 164k edition count from 0.
COCO_STUFF_NAMES = _names("""
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
""")
# Listed, but in no label: models count without these gaps.
COCO_STUFF_UNUSED = {
    *("street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door"),
    *("blender", "hair brush"),
}
COCO_STUFF = tuple(name for name in COCO_STUFF_NAMES if name not in COCO_STUFF_UNUSED)
# From the ids of the 164k label maps (0..181).
COCO_STUFF_TRAIN_IDS = {
    COCO_STUFF_NAMES.index(name): index for index, name in enumerate(COCO_STUFF)
}
