"""Every key is read, every file is safe, loads and builds."""

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
from d2_pixcontrast.engine import load_cfg

FILES = sorted(CONFIGS.rglob("*.yaml"))
LEAVES = [path for path in FILES if not path.name.startswith("Base-")]
ids = [str(path.relative_to(CONFIGS)) for path in LEAVES]

# configs/<Dataset>-SemanticSegmentation/<decoder>_<backbone>_<method>_<schedule>.yaml, and what the
# words stand for.
ZOO = [path for path in LEAVES if path.parent.name.endswith("-SemanticSegmentation")]
DECODERS = {
    "deeplabv3": "DeepLabV3Decoder",
    "deeplabv3plus": "DeepLabV3PlusDecoder",
    "fcn": "FCNDecoder",
    "ocr": "OCRDecoder",
}
BACKBONES = {
    "r50": ("build_resnet_deeplab_backbone", 50),
    "r101": ("build_resnet_deeplab_backbone", 101),
    "hrnet_w18": ("build_timm_backbone", "hrnet_w18"),
    "hrnet_w48": ("build_timm_backbone", "hrnet_w48"),
    "mobilenetv2": ("build_timm_backbone", "mobilenetv2_100"),
}
METHODS = {"ce": [], "pixcontrast": ["PixelContrast"], "pixcontrast_mem": ["PixelContrast"]}
NAME = re.compile(
    f"({'|'.join(DECODERS)})_({'|'.join(BACKBONES)})_({'|'.join(METHODS)})_([a-z0-9-]+)"
)


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
    package = Path(d2_pixcontrast.__file__).parent
    source = "\n".join(p.read_text() for p in package.rglob("*.py") if p.name != "config.py")
    keys = own_keys()
    assert "MODEL.PIXEL_CONTRAST.MAX_VIEWS" in keys
    unread = [k for k in keys if not re.search(rf"\.{k.split('.')[-1]}\b", source)]
    assert not unread


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
    cfg = load_cfg(str(path))
    model, iterations = cfg.MODEL, re.match(r"(\d+)k\b", schedule)
    found = {
        "output": cfg.OUTPUT_DIR,
        "decoder": model.SEM_SEG_HEAD.DECODER,
        "backbone": (model.BACKBONE.NAME, model.RESNETS.DEPTH),
        "terms": model.SEM_SEG_HEAD.TERMS,
        "memory": model.PIXEL_CONTRAST.MEMORY.ENABLED,
        "iterations": cfg.SOLVER.MAX_ITER,
    }
    if model.BACKBONE.NAME == "build_timm_backbone":
        found["backbone"] = (model.BACKBONE.NAME, model.TIMM.NAME)
    assert found == {
        "output": f"output/{dataset.lower()}_{path.stem}",
        "decoder": DECODERS[decoder],
        "backbone": BACKBONES[backbone],
        "terms": METHODS[method],
        "memory": method == "pixcontrast_mem",
        "iterations": 1000 * int(iterations[1]) if iterations else cfg.SOLVER.MAX_ITER,
    }


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


@pytest.mark.parametrize(
    "dataset, schedule, numbers",
    [
        ("Cityscapes", "40k", (0.01, 1.0, 5e-4, 8, [512, 1024], 0.1)),
        ("PascalContext", "60k", (0.001, 10.0, 1e-4, 16, [520, 520], 0.07)),
        ("COCOStuff10K", "60k", (0.001, 10.0, 1e-4, 16, [520, 520], 0.07)),
        ("COCOStuff164K", "60k", (0.001, 10.0, 1e-4, 16, [520, 520], 0.07)),
        ("COCOPanopticStuffOnly", "60k", (0.001, 10.0, 1e-4, 16, [520, 520], 0.07)),
        ("ADE20K", "80k", (0.01, 1.0, 5e-4, 12, [512, 512], 0.07)),
        ("CamVid", "6k", (0.02, 1.0, 5e-4, 16, [360, 480], 0.07)),
    ],
)
def test_published_numbers_arrive_in_the_leaves(dataset, schedule, numbers):
    *numbers, temperature = numbers
    paths = [*(CONFIGS / f"{dataset}-SemanticSegmentation").glob(f"*_{schedule}.yaml")]
    assert len(paths) >= 3
    for path in paths:
        cfg = load_cfg(str(path))
        solver, contrast = cfg.SOLVER, cfg.MODEL.PIXEL_CONTRAST
        assert numbers == [
            *(solver.BASE_LR, solver.HEAD_LR_MULTIPLIER, solver.WEIGHT_DECAY),
            *(solver.IMS_PER_BATCH, cfg.INPUT.CROP.SIZE),
        ]
        assert tuple(cfg.INPUT.SCALE_RANGE) == (0.5, 2.0) and solver.POLY_LR_POWER == 0.9
        weights = cfg.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS
        assert len(weights) == (19 if dataset == "Cityscapes" else 0)
        if "_pixcontrast" not in path.name:
            continue
        taus = (contrast.TEMPERATURE, contrast.BASE_TEMPERATURE)
        assert taus == (temperature, 0.07), path
        assert contrast.LOSS_WEIGHT == 0.1
        assert contrast.WARMUP == 1 / 8 and contrast.MINING.MODE == "all"
        # The whole encoder of HRNet, with OCR too; otherwise its last stage.
        whole = cfg.MODEL.TIMM.OUT_FEATURES if "hrnet" in path.name else ["res5"]
        assert whole == contrast.IN_FEATURES, path
        assert (contrast.MEMORY.REGION_SIZE, contrast.MEMORY.PIXEL_SIZE) == (5000, 5000)


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


