"""Bad data, numbers, names and folders, each on the road that a training takes: one clear error.

What one part alone refuses is tried beside that part: label and image files in
data/test_labels.py, folders in data/test_folders.py, weights in engine/test_safe_loading.py,
checkpoints in engine/test_checkpoint_files.py, keys and types in test_config.py.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import uuid

import bad_files as files
import numpy as np
import pytest
import torch
from conftest import INSTANT_TEST, ROOT
from detectron2.data import DatasetCatalog, MetadataCatalog
from test_config import flat, own_keys

from d2_pixcontrast.config_numbers import RULES, check_numbers
from d2_pixcontrast.data import build_test_loader, build_train_loader, check_datasets
from d2_pixcontrast.data.labels import DataError, read_image, read_label
from d2_pixcontrast.data.resample import resize_shortest_edge
from d2_pixcontrast.engine import Trainer, evaluate, load_cfg, make_output_dir, setup_cfg
from d2_pixcontrast.engine.hints import training_hints
from d2_pixcontrast.engine.inference import load_inference_model
from d2_pixcontrast.modeling import TERM_REGISTRY, Term, build_model
from d2_pixcontrast.solver import build_lr_scheduler, build_optimizer

HEAD = "MODEL.SEM_SEG_HEAD."


def arguments(*opts, config=INSTANT_TEST, **flags):
    names = {"eval_only": False, "resume": False, "num_gpus": 1, "num_machines": 1, **flags}
    return argparse.Namespace(config_file=str(config), opts=[str(o) for o in opts], **names)


@pytest.fixture
def own_data(tmp_path):
    """(images, labels, options): a data set of two pairs, "bad" the first, in a folder with spaces
    and letters of other alphabets."""
    root, name = tmp_path / "Bäume & 道路 %s", f"own_{uuid.uuid4().hex}"
    images, labels = root / "images", root / "labels"
    for stem in ("bad", "good"):
        files.save(images / f"{stem}.png", files.noise(*files.SIZE, 3))
        files.save(labels / f"{stem}.png", files.ids())
    node = f"DATASETS.SEM_SEG_FOLDERS.{name}."
    options = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]
    options += [node + "IMAGES", images, node + "LABELS", labels, node + "CLASSES", "['a','b','c']"]
    options += [HEAD + "NUM_CLASSES", 3, "SOLVER.IMS_PER_BATCH", 2]
    yield images, labels, [*options, "OUTPUT_DIR", tmp_path / "output"]
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def first_samples(options):
    """The first batch of a training and all test samples."""
    cfg = setup_cfg(arguments(*options))
    batch = next(iter(build_train_loader(cfg)))
    return cfg, batch + [s for (s,) in build_test_loader(cfg, cfg.DATASETS.TEST[0])]


# What is done to the folders x of the images and y of the labels, and what has to be said then.
BAD_FILES = {
    "truncated PNG": (lambda x, y: files.cut(x / "bad.png"), r"images/bad\.png cannot be read"),
    "truncated JPEG": (lambda x, y: files.cut(files.as_jpeg(x)), r"images/bad\.jpg cannot be read"),
    "truncated label": (lambda x, y: files.cut(y / "bad.png"), r"labels/bad\.png cannot be read"),
    "empty image": (lambda x, y: (x / "bad.png").write_bytes(b""), r"images/bad\.png .* is empty"),
    "empty label": (lambda x, y: (y / "bad.png").write_bytes(b""), r"labels/bad\.png .* is empty"),
    "text": (lambda x, y: (x / "bad.png").write_text("no"), r"images/bad\.png .*no image format"),
    "RGB label": (
        lambda x, y: files.save(y / "bad.png", files.noise(*files.SIZE, 3)),
        r"labels/bad\.png has mode RGB, but a label stores one class id",
    ),
    "RGBA label": (
        lambda x, y: files.save(y / "bad.png", files.noise(*files.SIZE, 4)),
        r"labels/bad\.png has mode RGBA",
    ),
    "float label": (
        lambda x, y: (
            (y / "bad.png").unlink(),
            files.save(y / "bad.tif", files.ids().astype(np.float32)),
        ),
        r"labels/bad\.tif has mode F",
    ),
    "16-bit label": (
        lambda x, y: files.save(y / "bad.png", files.ids().astype(np.uint16) * 256),
        r"labels/bad\.png has value 256, 512, 65280 in \d+ pixels; legal are 0\.\.2",
    ),
    "palette beyond": (
        lambda x, y: files.palette(y / "bad.png", files.ids() + 9),
        r"labels/bad\.png has value 8, 9, 10, 11 in 960 pixels",
    ),
    "id out of range": (
        lambda x, y: files.save(y / "bad.png", np.full(files.SIZE, 3, np.uint8)),
        r"labels/bad\.png has value 3 in 960 pixels; .*NUM_CLASSES 3\) and 255",
    ),
    "other size": (
        lambda x, y: files.save(y / "bad.png", files.ids((24, 41))),
        r"images/bad\.png is 40x24 .*labels/bad\.png is 41x24",
    ),
    "NaN image": (lambda x, y: files.float_image(x, np.nan), r"images/bad\.tif has mode F.*8 bits"),
    "inf image": (lambda x, y: files.float_image(x, np.inf), r"images/bad\.tif has mode F"),
    "16-bit image": (
        lambda x, y: files.save(x / "bad.png", files.noise(*files.SIZE).astype(np.uint16) * 256),
        r"images/bad\.png has mode I;16.*8 bits",
    ),
    "giant image": (
        lambda x, y: files.giant_header(x / "bad.png"),
        r"images/bad\.png cannot be read: Image size \(3600000000 pixels\) exceeds",
    ),
    "giant label": (
        lambda x, y: files.giant_header(y / "bad.png"),
        r"labels/bad\.png cannot be read: Image size \(3600000000 pixels\) exceeds",
    ),
    "dangling link": (
        lambda x, y: ((x / "bad.png").unlink(), (x / "bad.png").symlink_to("/nowhere")),
        r"images/bad\.png does not exist",
    ),
    "link to itself": (
        lambda x, y: ((y / "bad.png").unlink(), (y / "bad.png").symlink_to("bad.png")),
        r"labels/bad\.png does not exist",
    ),
    "folder of that name": (
        lambda x, y: ((x / "bad.png").unlink(), (x / "bad.png").mkdir()),
        r"1 file is missing: .*images/bad\.",
    ),
    "two of a name": (
        lambda x, y: files.save(x / "bad.jpg", files.noise(*files.SIZE, 3)),
        r"images/bad\.\w+ and .*images/bad\.\w+ differ in nothing but their extension",
    ),
    "no label": (lambda x, y: (y / "bad.png").unlink(), r"1 file is missing: .*labels/bad\."),
    "no image": (lambda x, y: (x / "bad.png").unlink(), r"1 file is missing: .*images/bad\."),
    "no files": (
        lambda x, y: (shutil.rmtree(x), x.mkdir()),
        r"folder .*images has no file with an image's extension",
    ),
    "no folder": (lambda x, y: shutil.rmtree(y), r"folder .*labels does not exist"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(own_data, case):
    images, labels, options = own_data
    damage, message = BAD_FILES[case]
    damage(images, labels)
    with pytest.raises(ValueError, match=message) as caught:
        first_samples(options)
    assert "\n" not in str(caught.value) and "object at 0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["image", "JPEG", "label"])
def test_every_cut_of_a_real_file_is_seen(camvid_root, tmp_path, kind):
    folder = camvid_root / "camvid" / ("trainannot" if kind == "label" else "train")
    whole = min(path for path in folder.iterdir() if path.suffix == ".png")
    path = tmp_path / whole.name
    read = read_label if kind == "label" else lambda path: read_image(path, "RGB")
    if kind == "JPEG":
        path = path.with_suffix(".jpg")
        files.save(path, read(str(whole)))
    else:
        path.write_bytes(whole.read_bytes())
    data = path.read_bytes()
    for share in np.linspace(0, 0.99, 23):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(DataError, match=re.escape(f"{path} cannot be read")):
            read(str(path))


ODD_FILES = {
    "grey image": lambda x, y: files.save(x / "bad.png", files.noise(*files.SIZE)),
    "RGBA image": lambda x, y: files.save(x / "bad.png", files.noise(*files.SIZE, 4)),
    "palette": lambda x, y: files.palette(y / "bad.png", files.ids()),
    "16-bit ids": lambda x, y: files.save(y / "bad.png", files.ids().astype(np.uint16)),
    "link": lambda x, y: files.linked(x, x.parent / "else" / "x"),
    "link of a label": lambda x, y: files.linked(y, x.parent / "else" / "x"),
    "one pixel": files.one_pixel,
    "20000 x 20": files.long,
}


@pytest.mark.parametrize("case", ODD_FILES)
def test_odd_files_are_read(own_data, case):
    images, labels, options = own_data
    ODD_FILES[case](images, labels)
    cfg, samples = first_samples(options)
    assert len(samples) == 4
    assert all(s["sem_seg"].shape == tuple(cfg.INPUT.CROP.SIZE) for s in samples[:2])


@pytest.mark.parametrize("case, copies", [("one pixel", 2), ("20000 x 20", 1)])
def test_extreme_images_train_and_are_scored_whole(own_data, case, copies):
    images, labels, options = own_data
    ODD_FILES[case](images, labels)
    options += ["INPUT.CROP.ENABLED", "False", HEAD + "NORM", ""]
    cfg, samples = first_samples(options)
    model = build_model(cfg).train()
    bad = next(s for s in samples[:2] if "bad" in s["file_name"])
    losses = model([bad] * copies)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        for sample in samples[2:]:
            (result,) = model.eval()([sample])
            assert result["sem_seg"].shape[1:] == (sample["height"], sample["width"])


def test_no_side_is_resized_to_nothing():
    resize = resize_shortest_edge(1, 20000, 512, 2048)
    assert (resize.out_height, resize.out_width) == (1, 2048)


# What no number of a rule can be. A rule is known by its text.
NOT_A_NUMBER = [float("nan"), float("inf"), "1", None]
IMPOSSIBLE = {
    "above 0": [0, -0.1],
    "0 or more": [-1],
    "None, or 0 or more": [-1],
    "1 or more": [0, -3],
    "from 0 to 1": [-0.1, 2],
    "above 0 and at most 1": [0.0, 1.5],
    "from 0 to below 1": [-0.1, 1.0],
    "above 0 and at most 100": [0.0, 150.0],
    "1, 3, 5 or another odd number": [0, 2, -1],
    "one of 8, 16, 32": [0, 12],
    "one of 0, 1, 2": [-1, 3],
    "(height, width), each 1 or more": [5, [5], [0, 5], [5, -5], [0.5, 5], [5, 5, 5]],
    "empty or (height, width), each 1 or more": [5, [5], [0, 5], [0.5, 5], [5, 5, 5]],
    "(lowest, highest), both above 0": [1.0, [2.0, 0.5], [0.0, 1.0], [1.0], ["a", "b"]],
    "(lowest, highest), both 0 or more": [1.0, [2.0, 0.5], [-1.0, 1.0], [1.0]],
    "a list of numbers above 0": [1.0, [1.0, -1.0], [0.0], ["a"]],
    "a list of numbers above 0, at least one": [1.0, [1.0, 0.0], []],
    "empty or two numbers that are 0 or more": [1.0, [1.0], [1.0, -1.0]],
    "a list of whole numbers from 1, at least one": [1, [0], [1.5], []],
    "three numbers": [1.0, [1.0], [1.0, 2.0, float("nan")]],
    "three numbers above 0": [1.0, [1.0], [1.0, 0.0, 1.0]],
}


@pytest.fixture(scope="module")
def base_cfg():
    return load_cfg(str(INSTANT_TEST))


def with_value(cfg, key, value):
    cfg = cfg.clone()
    node, _, name = key.rpartition(".")
    parent = cfg
    for part in node.split("."):
        parent = parent[part]
    dict.__setitem__(parent, name, value)
    return cfg


@pytest.mark.parametrize("key", [*RULES, "INPUT.CROP.SIZE"])
def test_impossible_numbers_are_named(base_cfg, key):
    text = RULES[key].text if key in RULES else "(height, width), each 1 or more"
    for value in [*IMPOSSIBLE[text], *NOT_A_NUMBER]:
        if value is None and text.startswith("None, or"):
            check_numbers(with_value(base_cfg, key, value))
            continue
        message = re.escape(f"{key} is {value}; it has to be {text}")
        with pytest.raises(ValueError, match=message):
            check_numbers(with_value(base_cfg, key, value))


def test_every_number_of_ours_has_a_rule(base_cfg):
    values = dict(flat(base_cfg))

    def is_number(value):
        values = value if isinstance(value, (list, tuple)) else [value]
        return bool(values) and all(type(v) in (int, float) for v in values)

    assert not [key for key in own_keys() if is_number(values[key]) and key not in RULES]
    assert {HEAD + "CLASS_WEIGHTS", "MODEL.DATASET_MEMORY.SECOND_PASS"} < set(RULES)  # empty lists


@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.PIXEL_CONTRAST.MAX_SAMPLES", "0"),
        ("MODEL.PIXEL_CONTRAST.TEMPERATURE", "0.0"),
        ("MODEL.CONTEXTRAST.BANE.KEEP_PERCENT", "150.0"),
        ("MODEL.MULTI_SCALE_CONTRAST.WARMUP", "2.0"),
        ("SOLVER.BASE_LR", "-0.1"),
        ("SOLVER.MAX_ITER", "0"),
        ("SOLVER.IMS_PER_BATCH", "0"),
        ("SOLVER.CHECKPOINT_PERIOD", "0"),
        ("DATALOADER.NUM_WORKERS", "-1"),
        ("INPUT.SCALE_RANGE", "(2.0, 0.5)"),
        ("INPUT.CROP.SIZE", "[0, 96]"),
        ("TEST.SLIDING.STRIDE", "(600, 600)"),
    ],
)
def test_config_files_and_command_lines_are_checked(tmp_path, key, value):
    """Any road goes through load_cfg: training, prediction, export."""
    path = tmp_path / "own.yaml"
    lines = [f"{'  ' * n}{part}:" for n, part in enumerate(key.split("."))]
    path.write_text(f"_BASE_: {INSTANT_TEST}\n" + "\n".join(lines) + f" {value}\n")
    for attempt in ((str(path), []), (str(INSTANT_TEST), [key, value])):
        with pytest.raises(ValueError, match=re.escape(key + " is ")):
            load_cfg(*attempt)


FOLDER = "DATASETS: {SEM_SEG_FOLDERS: {own: {IMAGES: a, LABELS: b, CLASSES: %s}}}"
BAD_CONFIGS = {
    "empty": ("", "has to map keys to values"),
    "a number": ("5", "has to map keys to values"),
    "a list": ("[1, 2]", "has to map keys to values"),
    "its own base": ("_BASE_: bad.yaml", "_BASE_ leads back to itself"),
    "a number as base": ("_BASE_: 5", "has to map keys to values"),
    "no such base": ("_BASE_: nowhere.yaml", r"its _BASE_ .*nowhere\.yaml does not exist"),
    "a number as key": ("5: 6", "has to map keys to values"),
    "a value for a node": ("SOLVER: 5", "Type mismatch .*config key: SOLVER"),
    "a node for a value": ("SEED: {A: 1}", "Type mismatch .*config key: SEED"),
    "NaN": ("SOLVER: {BASE_LR: .nan}", "SOLVER.BASE_LR is nan"),
    "null": ("SOLVER: {BASE_LR: null}", "SOLVER.BASE_LR is None"),
    "a date": ("OUTPUT_DIR: 2020-01-01", "OUTPUT_DIR .* is not a valid type"),
    "a version": ("VERSION: x", "bad.yaml"),
    "a later version": ("VERSION: 99", "Cannot merge a v99 config"),
    "a tab": ("SOLVER:\n\tSEED: 1", "cannot start any token"),
    "a number of classes": (FOLDER % "5", "own: classes are a list of names, .* not 5"),
    "lists as classes": (FOLDER % "[[a]]", "own: classes are a list of names"),
    "names of colours": (FOLDER % "[a], COLORS: [red]", "own: a colour is 3 whole .* not 'red'"),
    "one colour": (FOLDER % "[a], COLORS: [1, 2, 3]", "own: a colour is 3 whole .* not 1"),
    "half pairs": (FOLDER % "[a], FLIP_PAIRS: [0, 1]", "own: a flip pair is 2 whole .* not 0"),
    "a folder that is none": ("DATASETS: {SEM_SEG_FOLDERS: {own: 4}}", "FOLDERS.own"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_configs_of_another_form_are_named(tmp_path, case):
    text, message = BAD_CONFIGS[case]
    path = tmp_path / "bad.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match=message):
        load_cfg(str(path))


@pytest.mark.parametrize("data", [bytes(range(256)), "SEED: 1".encode("utf-16")])
def test_configs_that_are_no_text_are_named(tmp_path, data):
    (tmp_path / "bad.yaml").write_bytes(data)
    with pytest.raises(ValueError, match=r"bad\.yaml: .* can't decode"):
        load_cfg(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    "options",
    [
        ["SEED.X", "1"],
        ["MODEL", "5"],
        ["", ""],
        ["SOLVER..X", "1"],
        ["SOLVER.MAX_ITER"],
        ["SOLVER.MAX_ITER", "1e3"],
        ["SOLVER.BASE_LR", "nan"],
        ["DATASETS.TRAIN", "camvid"],
        ["_BASE_", "x"],
    ],
)
def test_options_of_another_form_are_named(options):
    with pytest.raises(ValueError, match=re.escape("command line options " + " ".join(options))):
        load_cfg(str(INSTANT_TEST), options)


def road(cfg):
    """What a training builds before its first step, but for the trainer itself."""
    check_datasets(cfg)
    build_train_loader(cfg)
    model = build_model(cfg)
    build_lr_scheduler(cfg, build_optimizer(cfg, model))


@pytest.mark.parametrize(
    "options, message",
    [
        (["DATASETS.TRAIN", "('camvid_sem_seg_trian',)"], "trian is not registered; did you mean"),
        (["DATASETS.TRAIN", "(1,)"], "dataset 1 is not registered"),
        ([HEAD + "TERMS", "[1]"], "HEAD.TERMS is 1; known are"),
        ([HEAD + "IN_FEATURES", "[1]"], r"HEAD.IN_FEATURES is \[1\]"),
        (["INPUT.FORMAT", "YUV"], 'INPUT.FORMAT is "YUV"'),
        (["INPUT.RANDOM_FLIP", "both"], 'INPUT.RANDOM_FLIP is "both"'),
        (["MODEL.META_ARCHITECTURE", "X"], "MODEL.META_ARCHITECTURE is 'X'; known are"),
        (["MODEL.BACKBONE.NAME", "X"], "MODEL.BACKBONE.NAME is 'X'; known are"),
        ([HEAD + "NAME", "X"], r"HEAD.NAME \(or WRAPPED\) is 'X'; known are"),
        ([HEAD + "NORM", "X"], "HEAD.NORM is 'X'; known are"),
        (
            [*("MODEL.PIXEL_CONTRAST.PROJECTOR.NORM", "GN")]
            + ["MODEL.PIXEL_CONTRAST.IN_FEATURES", "['res2']"],
            r"PIXEL_CONTRAST.PROJECTOR.NORM is 'GN', whose 32 groups .*num_channels",
        ),
        (
            [HEAD + "NAME", "SemSegFPNHead"],
            "SemSegFPNHead runs no terms; set NAME ContrastWrapperHead and WRAPPED SemSegFPNHead",
        ),
        (
            [*(HEAD + "NAME", "ContrastWrapperHead", HEAD + "WRAPPED", "SemSegFPNHead")]
            + ["MODEL.DATASET_MEMORY.ENABLED", "True"],
            "NAME ContrastWrapperHead has no memory; set NAME PixelContrastSemSegHead",
        ),
        (["MODEL.PIXEL_CONTRAST.PROJECTOR.NORM", "X"], "PIXEL_CONTRAST.PROJECTOR.NORM is 'X'"),
        ([HEAD + "ASPP_DILATIONS", "[1, 2]"], "cannot be built: ASPP expects 3 dilations, got 2"),
        (
            ["MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone", "MODEL.RESNETS.DEPTH", "7"],
            r"cannot be built: KeyError\(7\) .*depth",
        ),
        ([HEAD + "CLASS_WEIGHTS", "[1.0, 2.0]"], "CLASS_WEIGHTS needs 8 positive numbers, got 2"),
        (["MODEL.PIXEL_CONTRAST.PROJECTOR.TYPE", "X"], "PROJECTOR.TYPE is 'X'"),
        (["MODEL.PIXEL_CONTRAST.MINING.MODE", "X"], "MINING.MODE is 'X'"),
        (["SOLVER.LR_SCHEDULER_NAME", "X"], "SOLVER.LR_SCHEDULER_NAME 'X'"),
        (
            ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "X"],
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE: 'X'",
        ),
    ],
)
def test_unknown_names_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        road(load_cfg(str(INSTANT_TEST), options))


def test_an_unknown_wrapped_head_is_named_in_evaluation_too(tmp_path):
    opts = [HEAD + "NAME", "ContrastWrapperHead", HEAD + "WRAPPED", "SemSegFPNHaed"]
    cfg = load_cfg(str(INSTANT_TEST), [*opts, "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", "x"])
    message = r"WRAPPED\) is 'SemSegFPNHaed'; did you mean SemSegFPNHead"
    with pytest.raises(ValueError, match=message):
        evaluate(cfg, Trainer)
    with pytest.raises(ValueError, match=message):
        load_inference_model(cfg, "x")


@pytest.mark.parametrize("device", ["cdua", "cpu:x", ""])
def test_an_unknown_device_is_named(tmp_path, device):
    with pytest.raises(ValueError, match=f"MODEL.DEVICE is '{device}'"):
        setup_cfg(arguments("MODEL.DEVICE", device, "OUTPUT_DIR", tmp_path / "run"))


def test_a_training_without_a_data_set_is_refused(tmp_path):
    options = "DATASETS.TRAIN", "()", "OUTPUT_DIR", tmp_path / "run"
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        setup_cfg(arguments(*options))
    assert setup_cfg(arguments(*options, eval_only=True))
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        setup_cfg(arguments(*options, "DATASETS.TEST", "()", eval_only=True))


def test_a_batch_that_the_processes_cannot_share_is_refused_before_they_start(tmp_path):
    options = "SOLVER.IMS_PER_BATCH", "12", "OUTPUT_DIR", tmp_path / "run"
    with pytest.raises(ValueError, match="is 12, which 8 processes .*; 1, 2, 3, 4, 6, 12 can"):
        setup_cfg(arguments(*options, num_gpus=4, num_machines=2))
    assert setup_cfg(arguments(*options, num_gpus=8, eval_only=True))
    assert setup_cfg(arguments(*options, num_gpus=6))


@pytest.mark.parametrize(
    "options, processes, hints",
    [
        ([], 1, []),
        ([], 4, ["one image, and PixelContrast on those of a process: nothing is contrasted"]),
        (["MODEL.PIXEL_CONTRAST.MEMORY.ENABLED", "True"], 4, []),
        (
            [HEAD + "TERMS", "['Contextrast', 'MultiScaleContrast', 'PixelContrast']"],
            4,
            ["and Contextrast and MultiScaleContrast and P"],
        ),
        (
            [HEAD + "TERMS", "['Contextrast']", "MODEL.CONTEXTRAST.ANCHORS.ALL_RANKS", "True"],
            4,
            ["^MODEL.PIXEL_CONTRAST.IN_FEATURES, .*does not name PixelContrast"],
        ),
        (["INPUT.MIN_SIZE_TRAIN", "(512,)"], 1, [r"MIN_SIZE_TRAIN \(512,\) is not used"]),
        (["SOLVER.STEPS", "(30,)"], 1, [r"SOLVER.STEPS \(30,\) is not used"]),
        (["SOLVER.STEPS", "(30,)", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"], 1, []),
        (
            ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
            1,
            ["SAMPLER_TRAIN Rep.*used"],
        ),
        (["TEST.AUG.MIN_SIZES", "(400,)"], 1, [r"\(400,\) is not used: .*TEST.AUG.SCALES \[0.75"]),
        (["MODEL.BACKBONE.FREEZE_AT", "5"], 1, ["FREEZE_AT 5 is not used: all layers of a timm"]),
        (["MODEL.BACKBONE.FREEZE_AT", "0"], 1, []),
        (
            ["MODEL.CONTEXTRAST.LOSS_WEIGHT", "0.3", "MODEL.DATASET_MEMORY.CHANNELS", "64"],
            1,
            [
                "^MODEL.CONTEXTRAST.LOSS_WEIGHT: not used, since .*TERMS does not name Contextrast",
                "^MODEL.DATASET_MEMORY.CHANNELS: not used, since .*ENABLED is False",
            ],
        ),
        (["MODEL.PIXEL_CONTRAST.MEMORY.PIXEL_SIZE", "64"], 1, ["MEMORY.PIXEL_SIZE: .*is False"]),
    ],
)
def test_what_training_does_otherwise_than_one_may_think_is_told(options, processes, hints):
    found = training_hints(load_cfg(str(INSTANT_TEST), options), processes)
    assert len(found) == len(hints)
    for text, hint in zip(found, hints, strict=True):
        assert re.search(hint, text)


def test_unknown_terms_are_refused_before_any_process_starts():
    with pytest.raises(ValueError, match=r"TERMS is 'PixelContrst'; did you mean PixelContrast"):
        setup_cfg(arguments(HEAD + "TERMS", "['PixelContrst']"))
    with pytest.raises(ValueError, match="TERMS names a term twice"):
        setup_cfg(arguments(HEAD + "TERMS", "['PixelContrast', 'PixelContrast']"))


def test_a_term_from_outside_is_told_of_too(monkeypatch):
    class Alone(Term):
        @classmethod
        def within_process(cls, cfg):
            return True

    monkeypatch.setitem(TERM_REGISTRY._obj_map, "Alone", Alone)
    cfg = load_cfg(str(INSTANT_TEST), [HEAD + "TERMS", "['Alone']"])
    assert "Alone on those of a process" in training_hints(cfg, cfg.SOLVER.IMS_PER_BATCH)[0]


def test_an_output_folder_that_cannot_be_written_to_is_named(tmp_path, small_cfg, monkeypatch):
    (tmp_path / "file").touch()
    small_cfg.OUTPUT_DIR = str(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match=r"OUTPUT_DIR '.*/file/run' cannot be made: Not a dir"):
        make_output_dir(small_cfg)
    small_cfg.OUTPUT_DIR = str(tmp_path / "file")
    with pytest.raises(ValueError, match=r"OUTPUT_DIR '.*/file' cannot be made: File exists"):
        make_output_dir(small_cfg)
    small_cfg.OUTPUT_DIR = str(tmp_path / "run")
    make_output_dir(small_cfg)
    # Root may write everywhere; elsewhere the system says no.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"OUTPUT_DIR '.*/run' cannot be written to"):
        make_output_dir(small_cfg)


def train_net(*args):
    return subprocess.run(
        [sys.executable, "train_net.py", "--config-file", INSTANT_TEST, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_bad_file_ends_a_training_in_one_line(own_data, tmp_path):
    images, _, options = own_data
    files.cut(images / "bad.png")
    done = train_net(*options, "DATALOADER.NUM_WORKERS", "1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"{images}/bad.png cannot be read" in last
    assert "DataError" in (tmp_path / "output" / "traceback_rank0.txt").read_text()


def test_an_unknown_wrapped_head_ends_an_evaluation_in_one_line(tmp_path):
    names = [HEAD + "NAME", "ContrastWrapperHead", HEAD + "WRAPPED", "X"]
    done = train_net("--eval-only", *names, "OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", "x")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "(or WRAPPED) is 'X'; known are" in done.stderr.strip().splitlines()[-1]
