"""The first rows of a PNG alone: bit for bit those of the whole."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image, PngImagePlugin

from d2_pixcontrast import add_pixcontrast_config
from d2_pixcontrast.data import SemSegMapper, mapper
from d2_pixcontrast.data.decode import decode_grey, decode_rgb
from d2_pixcontrast.data.labels import DataError, read_image
from d2_pixcontrast.data.png import first_rows, has_exif
from d2_pixcontrast.data.seeding import seeded


def _photo(height=120, width=90):
    """Smooth and noisy parts, so that all kinds of row filters are used."""
    ys, xs = np.mgrid[:height, :width]
    smooth = np.stack([xs + ys, 2 * xs, 255 - ys], -1) % 256
    noise = np.random.RandomState(0).randint(0, 256, (height, width, 3))
    return np.where((xs > width // 2)[..., None], noise, smooth).astype(np.uint8)


def _content(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path.read_bytes()


@pytest.mark.parametrize("rows", [1, 17, 89, 90, 119, 120])
def test_rows_are_those_of_the_whole_image(tmp_path, rows):
    image = _photo()
    out = decode_rgb(_content(tmp_path / "a.png", image), rows)
    np.testing.assert_array_equal(out[:rows], image[:rows])
    assert out.shape == image.shape
    if rows <= 90:  # else it is quicker to decode all
        assert not out[rows:].any()


def test_the_file_of_some_rows_is_a_valid_png(tmp_path):
    image = _photo(200, 400)  # more than one uncompressed block
    (tmp_path / "b.png").write_bytes(first_rows(_content(tmp_path / "a.png", image), 150))
    with Image.open(tmp_path / "b.png") as opened:
        opened.verify()  # all checksums
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), image[:150])


def test_many_chunks_and_other_chunks_between(tmp_path, monkeypatch):
    monkeypatch.setattr(PngImagePlugin.ImageFile, "MAXBLOCK", 128)  # size of PIL's IDAT chunks
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "eXIf is only a word here")
    image = _photo()
    data = _content(tmp_path / "a.png", image, pnginfo=info)
    assert data.count(b"IDAT") > 1
    np.testing.assert_array_equal(decode_rgb(data, 60)[:60], image[:60])
    assert not has_exif(data)


def test_exif_is_found(tmp_path):
    tags = Image.Exif()
    tags[274] = 6
    assert has_exif(_content(tmp_path / "a.png", _photo(), exif=tags))
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "...")
    assert has_exif(_content(tmp_path / "a.png", _photo(), pnginfo=info))


def test_damage_above_the_last_row_is_left_to_pillow(tmp_path):
    data = bytearray(_content(tmp_path / "a.png", _photo()))
    start = data.index(b"IDAT") + 4
    data[start + 40 : start + 60] = bytes(20)
    assert first_rows(bytes(data), 100) is None


def test_a_flipped_bit_in_the_rows_that_are_read_is_an_error(tmp_path):
    """Decompression goes on after many of them, and gives other pixels."""
    path = tmp_path / "a.png"
    whole = _content(path, _photo())
    start = whole.index(b"IDAT") + 4
    for at in np.random.RandomState(0).randint(start, start + 2000, 20):
        data = bytearray(whole)
        data[at] ^= 4
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"a\.png cannot be read"):
            read_image(str(path), "RGB", rows=60)


def test_interlaced_rows_cannot_be_had_one_by_one(tmp_path):
    data = bytearray(_content(tmp_path / "a.png", _photo()))
    data[28] = 1  # the header's last byte
    assert first_rows(bytes(data), 100) is None


@pytest.mark.parametrize("mode", ["P", "1", "I;16", "RGB", "LA"])
def test_only_grey_labels_of_8_bits_take_the_quick_way(tmp_path, mode):
    Image.new("L" if mode == "I;16" else mode, (4, 3)).convert(mode).save(tmp_path / "a.png")
    assert decode_grey((tmp_path / "a.png").read_bytes()) is None
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(decode_grey(_content(tmp_path / "b.png", grey)), grey)
    transparent = _content(tmp_path / "c.png", grey, transparency=3)
    out = decode_grey(transparent)
    assert out is None or np.array_equal(out, grey)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_mapper_gives_the_same_with_and_without(tmp_path, monkeypatch, suffix):
    Image.fromarray(_photo(200, 300)).save(tmp_path / f"image.{suffix}")
    label = np.random.RandomState(1).choice([0, 1, 2, 255], (200, 300)).astype(np.uint8)
    Image.fromarray(label).save(tmp_path / "label.png")
    sample = {
        "file_name": str(tmp_path / f"image.{suffix}"),
        "sem_seg_file_name": str(tmp_path / "label.png"),
    }
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = True, (60, 100)
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 32.0
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3

    def stream():
        outputs = []
        for seed in range(12):
            with seeded(seed, 0):
                out = SemSegMapper(cfg, is_train=True)(sample)
            outputs.append(np.concatenate([out["image"].numpy(), out["sem_seg"][None].numpy()]))
        return np.stack(outputs)

    asked = []
    read = mapper.read_image

    def spy(path, image_format, rows=None):
        asked.append(rows)
        return read(path, image_format, rows)

    monkeypatch.setattr(mapper, "read_image", spy)
    quick = stream()
    assert min(asked) < 0.75 * 200  # some crops did not need the bottom
    monkeypatch.setattr(mapper, "read_image", lambda path, form, rows=None: read(path, form))
    np.testing.assert_array_equal(stream(), quick)


def test_a_crop_that_looks_at_labels_reads_all_rows(tmp_path, monkeypatch):
    Image.fromarray(_photo(60, 60)).save(tmp_path / "image.png")
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(tmp_path / "label.png")
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = True, (16, 16)
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    asked = []
    read = mapper.read_image
    monkeypatch.setattr(
        mapper, "read_image", lambda path, form, rows: asked.append(rows) or read(path, form)
    )
    SemSegMapper(cfg, is_train=True)(
        {
            "file_name": str(tmp_path / "image.png"),
            "sem_seg_file_name": str(tmp_path / "label.png"),
        }
    )
    assert asked == [None]
