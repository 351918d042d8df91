"""Every key is read, every file is safe, loads and builds."""

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
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config

import d2_pixcontrast
from d2_pixcontrast import add_pixcontrast_config
from d2_pixcontrast.engine import load_cfg

FILES = sorted(CONFIGS.rglob("*.yaml"))
LEAVES = [path for path in FILES if not path.name.startswith("Base-")]
ids = [str(path.relative_to(CONFIGS)) for path in LEAVES]


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


@pytest.mark.parametrize("path", LEAVES, ids=ids)
def test_config_builds_and_agrees_with_its_data(path):
    cfg = load_cfg(str(path), ["MODEL.DEVICE", "meta"])
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        assert len(metadata.stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        assert metadata.ignore_label == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    with torch.device("meta"):
        model = build_model(cfg)
    assert set(model.sem_seg_head.terms) == set(cfg.MODEL.SEM_SEG_HEAD.TERMS)


@pytest.mark.parametrize(
    "path", [p for p in LEAVES if "_pixcontrast" in p.name and p.parent.name != "quick_schedules"]
)
def test_a_methods_config_differs_from_its_twin_in_the_method_only(path):
    method = dict(flat(load_cfg(str(path))))
    twin = dict(flat(load_cfg(str(path).replace("_pixcontrast", "_ce"))))
    differing = {k for k in method if method[k] != twin[k]}
    allowed = ("MODEL.PIXEL_CONTRAST.", "MODEL.SEM_SEG_HEAD.TERMS", "OUTPUT_DIR")
    assert differing and all(k.startswith(allowed) for k in differing)


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
