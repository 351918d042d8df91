"""Every key is read, every file is safe, loads and builds."""

import ast
import functools
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CONFIGS, ROOT
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_backbone, build_model, build_sem_seg_head
from detectron2.projects.deeplab import add_deeplab_config

import d2_pixcontrast
from d2_pixcontrast import add_pixcontrast_config
from d2_pixcontrast.conversion import SOURCES
from d2_pixcontrast.engine import load_cfg

FILES = sorted(CONFIGS.rglob("*.yaml"))
GRIDS = "experiments"  # lists of configs, read by tools/run_experiments.py
LEAVES = [p for p in FILES if not p.name.startswith("Base-") and p.parent.name != GRIDS]
ids = [str(path.relative_to(CONFIGS)) for path in LEAVES]

# configs/<Dataset>-SemanticSegmentation/<decoder>_<backbone>_<method>_<schedule>.yaml, and what the
# words stand for.
ZOO = [path for path in LEAVES if path.parent.name.endswith("-SemanticSegmentation")]
# configs/published/<source>/<dataset>_<decoder>_<backbone>[_<method>].yaml.
PUBLISHED = [path for path in LEAVES if path.parent.parent.name == "published"]
DECODERS = {
    "deeplabv3": "DeepLabV3Decoder",
    "deeplabv3plus": "DeepLabV3PlusDecoder",
    "fcn": "FCNDecoder",
    "ocr": "OCRDecoder",
    "psp": "PSPDecoder",
    "uper": "UPerDecoder",
}
BACKBONES = {
    "r50": ("build_resnet_deeplab_backbone", 50),
    "r101": ("build_resnet_deeplab_backbone", 101),
    "hrnet_w18": ("build_timm_backbone", "hrnet_w18"),
    "hrnet_w48": ("build_timm_backbone", "hrnet_w48"),
    "mobilenetv2": ("build_timm_backbone", "mobilenetv2_100"),
    "s101": ("build_timm_backbone", "resnest101e"),
    "vit_l": ("build_timm_backbone", "vit_large_patch16_384"),
    "swin_t": ("build_timm_backbone", "swin_tiny_patch4_window7_224"),
    "swin_l": ("build_timm_backbone", "swin_large_patch4_window12_384"),
}
# Methods and the keys that are theirs; several in one name are used together.
METHODS = {
    "pixcontrast_mem": "PIXEL_CONTRAST",
    "pixcontrast": "PIXEL_CONTRAST",
    "contextrast": "CONTEXTRAST",
    "multiscale": "MULTI_SCALE_CONTRAST",
    "mcibi_pp": "DATASET_MEMORY",
    "mcibi": "DATASET_MEMORY",
}
TERMS = {
    "PIXEL_CONTRAST": "PixelContrast",
    "CONTEXTRAST": "Contextrast",
    "MULTI_SCALE_CONTRAST": "MultiScaleContrast",
}
METHOD = f"(?:{'|'.join(METHODS)})"
NAME = re.compile(
    f"({'|'.join(DECODERS)})_({'|'.join(BACKBONES)})_(ce|{METHOD}(?:_{METHOD})*)_([a-z0-9-]+)"
)
# Of the cross-entropy, in the code of ContrastiveSeg.
CITYSCAPES_CLASS_WEIGHTS = [
    *(0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023),
    *(0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
]
IMAGES = {"ADE20K": 20210, "Cityscapes": 2975, "COCOStuff10K": 9000, "LIP": 30462}


@functools.cache
def loaded(path):
    """The config of a file, for reading only: load_cfg takes most of this module's time."""
    cfg = load_cfg(str(path))
    cfg.freeze()
    return cfg


def method_nodes(stem):
    """Nodes below MODEL of the methods that a file's name has."""
    return {METHODS[m] for m in re.findall(rf"_({METHOD})(?=_|$)", stem)}


def zoo_path(dataset, network, method, schedule):
    return CONFIGS / f"{dataset}-SemanticSegmentation" / f"{network}_{method}_{schedule}.yaml"


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def own_keys():
    before, after = get_cfg(), get_cfg()
    add_deeplab_config(before)
    add_pixcontrast_config(after)
    return sorted(set(dict(flat(after))) - set(dict(flat(before))))


def test_every_key_of_ours_has_a_reader():
    """As an attribute, in code: neither in a message nor in the table of the numbers' ranges.

    Nodes share names (LOSS_WEIGHT): that each is read is said where the node's reader is tested.
    """
    package = Path(d2_pixcontrast.__file__).parent
    tables = ("config.py", "config_numbers.py")
    trees = (ast.parse(p.read_text()) for p in package.rglob("*.py") if p.name not in tables)
    read = {n.attr for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    keys = own_keys()
    assert "MODEL.PIXEL_CONTRAST.MAX_VIEWS" in keys
    assert not [key for key in keys if key.split(".")[-1] not in read]


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(CONFIGS)) for p in FILES])
def test_files_are_safe_yaml_and_short(path):
    yaml.safe_load(path.read_text())
    assert len(path.read_text().splitlines()) < 60


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(CONFIGS)) for p in FILES])
def test_files_start_with_their_only_comment(path):
    lines = path.read_text().splitlines()
    rest = list(itertools.dropwhile(lambda line: line.startswith("# "), lines))
    assert len(rest) < len(lines) and not any("#" in line for line in rest)


