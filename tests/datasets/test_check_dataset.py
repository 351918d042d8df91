"""The command: what it looks at, and its exit code."""

import numpy as np
import pytest
from conftest import INSTANT_TEST
from dataset_scripts import script
from detectron2.data import DatasetCatalog
from PIL import Image

from d2_pixcontrast.data.datasets import shapes


@pytest.fixture
def folders(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8)).save(tmp_path / kind / "a.png")
    return ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]


def main(*arguments):
    return script("check_dataset").main([*arguments, "--workers", "1"])


def test_two_folders(folders, capsys, tmp_path):
    assert main(*folders) == 0
    assert main(*folders, "--classes", "x", "y", "z") == 0
    capsys.readouterr()
    assert main(*folders, "--classes", "x", "y") == 1
    assert "a.png has ids that are no class: [2]" in capsys.readouterr().out
    assert main(*folders, "--classes", "x", "y", "--ignore-value", "2") == 1
    assert "no class: [255]" in capsys.readouterr().out
    (tmp_path / "classes.txt").write_text("one 1 2 3\ntwo 2 3 4\nthree 4 5 6\n")
    assert main(*folders, "--classes", str(tmp_path / "classes.txt")) == 0
    assert "three" in capsys.readouterr().out


@pytest.fixture
def few_shapes(monkeypatch, tmp_path):
    monkeypatch.setenv("PIXCONTRAST_CACHE", str(tmp_path))
    monkeypatch.setattr(shapes, "SPLITS", {"train": 3, "val": 2})


def test_registered_names_and_a_config(few_shapes, capsys):
    assert main("--dataset", "shapes_sem_seg_val") == 0
    assert "shapes_sem_seg_val: 2 pairs" in capsys.readouterr().out
    assert main("--config-file", str(INSTANT_TEST)) == 0
    out = capsys.readouterr().out
    assert "shapes_sem_seg_train: 3 pairs" in out and "shapes_sem_seg_val: 2 pairs" in out


def test_images_that_cannot_be_read_are_listed(folders, capsys):
    Image.fromarray(np.full((2, 2), 500, np.uint16)).save(f"{folders[1]}/a.png")
    assert main(*folders) == 1
    out = capsys.readouterr().out
    assert "a.png has mode I;16" in out and "1 error" in out


@pytest.mark.parametrize("key, value", [("IGNORE_VALUE", 11), ("NUM_CLASSES", 3)])
def test_a_model_that_contradicts_the_files_is_an_error(few_shapes, capsys, key, value):
    options = [f"MODEL.SEM_SEG_HEAD.{key}", str(value)]
    assert main("--config-file", str(INSTANT_TEST), *options) == 1
    out, err = capsys.readouterr()
    assert "shapes_sem_seg_val: 2 pairs" in out and f"{options[0]} is {value}" in err


def test_a_wrong_name_is_one_line(capsys):
    assert main("--dataset", "shapes_sem_seg_vall") == 1
    assert "did you mean shapes_sem_seg_val" in capsys.readouterr().err


def test_a_set_of_ones_own_without_labels_is_told_in_the_report(folders, capsys):
    DatasetCatalog.register("no_labels", lambda: [{"file_name": folders[1] + "/a.png"}])
    try:
        assert main("--dataset", "no_labels") == 1
    finally:
        DatasetCatalog.remove("no_labels")
    assert 'dataset no_labels has no "sem_seg_file_name"' in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["--images", "x"], ["--dataset", "a", "--images", "x", "--labels", "y"]]
)
def test_what_does_not_go_together_is_refused(arguments):
    with pytest.raises(SystemExit) as error:
        main(*arguments)
    assert error.value.code == 2
