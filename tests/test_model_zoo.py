"""Detectron2's four functions on the packaged configs, and a wheel that holds them."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CONFIGS, ROOT
from detectron2.modeling import build_model

from d2_pixcontrast import inference_config, model_zoo
from d2_pixcontrast.engine.weights_file import file_sha256

CONFIG = "quick_schedules/shapes_pixcontrast_instant_test.yaml"


@pytest.fixture
def table(small_cfg, tmp_path, monkeypatch):
    """(path of a table with one trained model, that model)."""
    torch.manual_seed(5)
    model = build_model(inference_config(small_cfg))
    torch.save({"model": model.state_dict()}, tmp_path / "mine.pth")
    entry = {"url": "mine.pth", "sha256": file_sha256(tmp_path / "mine.pth")}
    path = tmp_path / "zoo.yaml"
    path.write_text(yaml.safe_dump({CONFIG: entry}))
    monkeypatch.setenv(model_zoo.TABLE_VARIABLE, str(path))
    return path, model


def test_configs_by_their_name():
    for path in sorted(CONFIGS.rglob("*.yaml")):
        name = path.relative_to(CONFIGS).as_posix()
        assert Path(model_zoo.get_config_file(name)).resolve() == path
    cfg = model_zoo.get_config(CONFIG)
    assert cfg.MODEL.SEM_SEG_HEAD.TERMS == ["PixelContrast"] and not cfg.is_frozen()


def test_a_wrong_name_gets_similar_ones():
    wrong = CONFIG.replace("pixcontrast", "pixelcontrast")
    with pytest.raises(ValueError, match=f"{wrong}.*did you mean {CONFIG}"):
        model_zoo.get_config_file(wrong)


def test_a_name_without_its_folder_gets_near_ones():
    with pytest.raises(ValueError, match="CamVid-.*_mobilenetv2_ce_cpu.yaml") as caught:
        model_zoo.get_config_file("deeplabv3plus_mobilenetv2_ce_cpu")
    assert str(caught.value).count(".yaml") == 3 and "are known" in str(caught.value)
    with pytest.raises(ValueError, match="the nearest are .*yaml"):
        model_zoo.get_config_file("typo")


def test_without_a_table_the_error_says_how_to_write_one(monkeypatch):
    monkeypatch.delenv(model_zoo.TABLE_VARIABLE, raising=False)
    for call in (model_zoo.get_checkpoint_url, lambda c: model_zoo.get_config(c, trained=True)):
        with pytest.raises(ValueError, match=rf"{CONFIG}.*{model_zoo.TABLE_VARIABLE}.*sha256"):
            call(CONFIG)


def test_a_model_to_train(monkeypatch):
    monkeypatch.delenv(model_zoo.TABLE_VARIABLE, raising=False)
    model = model_zoo.get(CONFIG, device="cpu")
    assert model.training and set(model.sem_seg_head.terms) == {"PixelContrast"}


@pytest.mark.parametrize("form", ["yaml", "json", "absolute"])
def test_a_trained_model(table, form):
    path, trained = table
    entry = yaml.safe_load(path.read_text())[CONFIG]
    if form == "absolute":
        entry["url"] = str(path.parent / "mine.pth")
    path.write_text(json.dumps({CONFIG: entry}) if form == "json" else yaml.dump({CONFIG: entry}))
    assert model_zoo.get_config(CONFIG, trained=True).MODEL.WEIGHTS.endswith("mine.pth")
    model = model_zoo.get(CONFIG, trained=True, device="cpu")
    assert not model.training and not len(model.sem_seg_head.terms)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name])


def test_urls_stay_as_they_are(table):
    path, _ = table
    entry = {"url": "https://example.org/a.pth", "sha256": "0" * 64}
    path.write_text(yaml.dump({CONFIG: entry}))
    assert model_zoo.get_checkpoint_url(CONFIG) == entry["url"]


def test_another_file_than_the_tables_is_refused(table):
    path, model = table
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    torch.save({"model": state}, path.parent / "mine.pth")
    with pytest.raises(ValueError, match=r"mine.pth is not the file .* SHA-256 is [0-9a-f]{64}"):
        model_zoo.get(CONFIG, trained=True, device="cpu")
    (path.parent / "mine.pth").unlink()
    with pytest.raises(ValueError, match="mine.pth"):
        model_zoo.get(CONFIG, trained=True, device="cpu")


@pytest.mark.parametrize(
    "text", ["[]", "a: 1", f"{CONFIG}: {{url: x}}", f"{CONFIG}: {{url: x, sha256: 12}}", "a: ["]
)
def test_a_wrong_table_is_named(table, text):
    path, _ = table
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{model_zoo.TABLE_VARIABLE}: .*{re.escape(path.name)}"):
        model_zoo.get_checkpoint_url(CONFIG)


def test_a_wheel_holds_every_module_and_config(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("d2_pixcontrast", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    code = (
        "from setuptools import build_meta; "
        f"print(build_meta.build_wheel({str(tmp_path / 'wheel')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheel").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        for path in CONFIGS.rglob("*.yaml"):
            name = f"d2_pixcontrast/model_zoo/configs/{path.relative_to(CONFIGS).as_posix()}"
            assert archive.read(name) == path.read_bytes()
        modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "d2_pixcontrast").rglob("*.py")}
        assert len(modules) > 100 and modules <= set(archive.namelist())