_backbones = {}


def head_on_meta(cfg):
    """The head of a config. Backbones take most of the time: each different one is built once."""
    key = repr((cfg.MODEL.BACKBONE, cfg.MODEL.TIMM, cfg.MODEL.RESNETS))
    with torch.device("meta"):
        if key not in _backbones:
            _backbones[key] = build_backbone(cfg).output_shape()
        return build_sem_seg_head(cfg, _backbones[key])


@pytest.mark.parametrize("path", LEAVES, ids=ids)
def test_config_builds_and_agrees_with_its_data(path):
    cfg = load_cfg(str(path), ["MODEL.DEVICE", "meta"])
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        assert len(metadata.stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        assert metadata.ignore_label == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    head = head_on_meta(cfg)
    assert head.predictor.out_channels == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert set(head.terms) == set(cfg.MODEL.SEM_SEG_HEAD.TERMS)


@pytest.mark.parametrize("path", ZOO, ids=[str(p.relative_to(CONFIGS)) for p in ZOO])
def test_names_say_what_is_inside(path):
    match = NAME.fullmatch(path.stem)
    assert match, "<decoder>_<backbone>_<method>_<schedule>"
    decoder, backbone, method, schedule = match.groups()
    dataset = path.parent.name.removesuffix("-SemanticSegmentation")
    assert (CONFIGS / f"Base-{dataset}.yaml").is_file()
    cfg = loaded(path)
    model, thousands = cfg.MODEL, re.match(r"(\d+)k\b", schedule)
    epochs = re.match(r"(\d+)ep\b", schedule)
    iterations = cfg.SOLVER.MAX_ITER
    if thousands:
        iterations = 1000 * int(thousands[1])
    elif epochs:
        images = IMAGES[dataset] + (500 if schedule.endswith("-trainval") else 0)
        iterations = int(epochs[1]) * images // cfg.SOLVER.IMS_PER_BATCH
    found = {
        "output": cfg.OUTPUT_DIR,
        "decoder": model.SEM_SEG_HEAD.DECODER,
        "backbone": (model.BACKBONE.NAME, model.RESNETS.DEPTH),
        "terms": sorted(model.SEM_SEG_HEAD.TERMS),
        "memory": model.PIXEL_CONTRAST.MEMORY.ENABLED,
        "dataset memory": model.DATASET_MEMORY.ENABLED and model.DATASET_MEMORY.KIND,
        "iterations": cfg.SOLVER.MAX_ITER,
        "splits": len(cfg.DATASETS.TRAIN),
    }
    if model.BACKBONE.NAME == "build_timm_backbone":
        found["backbone"] = (model.BACKBONE.NAME, model.TIMM.NAME)
    kind = "statistics" if "mcibi_pp" in method else "features"
    assert found == {
        "output": f"output/{dataset.lower()}_{path.stem}",
        "decoder": DECODERS[decoder],
        "backbone": BACKBONES[backbone],
        "terms": sorted(TERMS[node] for node in method_nodes(path.stem) if node in TERMS),
        "memory": "pixcontrast_mem" in method,
        "dataset memory": "mcibi" in method and kind,
        "iterations": iterations,
        "splits": 2 if schedule.endswith("-trainval") else 1,
    }


def test_no_two_configs_write_to_one_folder():
    folders = [loaded(path).OUTPUT_DIR for path in LEAVES]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_published_configs_compute_what_their_source_does(path):
    cfg, source = loaded(path), SOURCES[path.parent.name]
    wanted = source.settings(cfg)
    values = dict(flat(cfg))
    assert wanted and {key: plain(values[key]) for key in wanted} == wanted
    # Without them the source's networks would be others, on any data.
    assert {"INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.TIMM.SIZE_DIVISIBILITY"} <= set(wanted)
    assert cfg.MODEL.BACKBONE.NAME == "build_timm_backbone"


def plain(value):
    return list(value) if isinstance(value, (list, tuple)) else value


PUBLISHED_BACKBONES = {
    ("contrastiveseg", "r101"): ("resnet101s", 8),
    **{(s, "r50"): ("resnet50c", 8) for s in ("mmseg", "sssegmentation")},
    **{(s, "r101"): ("resnet101c", 8) for s in ("mmseg", "sssegmentation")},
}
TEST_SETS = {
    "cityscapes": ("cityscapes_fine_sem_seg_val", 19),
    "ade20k": ("ade20k_sem_seg_val", 150),
    "cocostuff10k": ("coco_2017_test_stuff_10k_182_sem_seg", 182),
    "lip": ("lip_sem_seg_val", 20),
}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_names_of_published_configs_say_what_is_inside(path):
    words = "|".join
    name = re.compile(
        f"({words(TEST_SETS)})_({words(DECODERS)})_({words(BACKBONES)})(?:_(ce|{METHOD}))?"
    )
    match = name.fullmatch(path.stem)
    assert match, "<dataset>_<decoder>_<backbone>[_<method>]"
    dataset, decoder, backbone, method = match.groups()
    cfg, source = loaded(path), path.parent.name
    model = cfg.MODEL
    kind, stride = PUBLISHED_BACKBONES.get((source, backbone), (BACKBONES[backbone][1], None))
    found = {
        "output": cfg.OUTPUT_DIR,
        "data": (*cfg.DATASETS.TEST, model.SEM_SEG_HEAD.NUM_CLASSES),
        "decoder": model.SEM_SEG_HEAD.DECODER,
        "backbone": model.TIMM.NAME,
        "terms": list(model.SEM_SEG_HEAD.TERMS),
        "memories": (model.PIXEL_CONTRAST.MEMORY.ENABLED, model.DATASET_MEMORY.ENABLED),
    }
    assert found == {
        "output": f"output/published_{source}_{path.stem}",
        "data": TEST_SETS[dataset],
        "decoder": DECODERS[decoder],
        "backbone": kind,
        "terms": ["PixelContrast"] if "pixcontrast" in (method or "") else [],
        "memories": (method == "pixcontrast_mem", method == "mcibi"),
    }
    assert stride in (None, model.TIMM.OUTPUT_STRIDE)


def test_every_source_has_published_configs():
    assert {path.parent.name for path in PUBLISHED} == set(SOURCES)


def test_mcibis_windows_on_cityscapes_are_upright():
    """1024 rows and 512 columns, a third apart, and means of probabilities."""
    paths = [p for p in (*ZOO, *PUBLISHED) if "mcibi" in p.name and "cityscapes" in str(p).lower()]
    paths = [p for p in paths if "_mcibi_pp" not in p.name]
    assert len(paths) >= 8
    for path in paths:
        sliding = loaded(path).TEST.SLIDING
        assert sliding.ENABLED
        assert (tuple(sliding.SIZE), tuple(sliding.STRIDE)) == ((1024, 512), (341, 341)), path
        assert sliding.AVERAGE == "probabilities", path


@pytest.mark.parametrize(
    "path",
    [p for p in PUBLISHED if p.stem.startswith("lip_")],
    ids=lambda path: path.stem,
)
def test_mcibis_images_of_lip_are_squeezed(path):
    assert list(loaded(path).INPUT.FIXED_SIZE_TEST) == [473, 473]


def test_the_promised_combinations_exist():
    combinations = ("contextrast_pixcontrast_mem", "mcibi_contextrast")
    for method in ("contextrast", "multiscale", *combinations):
        assert zoo_path("CamVid", "deeplabv3plus_mobilenetv2", method, "cpu") in ZOO


@pytest.mark.parametrize("method", ["ce", "pixcontrast", "pixcontrast_mem"])
def test_the_promised_configs_exist(method):
    schedules = {
        "Cityscapes": "40k",
        "PascalContext": "60k",
        "COCOStuff10K": "60k",
        "COCOStuff164K": "60k",
        "ADE20K": "80k",
        "CamVid": "6k",
    }
    networks = ("deeplabv3_r101", "fcn_hrnet_w48", "ocr_hrnet_w48")
    wanted = [(d, n, method, s) for d, s in schedules.items() for n in networks]
    wanted.append(("COCOPanopticStuffOnly", "deeplabv3_r101", method, "60k"))
    for network in ("deeplabv3_r50", "fcn_hrnet_w18", "deeplabv3plus_mobilenetv2"):
        wanted.append(("Cityscapes", network, method, "40k"))
    if method != "pixcontrast_mem":  # mmsegmentation's project has no memory
        wanted += [("Cityscapes", f"fcn_hrnet_{w}", method, "40k-mmseg") for w in ("w18", "w48")]
    wanted.append(("CamVid", "deeplabv3plus_mobilenetv2", method, "cpu"))
    assert not [w for w in wanted if zoo_path(*w) not in ZOO]


CONTEXTRAST_SCHEDULES = {
    "Cityscapes": "40k",
    "CamVid": "6k",
    "ADE20K": "80k",
    "PascalContext": "60k-contextrast",
    "COCOStuff10K": "60k-contextrast",
}


@pytest.mark.parametrize("method", ["ce", "contextrast", "multiscale"])
def test_the_promised_configs_of_contextrast_and_its_peer_exist(method):
    networks = ("deeplabv3_r101", "fcn_hrnet_w48", "ocr_hrnet_w48")
    wanted = [(d, n, method, s) for d, s in CONTEXTRAST_SCHEDULES.items() for n in networks]
    wanted += [("Cityscapes", "fcn_hrnet_w18", method, "40k")]
    wanted += [
        ("Cityscapes", n, method, "80k") for n in ("deeplabv3plus_mobilenetv2", "uper_swin_t")
    ]
    assert not [w for w in wanted if zoo_path(*w) not in ZOO]


# (dataset, network): epochs, images per batch, learning rate, weight decay.
MCIBI = {
    ("ADE20K", "deeplabv3_r50"): (130, 16, 0.01, 5e-4),
    ("ADE20K", "deeplabv3_r101"): (130, 16, 0.01, 5e-4),
    ("ADE20K", "deeplabv3_s101"): (180, 16, 0.004, 5e-4),
    ("ADE20K", "deeplabv3_hrnet_w48"): (180, 16, 0.004, 5e-4),
    ("ADE20K", "deeplabv3_vit_l"): (130, 16, 0.01, 0.0),
    ("ADE20K", "fcn_r50"): (130, 16, 0.01, 5e-4),
    ("ADE20K", "psp_r50"): (130, 16, 0.01, 5e-4),
    ("ADE20K", "ocr_r50"): (130, 16, 0.01, 5e-4),
    ("Cityscapes", "deeplabv3_r50"): (440, 16, 0.01, 5e-4),
    ("Cityscapes", "deeplabv3_r101"): (440, 16, 0.01, 5e-4),
    ("Cityscapes", "deeplabv3_s101"): (500, 16, 0.01, 5e-4),
    ("Cityscapes", "deeplabv3_hrnet_w48"): (500, 16, 0.01, 5e-4),
    ("COCOStuff10K", "deeplabv3_r50"): (110, 16, 0.001, 1e-4),
    ("COCOStuff10K", "deeplabv3_r101"): (110, 16, 0.001, 1e-4),
    ("COCOStuff10K", "deeplabv3_s101"): (150, 32, 0.001, 5e-4),
    ("COCOStuff10K", "deeplabv3_hrnet_w48"): (110, 16, 0.001, 1e-4),
    ("COCOStuff10K", "deeplabv3_vit_l"): (110, 16, 0.001, 0.0),
    ("LIP", "deeplabv3_r50"): (150, 32, 0.01, 5e-4),
    ("LIP", "deeplabv3_r101"): (150, 32, 0.01, 5e-4),
    ("LIP", "deeplabv3_s101"): (150, 40, 0.007, 5e-4),
    ("LIP", "deeplabv3_hrnet_w48"): (150, 40, 0.007, 5e-4),
}
CROPS = {
    "ADE20K": [512, 512],
    "Cityscapes": [512, 1024],
    "COCOStuff10K": [512, 512],
    "LIP": [473, 473],
}


@pytest.mark.parametrize("dataset, network", MCIBI)
def test_mcibis_numbers(dataset, network):
    epochs, *numbers = MCIBI[dataset, network]
    schedule = f"{epochs}ep" + ("-trainval" if dataset == "Cityscapes" else "")
    cfg, twin = (loaded(zoo_path(dataset, network, m, schedule)) for m in ("mcibi", "ce"))
    solver, head, memory = cfg.SOLVER, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.DATASET_MEMORY
    assert numbers == [solver.IMS_PER_BATCH, solver.BASE_LR, solver.WEIGHT_DECAY]
    assert (solver.OPTIMIZER, solver.POLY_LR_POWER, solver.HEAD_LR_MULTIPLIER) == ("SGD", 0.9, 1)
    assert (0.1 if "vit" in network else 1.0) == solver.BACKBONE_LR_MULTIPLIER
    assert CROPS[dataset] == cfg.INPUT.CROP.SIZE
    assert cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA == 0.75 and cfg.INPUT.COLOR_JITTER.HUE == 36
    assert tuple(cfg.INPUT.ASPECT_RANGE) == (1, 1) and cfg.INPUT.COLOR_JITTER.BRIGHTNESS == 32
    end = 0.1 if (dataset, network) == ("COCOStuff10K", "deeplabv3_s101") else 0
    assert (end, None, None) == (
        *(solver.POLY_LR_END, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS),
    )
    assert tuple(cfg.INPUT.SCALE_RANGE) == ((0.75, 1.25) if dataset == "LIP" else (0.5, 2.0))
    assert head.CLASS_WEIGHTS == [] and not twin.MODEL.DATASET_MEMORY.ENABLED
    # Auxiliary: the stage of 1024 channels of ResNets, three blocks of ViT, none on HRNet; OCR's
    # own.
    auxiliary = {"hrnet_w48": [], "vit_l": ["block9", "block14", "block19"]}
    backbone = network.split("_", 1)[1]
    wanted = [] if network == "ocr_r50" else auxiliary.get(backbone, ["res4"])
    assert wanted == head.AUX.IN_FEATURES
    assert (head.AUX.LOSS_WEIGHT, head.AUX.CHANNELS) == (0.4, 512)
    halved = backbone == "hrnet_w48" and dataset in ("Cityscapes", "LIP")
    assert (0 if backbone != "hrnet_w48" else 2 if halved else 1) == head.JOIN_STRIDE
    assert (memory.CHANNELS, memory.KEY_CHANNELS, memory.STRATEGY) == (512, 256, "cosine")
    assert (memory.STAGE1_LOSS_WEIGHT, memory.MOMENTUM_SCHEDULE) == (0.4, "lr")
    assert (1.0 if dataset in ("Cityscapes", "COCOStuff10K") else 0.9) == memory.MOMENTUM
    if dataset == "ADE20K":  # from the second epoch on
        assert memory.CONSISTENCY.LOSS_WEIGHT == 1.0
        assert pytest.approx(1 / epochs, abs=1e-4) == memory.CONSISTENCY.START
    else:
        assert memory.CONSISTENCY.LOSS_WEIGHT == 0.0


@pytest.mark.parametrize("network", ["fcn_r50", "psp_r50", "uper_r50", "deeplabv3_r50"])
@pytest.mark.parametrize(
    "dataset, schedule, batch", [("ADE20K", "130ep", 16), ("Cityscapes", "220ep", 8)]
)
def test_mcibi_pps_numbers(dataset, schedule, batch, network):
    cfg = loaded(zoo_path(dataset, network, "mcibi_pp", schedule))
    memory, solver = cfg.MODEL.DATASET_MEMORY, cfg.SOLVER
    assert (memory.MOMENTUM, memory.MOMENTUM_SCHEDULE) == (0.1, "constant")
    assert (memory.STAGE1_LOSS_WEIGHT, memory.CONTEXT_LOSS_WEIGHT) == (0.4, 1.0)
    assert (0.01, 5e-4, batch) == (solver.BASE_LR, solver.WEIGHT_DECAY, solver.IMS_PER_BATCH)
    assert cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES == ["res4"]


@pytest.mark.parametrize("path", [p for p in ZOO if "_swin_" in p.name], ids=lambda p: p.stem)
def test_swins_numbers(path):
    """Its published recipe, in which norms, biases and embeddings do not decay."""
    cfg = loaded(path)
    solver = cfg.SOLVER
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("AdamW", 6e-5, 0.01)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == (1500, 1e-6)
    assert (solver.WARMUP_METHOD, solver.POLY_LR_POWER) == ("linear", 1.0)
    decays = solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS, solver.WEIGHT_DECAY_EMBED
    assert decays == (0, 0, 0)
    assert cfg.MODEL.TIMM.DROP_PATH_RATE == 0.3 and cfg.MODEL.TIMM.OUT_NORM == "LN"


@pytest.mark.parametrize(
    "path",
    [p for p in ZOO if "_contextrast_" in p.name or "_multiscale_" in p.name],
    ids=[
        str(p.relative_to(CONFIGS))
        for p in ZOO
        if "_contextrast_" in p.name or "_multiscale_" in p.name
    ],
)
def test_contextrasts_and_its_peers_numbers(path):
    model = loaded(path).MODEL
    node = model.CONTEXTRAST if "_contextrast_" in path.name else model.MULTI_SCALE_CONTRAST
    assert (node.LOSS_WEIGHT, node.TEMPERATURE, node.WARMUP) == (0.1, 0.1, 0.0)
    assert (node.PROJECTOR.TYPE, node.PROJECTOR.DIM) == ("mlp", 256)
    if path.stem.endswith("_cpu"):  # levels of a small network, chosen by measuring
        alone = "deeplabv3plus_mobilenetv2_contextrast_cpu.yaml"
        if "_contextrast_" in path.name:
            assert node == loaded(path.with_name(alone)).MODEL.CONTEXTRAST
        return
    levels = ["res2", "res3", "res4", "res5"]
    given = model.TIMM.OUT_FEATURES if "timm" in model.BACKBONE.NAME else model.RESNETS.OUT_FEATURES
    assert node.IN_FEATURES == given == levels
    if "_contextrast_" in path.name:
        assert tuple(node.LEVEL_WEIGHTS) == (0.1, 0.3, 0.7, 1.0)
        assert (node.NEGATIVES, node.BANE.KEEP_PERCENT) == ("bane", 50.0)
    else:
        assert tuple(node.SCALE_WEIGHTS) == (1.0, 0.7, 0.4, 0.1)
        assert (node.MAX_SAMPLES, node.MAX_VIEWS, node.MIN_PIXELS) == (10000, 2500, 5)
        assert (list(node.CROSS_FEATURES), node.CROSS_WEIGHT) == (["res5", "res4"], 1.0)


@pytest.mark.parametrize(
    "dataset, schedule, numbers",
    [
        ("Cityscapes", "40k", (0.01, 1.0, 5e-4, 8, [512, 1024], 0.1)),
        ("PascalContext", "60k", (0.001, 10.0, 1e-4, 16, [520, 520], 0.07)),
        ("COCOStuff10K", "60k", (0.001, 10.0, 1e-4, 16, [520, 520], 0.07)),
        ("COCOStuff164K", "60k", (0.001, 10.0, 1e-4, 16, [520, 520], 0.07)),
        ("COCOPanopticStuffOnly", "60k", (0.001, 10.0, 1e-4, 16, [520, 520], 0.07)),
        ("ADE20K", "80k", (0.01, 1.0, 5e-4, 12, [512, 512], 0.07)),
        ("PascalContext", "60k-contextrast", (0.01, 1.0, 5e-4, 16, [512, 512], 0.07)),
        ("COCOStuff10K", "60k-contextrast", (0.01, 1.0, 5e-4, 16, [512, 512], 0.07)),
        ("CamVid", "6k", (0.02, 1.0, 5e-4, 16, [360, 480], 0.07)),
    ],
)
def test_published_numbers_arrive_in_the_leaves(dataset, schedule, numbers):
    *numbers, temperature = numbers
    paths = [*(CONFIGS / f"{dataset}-SemanticSegmentation").glob(f"*_{schedule}.yaml")]
    assert len(paths) >= 3
    for path in paths:
        cfg = loaded(path)
        solver, contrast = cfg.SOLVER, cfg.MODEL.PIXEL_CONTRAST
        assert numbers == [
            *(solver.BASE_LR, solver.HEAD_LR_MULTIPLIER, solver.WEIGHT_DECAY),
            *(solver.IMS_PER_BATCH, cfg.INPUT.CROP.SIZE),
        ]
        assert tuple(cfg.INPUT.SCALE_RANGE) == (0.5, 2.0) and solver.POLY_LR_POWER == 0.9
        assert (
            solver.WEIGHT_DECAY_NORM is solver.WEIGHT_DECAY_BIAS is None and not solver.POLY_LR_END
        )
        jitters = dataset not in ("ADE20K", "CamVid")  # whose bases are Contextrast's
        assert tuple(cfg.INPUT.ASPECT_RANGE) == ((0.9, 1.1) if jitters else (1, 1))
        assert (10 if jitters else 0) == cfg.INPUT.COLOR_JITTER.BRIGHTNESS
        weights = CITYSCAPES_CLASS_WEIGHTS if dataset == "Cityscapes" else []
        assert weights == cfg.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS
        assert (solver.OPTIMIZER, solver.MOMENTUM) == ("SGD", 0.9)
        if "PixelContrast" not in cfg.MODEL.SEM_SEG_HEAD.TERMS:
            continue
        taus = (contrast.TEMPERATURE, contrast.BASE_TEMPERATURE)
        assert taus == (temperature, 0.07), path
        assert contrast.LOSS_WEIGHT == 0.1
        assert contrast.WARMUP == 1 / 8 and contrast.MINING.MODE == "all"
        # The whole encoder of HRNet, with OCR too, else its last stage; at stride 16 the decoder.
        embedded = ["decoder"] if "mobilenetv2" in path.name else ["res5"]
        embedded = cfg.MODEL.TIMM.OUT_FEATURES if "hrnet" in path.name else embedded
        assert embedded == contrast.IN_FEATURES, path
        assert_published_sampling(contrast)


def assert_published_sampling(contrast):
    assert (contrast.SAMPLER, contrast.MAX_SAMPLES, contrast.MAX_VIEWS) == ("per_image", 1024, 100)
    memory = contrast.MEMORY
    assert (memory.REGION_SIZE, memory.PIXEL_SIZE, memory.PIXELS_PER_GROUP) == (5000, 5000, 10)


@pytest.mark.parametrize(
    "dataset, smallest",
    [("ADE20K", 0.75), ("CamVid", 0.75)]
    + [(d, 0.5) for d in ("Cityscapes", "PascalContext", "COCOStuff10K", "COCOStuff164K")],
)
def test_published_test_scales(dataset, smallest):
    augmentation = load_cfg(str(CONFIGS / f"Base-{dataset}.yaml")).TEST.AUG
    published = [0.25 * k for k in range(int(smallest / 0.25), 9)]
    assert list(augmentation.SCALES) == published
    assert augmentation.FLIP and not augmentation.ENABLED


def scales(first, last):
    return [0.25 * k for k in range(int(first / 0.25), int(last / 0.25) + 1)]


@pytest.mark.parametrize("path", ZOO, ids=[str(p.relative_to(CONFIGS)) for p in ZOO])
def test_published_test_scales_of_each_method(path):
    dataset = path.parent.name.removesuffix("-SemanticSegmentation")
    _, backbone, method, schedule = NAME.fullmatch(path.stem).groups()
    if "ep" in schedule:  # MCIBI's and MCIBI++'s
        fewer = dataset == "COCOStuff10K" and backbone in ("r50", "hrnet_w48", "s101")
        expected = [1.0] if dataset == "LIP" else scales(0.5, 1.5 if fewer else 1.75)
    elif "contextrast" in schedule + method or "multiscale" in method:
        expected = scales(0.75, 2)
    else:
        expected = scales(0.75 if dataset in ("ADE20K", "CamVid") else 0.5, 2)
    augmentation = loaded(path).TEST.AUG
    assert list(augmentation.SCALES) == expected and augmentation.FLIP


@pytest.mark.parametrize(
    "path",
    [p for p in ZOO if p.name.startswith("deeplabv3_")],
    ids=[str(p.relative_to(CONFIGS)) for p in ZOO if p.name.startswith("deeplabv3_")],
)
def test_published_dilations(path):
    """Of output stride 8, as DeepLabV3's own; MCIBI's ViT-L for ADE20K has others."""
    smaller = path.stem.startswith("deeplabv3_vit_l_") and "ADE20K" in str(path.parent)
    dilations = [6, 12, 18] if smaller else [12, 24, 36]
    assert dilations == loaded(path).MODEL.SEM_SEG_HEAD.ASPP_DILATIONS


@pytest.mark.parametrize("width, dim", [("w18", 256), ("w48", 720)])
def test_mmsegmentations_numbers(width, dim):
    path = zoo_path("Cityscapes", f"fcn_hrnet_{width}", "pixcontrast", "40k-mmseg")
    cfg = loaded(path)
    head, contrast = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.PIXEL_CONTRAST
    assert (head.FCN.KERNEL_SIZE, head.FCN.DROPOUT, head.CLASS_WEIGHTS) == (1, 0.0, [])
    assert dict(contrast.PROJECTOR) == {"TYPE": "mlp", "DIM": dim, "NORM": ""}
    assert (contrast.TEMPERATURE, contrast.BASE_TEMPERATURE, contrast.WARMUP) == (0.1, 0.07, 0.0)
    assert contrast.IN_FEATURES == ["res2", "res3", "res4", "res5"] == cfg.MODEL.TIMM.OUT_FEATURES
    assert contrast.LOSS_WEIGHT == 0.1 and not contrast.MEMORY.ENABLED
    assert_published_sampling(contrast)
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.IMS_PER_BATCH) == (0.01, 2e-4, 8)
    assert (solver.OPTIMIZER, solver.MOMENTUM, solver.MAX_ITER) == ("SGD", 0.9, 40_000)
    assert (solver.POLY_LR_POWER, solver.POLY_LR_END) == (0.9, 0.01)
    assert cfg.INPUT.CROP.SIZE == [512, 1024]


