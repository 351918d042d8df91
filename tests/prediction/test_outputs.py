"""Names and numbers in the written files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from d2_pixcontrast.data import DataError
from d2_pixcontrast.prediction.cityscapes import submission_name, to_label_ids
from d2_pixcontrast.prediction.compare import captions, find_checkpoints
from d2_pixcontrast.prediction.inputs import (
    InputImage,
    below_common_root,
    dataset_inputs,
    find_inputs,
    unique_names,
)
from d2_pixcontrast.prediction.outputs import ResultWriter
from d2_pixcontrast.prediction.predictor import Prediction


def prediction_of(ids, num_classes):
    scores = torch.zeros(num_classes, *ids.shape)
    scores.scatter_(0, torch.from_numpy(ids)[None], 1.0)
    return Prediction(scores, are_probabilities=True)


@pytest.mark.parametrize("classes, dtype", [(255, np.uint8), (256, np.uint16), (300, np.uint16)])
def test_ids_survive_the_label_file(tmp_path, classes, dtype):
    ids = np.random.RandomState(0).randint(0, classes, (5, 7))
    ids[0, 0] = classes - 1
    names = [str(index) for index in range(classes)]
    writer = ResultWriter(tmp_path, names, np.zeros((classes, 3), np.uint8))
    writer.write(
        InputImage("x.png", "x"), np.zeros((5, 7, 3), np.uint8), prediction_of(ids, classes)
    )
    written = np.asarray(Image.open(tmp_path / "label" / "x.png"))
    assert written.dtype == dtype and np.array_equal(written, ids)


def test_cityscapes_submission(tmp_path):
    ids = np.arange(19).reshape(1, 19)
    names = [str(index) for index in range(19)]
    writer = ResultWriter(tmp_path, names, np.zeros((19, 3), np.uint8), submission=True)
    source = InputImage("in/berlin_000123_000019_leftImg8bit.png", "berlin/b")
    writer.write(source, np.zeros((1, 19, 3), np.uint8), prediction_of(ids, 19))
    path = tmp_path / "cityscapes" / "berlin_000123_000019_pred.png"
    written = np.asarray(Image.open(path))
    expected = "7 8 11 12 13 17 19 20 21 22 23 24 25 26 27 28 31 32 33"
    assert written.dtype == np.uint8 and written[0].tolist() == list(map(int, expected.split()))
    with pytest.raises(IndexError):
        to_label_ids(np.array([[19]]))
    for name in ("berlin.png", "berlin_1_2_leftImg8bit.png", "berlin_000123_000019_x.png"):
        with pytest.raises(DataError, match="not named as Cityscapes"):
            submission_name(name)


def test_names():
    assert unique_names([Path("a/x.png"), Path("b/x.png")]) == ["a/x", "b/x"]
    assert unique_names([Path("x.png"), Path("x.jpg"), Path("y.v2.png")]) == [
        *("x_png", "x_jpg", "y.v2"),
    ]
    # Even where one file has the name that another would get.
    crowd = ["a.png", "a.jpg", "a_png.jpg", "a.PNG", "b/a.png", "a.png"]
    names = unique_names([Path(name) for name in crowd])
    assert names == ["a_png_2", "a_jpg", "a_png", "a_PNG", "b/a", "a_png_3"]


@pytest.mark.parametrize(
    "specs, expected",
    [
        (["runs/a/model_final.pth", "runs/b/model_final.pth"], ["a/model_final", "b/model_final"]),
        (["runs/a.pth", "other/b.pth"], ["a", "b"]),
        (["a.pth", "a.safetensors"], ["a.pth", "a.safetensors"]),
        (["a.pth", "a.pth"], ["1. a", "2. a"]),
        (["x.yaml:r/a.pth", "k/y.yaml:r/a.pth"], ["x", "y"]),
        (["x.yaml:a.pth", "y.yaml:a.pth", "y.yaml:b.pth"], ["x: a", "y: a", "y: b"]),
    ],
)
def test_captions_tell_checkpoints_apart(specs, expected):
    assert captions(find_checkpoints(specs, "common.yaml")) == expected


def test_inputs(tmp_path):
    for name in (
        "in/b.PNG",
        "in/sub/a.jpg",
        "in/notes.txt",
        "empty/notes.txt",
        "other/strange.dat",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_inputs([str(tmp_path / "in")])
    assert [image.name for image in found] == ["b", "sub/a"]
    twice = find_inputs([str(tmp_path / "in"), str(tmp_path / "in" / "b.PNG")])
    assert [image.name for image in twice] == ["b", "sub/a"]
    files = find_inputs([str(tmp_path / "other/strange.dat"), str(tmp_path / "in/b.PNG")])
    assert [image.name for image in files] == ["other/strange", "in/b"]
    with pytest.raises(DataError, match="has no image"):
        find_inputs([str(tmp_path / "empty")])
    (tmp_path / "in/._b.PNG").touch()  # macOS
    assert [image.name for image in find_inputs([str(tmp_path / "in")])] == ["b", "sub/a"]


def test_linked_folders_are_followed_but_not_round_in_circles(tmp_path):
    for name in ("in/a.png", "elsewhere/b.png", "elsewhere/folder.png/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/loop").symlink_to("../in")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    found = find_inputs([str(tmp_path / "in")])
    assert [image.name for image in found] == ["a", "sub/b", "sub/folder.png/c"]


def test_scores_of_nan_are_no_prediction(tmp_path):
    prediction = prediction_of(np.zeros((5, 7), int), 3)
    prediction.scores[1, 2] = torch.nan
    with pytest.raises(ValueError, match="scores are NaN in 7 of 35 pixels; has its training"):
        _ = prediction.classes


def test_names_stay_below_the_output_folder(tmp_path, monkeypatch):
    for name in ("project/photos/a.png", "data/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "project")
    found = find_inputs(["../data", "photos", "../project/photos/a.png"])
    assert [image.name for image in found] == ["data/b", "project/photos/a"]
    clips = below_common_root(["../data/x.mp4", "photos/x.mp4"])
    assert list(map(str, clips)) == ["data/x.mp4", "project/photos/x.mp4"]


def test_a_data_set_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DataError, match="cityscapes"):
        dataset_inputs("cityscapes_fine_sem_seg_val")
    DatasetCatalog.register("nothing_there", list)
    try:
        with pytest.raises(DataError, match="nothing_there is empty"):
            dataset_inputs("nothing_there")
    finally:
        DatasetCatalog.pop("nothing_there")
