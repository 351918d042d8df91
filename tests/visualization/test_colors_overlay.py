from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ImageFont

from d2_pixcontrast.visualization import VOID_COLOR, class_colors, colorize, legend, overlay
from d2_pixcontrast.visualization.fonts import load_font
from d2_pixcontrast.visualization.overlay import boundaries

COLORS = np.array([[10, 20, 30], [200, 100, 0]], dtype=np.uint8)


class Metadata(SimpleNamespace):
    def get(self, key, default=None):
        return getattr(self, key, default)


def test_colors_are_the_metadatas():
    metadata = Metadata(name="x", stuff_classes=["a", "b"], stuff_colors=[(1, 2, 3), (4, 5, 6)])
    assert class_colors(metadata).tolist() == [[1, 2, 3], [4, 5, 6]]
    metadata.stuff_colors = [(1, 2, 3)]
    with pytest.raises(ValueError, match="x has 2 classes, but 1 colours"):
        class_colors(metadata)


def test_palette_without_metadata_is_distinct_and_the_same_each_time():
    metadata = Metadata(name="x", stuff_classes=[str(i) for i in range(40)])
    colors = class_colors(metadata)
    assert colors.dtype == np.uint8 and colors.shape == (40, 3)
    assert len(np.unique(colors, axis=0)) == 40
    assert np.array_equal(colors, class_colors(metadata))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_colorize(dtype):
    ids = np.array([[0, 1, 255], [1, 0, 2]], dtype=dtype)
    drawn = colorize(ids, COLORS)
    assert drawn.dtype == np.uint8
    expected = [[COLORS[0], COLORS[1], VOID_COLOR], [COLORS[1], COLORS[0], VOID_COLOR]]
    assert np.array_equal(drawn, expected)
    assert np.array_equal(colorize(np.array([[-1]]), COLORS, (9, 9, 9)), [[[9, 9, 9]]])


def test_boundaries():
    ids = np.zeros((5, 6), dtype=np.int64)
    ids[:, 3:] = 1
    expected = np.zeros((5, 6), dtype=bool)
    expected[:, 2:4] = True
    assert np.array_equal(boundaries(ids), expected)
    assert not boundaries(np.ones((4, 4))).any()


def test_overlay_blends_inside_and_is_opaque_at_boundaries():
    image = np.full((6, 8, 3), 100, dtype=np.uint8)
    ids = np.zeros((6, 8), dtype=np.uint8)
    ids[:, 4:] = 1
    drawn = overlay(image, ids, COLORS, alpha=0.25)
    assert np.array_equal(drawn[:, 3], np.tile(COLORS[0], (6, 1)))
    assert np.array_equal(drawn[:, 4], np.tile(COLORS[1], (6, 1)))
    blended = (0.75 * 100 + 0.25 * COLORS[1].astype(float)).round()
    assert np.array_equal(drawn[0, 7], blended)


def test_overlay_shows_colours_of_classes_alone():
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    image[..., 0] = 255
    drawn = overlay(image, np.zeros((4, 4), dtype=np.uint8), np.array([[50, 50, 50]]))
    assert np.array_equal(drawn[..., 0], drawn[..., 1])


def test_overlay_scales_and_checks_sizes():
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    assert overlay(image, np.zeros((4, 6), int), COLORS, scale=3).shape == (12, 18, 3)
    with pytest.raises(ValueError, match=r"\(4, 6\) and ids \(6, 4\)"):
        overlay(image, np.zeros((6, 4), int), COLORS)


def test_legend_wraps_and_shows_every_colour():
    names = ["background", "disc"]
    wide, narrow = legend(names, COLORS, width=400), legend(names, COLORS, width=130)
    assert wide.shape[1] == 400 and narrow.shape[1] == 130
    assert narrow.shape[0] == 2 * wide.shape[0]
    for color in COLORS:
        assert (wide == color).all(axis=-1).any() and (narrow == color).all(axis=-1).any()


@pytest.mark.parametrize("width", [100, 200])
def test_a_long_name_keeps_its_end_and_the_legend_its_width(width):
    drawn = legend(["W" * 40 + " end"], COLORS[:1], width=width)
    assert drawn.shape[1] == width and (drawn[:, -3:] == 255).all()
    assert np.array_equal(drawn, legend(["V" + "W" * 40 + " end"], COLORS[:1], width=width))
    assert not np.array_equal(drawn, legend(["W" * 40 + " and"], COLORS[:1], width=width))


def glyph(font, letter):
    return bytes(font.getmask(letter))


@pytest.fixture(params=["the system's", "matplotlib's"])
def font(request, monkeypatch):
    """Of either source; skipped where there is none."""
    truetype = ImageFont.truetype

    def choose(path, size):
        if (path == "DejaVuSans.ttf") != (request.param == "the system's"):
            raise OSError
        return truetype(path, size)

    monkeypatch.setattr(ImageFont, "truetype", choose)
    load_font.cache_clear()
    font = load_font(14)
    monkeypatch.undo()
    load_font.cache_clear()
    if "DejaVu" not in font.getname()[0]:
        pytest.skip("not installed")
    return font


def test_letters_of_other_alphabets_are_no_boxes(font):
    boxes = {glyph(font, letter) for letter in "\ue000\U000f0000"}
    drawn = {glyph(font, letter) for letter in "ßüñŁłőžДжΩשع→"}
    assert len(drawn) == 13 and not boxes & drawn


def test_without_any_font_there_is_pillows_own(monkeypatch):
    def none(*arguments):
        raise OSError

    monkeypatch.setattr(ImageFont, "truetype", none)
    monkeypatch.setattr(ImageFont, "load_default", lambda size: f"Pillow's {size}")
    load_font.cache_clear()
    assert load_font(11) == "Pillow's 11"
    load_font.cache_clear()