def twin_of(path):
    """The config of the same network and schedule without the methods."""
    plain_word = "" if path.parent.name == "mmseg" else "_ce"
    return path.with_name(re.sub(rf"_{METHOD}(?:_{METHOD})*(?=[_.])", plain_word, path.name))


@pytest.mark.parametrize(
    "path",
    # MCIBI's authors publish no network without a memory.
    [
        p
        for p in LEAVES
        if method_nodes(p.stem) and p.parent.name not in ("quick_schedules", "sssegmentation")
    ],
    ids=lambda path: path.stem,
)
def test_a_methods_config_differs_from_its_twin_in_the_method_only(path):
    method, twin = dict(flat(loaded(path))), dict(flat(loaded(twin_of(path))))
    differing = {k for k in method if method[k] != twin[k]}
    own = tuple(f"MODEL.{node}." for node in method_nodes(path.stem))
    # ContrastiveSeg's and Contextrast's recipes for Cityscapes only differ in the test scales.
    allowed = (*own, "MODEL.SEM_SEG_HEAD.TERMS", "OUTPUT_DIR", "TEST.AUG.SCALES")
    assert differing and all(k.startswith(allowed) for k in differing)


# What makes each network small enough for a forward pass within a second.
TINY_RESNET = {
    "RESNETS.STEM_OUT_CHANNELS": 8,
    "RESNETS.RES2_OUT_CHANNELS": 16,
    "RESNETS.WIDTH_PER_GROUP": 4,
}
TINY_BACKBONES = {
    "r50": TINY_RESNET,
    "hrnet_w18": {"TIMM.NAME": "hrnet_w18_small"},
    "hrnet_w48": {"TIMM.NAME": "hrnet_w18_small"},
    "mobilenetv2": {"TIMM.NAME": "mobilenetv2_035"},
    "s101": {"TIMM.NAME": "resnest14d"},
    "swin_t": {"TIMM.DROP_PATH_RATE": 0.0},
    "vit_l": {
        "TIMM.NAME": "test_vit",
        "TIMM.IMAGE_SIZE": 64,
        "TIMM.OUT_FEATURES": ["block1", "block2", "block3", "block5"],
        "SEM_SEG_HEAD.IN_FEATURES": ["block5"],
        "SEM_SEG_HEAD.AUX.IN_FEATURES": ["block1", "block2", "block3"],
    },
}
TINY = {
    **{f"SEM_SEG_HEAD.{decoder}.CHANNELS": 16 for decoder in ("FCN", "OCR", "PSP", "UPER", "AUX")},
    "SEM_SEG_HEAD.OCR.KEY_CHANNELS": 8,
    "SEM_SEG_HEAD.ASPP_CHANNELS": 16,
    "SEM_SEG_HEAD.CONVS_DIM": 16,
    "PIXEL_CONTRAST.WARMUP": 0.0,
    "PIXEL_CONTRAST.MAX_VIEWS": 2,
    "PIXEL_CONTRAST.PROJECTOR.DIM": 8,
    "PIXEL_CONTRAST.MEMORY.REGION_SIZE": 4,
    "PIXEL_CONTRAST.MEMORY.PIXEL_SIZE": 8,
    "CONTEXTRAST.PROJECTOR.DIM": 8,
    "MULTI_SCALE_CONTRAST.PROJECTOR.DIM": 8,
    "MULTI_SCALE_CONTRAST.MAX_SAMPLES": 100,
    "DATASET_MEMORY.CHANNELS": 16,
    "DATASET_MEMORY.KEY_CHANNELS": 8,
    "DATASET_MEMORY.CONSISTENCY.START": 0.0,
}
STEPS = [
    *[
        ("Cityscapes", network, method, "40k")
        for network in (
            "deeplabv3_r50",
            "fcn_hrnet_w18",
            "ocr_hrnet_w48",
            "deeplabv3plus_mobilenetv2",
        )
        for method in ("ce", "pixcontrast", "pixcontrast_mem")
    ],
    ("Cityscapes", "fcn_hrnet_w18", "contextrast", "40k"),
    ("Cityscapes", "deeplabv3plus_mobilenetv2", "contextrast", "80k"),
    ("Cityscapes", "deeplabv3plus_mobilenetv2", "multiscale", "80k"),
    ("Cityscapes", "uper_swin_t", "ce", "80k"),
    ("Cityscapes", "uper_swin_t", "contextrast", "80k"),
    ("Cityscapes", "deeplabv3_hrnet_w48", "ce", "500ep-trainval"),
    ("Cityscapes", "deeplabv3_hrnet_w48", "mcibi", "500ep-trainval"),
    ("ADE20K", "deeplabv3_s101", "mcibi", "180ep"),
    ("ADE20K", "deeplabv3_r50", "mcibi_contextrast_pixcontrast_mem", "130ep"),
    ("ADE20K", "deeplabv3_vit_l", "ce", "130ep"),
    ("ADE20K", "deeplabv3_vit_l", "mcibi", "130ep"),
    ("ADE20K", "fcn_r50", "mcibi", "130ep"),
    ("ADE20K", "psp_r50", "ce", "130ep"),
    ("ADE20K", "psp_r50", "mcibi", "130ep"),
    ("ADE20K", "ocr_r50", "mcibi", "130ep"),
    ("ADE20K", "fcn_r50", "mcibi_pp", "130ep"),
    ("ADE20K", "uper_r50", "mcibi_pp", "130ep"),
]
LOSSES = {
    "pixcontrast": {"loss_pixel_contrast"},
    "pixcontrast_mem": {"loss_pixel_contrast"},
    "contextrast": {"loss_contextrast"},
    "multiscale": {"loss_multiscale_contrast", "loss_crossscale_contrast"},
    "mcibi": {"loss_sem_seg_stage1", "loss_memory_consistency"},
    "mcibi_pp": {"loss_sem_seg_stage1", "loss_sem_seg_context"},
}