@pytest.mark.parametrize("width, dim", [("w18", 256), ("w48", 720)])
def test_mmsegmentations_numbers(width, dim):
    path = zoo_path("Cityscapes", f"fcn_hrnet_{width}", "pixcontrast", "40k-mmseg")
    cfg = load_cfg(str(path))
    head, contrast = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.PIXEL_CONTRAST
    assert (head.FCN.KERNEL_SIZE, head.FCN.DROPOUT, head.CLASS_WEIGHTS) == (1, 0.0, [])
    assert dict(contrast.PROJECTOR) == {"TYPE": "mlp", "DIM": dim, "NORM": ""}
    assert (contrast.TEMPERATURE, contrast.BASE_TEMPERATURE, contrast.WARMUP) == (0.1, 0.07, 0.0)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.IMS_PER_BATCH) == (
        0.01,
        2e-4,
        8,
    )


@pytest.mark.parametrize(
    "path", [p for p in LEAVES if "_pixcontrast" in p.name and p.parent.name != "quick_schedules"]
)
def test_a_methods_config_differs_from_its_twin_in_the_method_only(path):
    method = dict(flat(load_cfg(str(path))))
    twin = dict(flat(load_cfg(re.sub("_pixcontrast(_mem)?", "_ce", str(path)))))
    differing = {k for k in method if method[k] != twin[k]}
    allowed = ("MODEL.PIXEL_CONTRAST.", "MODEL.SEM_SEG_HEAD.TERMS", "OUTPUT_DIR")
    assert differing and all(k.startswith(allowed) for k in differing)


# What makes each family of networks small enough for a forward pass within a second.
TINY = {
    "deeplabv3_r50": {
        "RESNETS.STEM_OUT_CHANNELS": 8,
        "RESNETS.RES2_OUT_CHANNELS": 16,
        "RESNETS.WIDTH_PER_GROUP": 4,
        "SEM_SEG_HEAD.ASPP_CHANNELS": 16,
    },
    "fcn_hrnet_w18": {"TIMM.NAME": "hrnet_w18_small", "SEM_SEG_HEAD.FCN.CHANNELS": 16},
    "ocr_hrnet_w48": {
        "TIMM.NAME": "hrnet_w18_small",
        "SEM_SEG_HEAD.OCR.CHANNELS": 16,
        "SEM_SEG_HEAD.OCR.KEY_CHANNELS": 8,
    },
    "deeplabv3plus_mobilenetv2": {
        "TIMM.NAME": "mobilenetv2_035",
        "SEM_SEG_HEAD.ASPP_CHANNELS": 16,
        "SEM_SEG_HEAD.CONVS_DIM": 16,
    },
}
TINY_CONTRAST = {
    "PIXEL_CONTRAST.WARMUP": 0.0,
    "PIXEL_CONTRAST.MAX_VIEWS": 2,
    "PIXEL_CONTRAST.PROJECTOR.DIM": 8,
    "PIXEL_CONTRAST.MEMORY.REGION_SIZE": 4,
    "PIXEL_CONTRAST.MEMORY.PIXEL_SIZE": 8,
}


@pytest.mark.parametrize("method", ["ce", "pixcontrast", "pixcontrast_mem"])
@pytest.mark.parametrize("network", TINY)
def test_one_tiny_step(network, method):
    options = {"DEVICE": "cpu", **TINY[network], **TINY_CONTRAST}
    pairs = [part for k, v in options.items() for part in (f"MODEL.{k}", v)]
    cfg = load_cfg(str(zoo_path("Cityscapes", network, method, "40k")), pairs)
    torch.manual_seed(0)
    model = build_model(cfg)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    labels = torch.arange(64 * 96).view(64, 96) // 2048  # three bands of three classes
    labels[:2] = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    batch = [{"image": i, "sem_seg": labels, "height": 64, "width": 96} for i in images]
    model.train()
    model(batch)  # an empty memory contrasts with nothing: the second step counts
    losses = model(batch)
    expected = {"loss_sem_seg"}
    expected |= {"loss_sem_seg_aux"} if network.startswith(("deeplabv3_", "ocr")) else set()
    expected |= {"loss_pixel_contrast"} if method != "ce" else set()
    assert set(losses) == expected
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    # DDP waits for every parameter's gradient.
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    model.eval()
    with torch.no_grad():
        assert model(batch[:1])[0]["sem_seg"].shape == (19, 64, 96)


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
