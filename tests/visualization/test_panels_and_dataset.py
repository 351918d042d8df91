"""Rows of pictures, and what the model is fed."""

import numpy as np
import pytest
import yaml
from conftest import INSTANT_TEST
from PIL import Image

from d2_pixcontrast.visualization.dataset import main
from d2_pixcontrast.visualization.overlay import hatch, label_overlay, legend, legend_of, overlay
from d2_pixcontrast.visualization.panels import GAP, panel_row, resize_to_height, stack

COLORS = np.array([[10, 20, 30], [200, 100, 0]], dtype=np.uint8)


def test_panels_stand_side_by_side_below_their_captions():
    red, blue = np.full((20, 30, 3), (255, 0, 0), np.uint8), np.full((20, 50, 3), 7, np.uint8)
    row = panel_row([("red", red), ("a caption too long for its picture", blue)])
    top = len(row) - GAP - 20
    assert row.shape[1] == 30 + 50 + 3 * GAP
    assert (row[top : top + 20, GAP : GAP + 30] == red).all()
    assert (row[top : top + 20, 2 * GAP + 30 : -GAP] == blue).all()
    assert (row[:top, :GAP] == 255).all() and (row[:top, GAP : GAP + 30] < 128).any()
    assert (row[:, -GAP:] == 255).all()  # the caption does not leave its picture
    with pytest.raises(ValueError, match="different heights"):
        panel_row([("a", red), ("b", blue[:10])])


def test_stack_and_resize():
    picture = np.zeros((10, 20, 3), np.uint8)
    assert resize_to_height(picture, 25).shape == (25, 50, 3)
    stacked = stack([picture, np.zeros((4, 30, 3), np.uint8)])
    assert stacked.shape == (14, 30, 3) and (stacked[:10, 20:] == 255).all()


def test_void_is_hatched_and_nothing_else():
    ids = np.zeros((30, 40), np.int64)
    ids[:, 20:] = 255
    image = np.full((30, 40, 3), 90, np.uint8)
    plain, hatched = overlay(image, ids, COLORS), label_overlay(image, ids, COLORS)
    changed = (plain != hatched).any(axis=-1)
    assert not changed[:, :20].any() and 0.2 < changed[:, 20:].mean() < 0.4
    before = plain.copy()
    hatch(plain, ids == 255)
    assert (plain == before).all()


def test_the_legend_names_what_occurs():
    maps = [np.array([[1, 1]]), np.array([255])]
    drawn = legend_of(maps, ["a", "b"], COLORS, width=400)
    expected = legend(["b", "not labelled (hatched)"], [COLORS[1], (255, 255, 255)], width=400)
    assert (drawn == expected).all()


def draw(folder, made_up_dataset, *arguments):
    name, _ = made_up_dataset
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(
        yaml.safe_dump({"_BASE_": str(INSTANT_TEST), "DATASETS": {"TRAIN": [name], "TEST": [name]}})
    )
    main(["--config-file", str(config), "--num-images", "2", "--output", str(folder), *arguments])
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def test_what_the_model_is_fed(made_up_dataset, tmp_path):
    grey = ("MODEL.PIXEL_MEAN", "[99, 99, 99]")  # of the padding
    first = draw(tmp_path / "a", made_up_dataset, *grey, "INPUT.FORMAT", "BGR")
    again = draw(tmp_path / "b", made_up_dataset, *grey, "INPUT.FORMAT", "RGB")
    other = draw(tmp_path / "c", made_up_dataset, "--seed", "1", *grey)
    assert len(first) == 2
    # The order of the channels does not show, another seed does.
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other))
    for picture in first:
        assert picture.shape[0] > 96 * 3  # crops of 96 pixels are enlarged


def test_bad_arguments_end_in_one_line(made_up_dataset, tmp_path):
    with pytest.raises(SystemExit, match="--num-images has to be at least 1"):
        draw(tmp_path / "a", made_up_dataset, "--num-images", "0")
    with pytest.raises(SystemExit, match="nothing is not registered"):
        draw(tmp_path / "a", made_up_dataset, "DATASETS.TRAIN", "('nothing',)")