def expected_losses(cfg, method):
    names = {"loss_sem_seg"}.union(*(LOSSES[m] for m in re.findall(METHOD, method)))
    if cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES or "OCR" in cfg.MODEL.SEM_SEG_HEAD.DECODER:
        names.add("loss_sem_seg_aux")
    if not cfg.MODEL.DATASET_MEMORY.CONSISTENCY.LOSS_WEIGHT:
        names.discard("loss_memory_consistency")
    if cfg.MODEL.SEM_SEG_HEAD.DECODER == "FCNDecoder":  # has no context within the image
        names.discard("loss_sem_seg_context")
    return names


@pytest.mark.parametrize("dataset, network, method, schedule", STEPS)
def test_one_tiny_step(dataset, network, method, schedule):
    options = {"DEVICE": "cpu", **TINY, **TINY_BACKBONES[network.split("_", 1)[1]]}
    pairs = [part for k, v in options.items() for part in (f"MODEL.{k}", v)]
    cfg = load_cfg(str(zoo_path(dataset, network, method, schedule)), pairs)
    torch.manual_seed(0)
    model = build_model(cfg)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    labels = torch.arange(64 * 96).view(64, 96) // 2048  # three bands of three classes
    labels[:2] = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    batch = [{"image": i, "sem_seg": labels, "height": 64, "width": 96} for i in images]
    model.train()
    model(batch)  # an empty memory contrasts with nothing: the second step counts
    losses = model(batch)
    assert set(losses) == expected_losses(cfg, method)
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    # DDP waits for every parameter's gradient.
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    model.eval()
    batch[0]["image"] = images[0, :, :51, :83]
    with torch.no_grad():
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        assert model(batch[:1])[0]["sem_seg"].shape == (classes, 64, 96)


def test_python_tags_are_refused(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "evil.yaml"
    path.write_text(f"SEED: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(ValueError, match="evil.yaml"):
        load_cfg(str(path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL:\n  PIXEL_CONTRAST:\n    TEMPERATUR: 0.1\n", r"TEMPERATUR"),
        ("SOLVER:\n  MAX_ITER: soon\n", r"MAX_ITER"),
        ("SOLVER: [1,\n", "wrong.yaml"),
    ],
)
def test_wrong_keys_types_and_yaml_name_file_and_key(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text("VERSION: 2\n" + text)
    with pytest.raises(ValueError, match=rf"(?s)wrong.yaml.*{message}|{message}.*wrong.yaml"):
        load_cfg(str(path))


def test_wrong_options_and_missing_file_are_named():
    with pytest.raises(ValueError, match=r"SOLVER.MAX_ITR"):
        load_cfg("", ["SOLVER.MAX_ITR", "5"])
    with pytest.raises(ValueError, match=r"no file nowhere.yaml"):
        load_cfg("nowhere.yaml")


def test_setup_py_imports_neither_torch_nor_detectron2():
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['detectron2'] = None; "
        "sys.argv = ['setup.py', '--version']; runpy.run_path('setup.py', run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith(d2_pixcontrast.__version__)
