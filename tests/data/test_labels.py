"""Labels come out as stored; whatever cannot be used is named."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from d2_pixcontrast.data.labels import (
    DataError,
    check_label,
    check_same_size,
    read_image,
    read_label,
)

IDS = np.arange(48).reshape(6, 8)


def _save(path, array, palette=False, **kwargs):
    image = Image.fromarray(array)
    if palette:
        image.putpalette(np.random.RandomState(0).randint(0, 256, 768).tolist())
    image.save(path, **kwargs)
    return str(path)


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (IDS.astype(np.uint8), {}),
        (IDS.astype(np.uint8), {"palette": True}),
        ((IDS % 16).astype(np.uint8), {"palette": True, "bits": 4}),
        ((IDS * 1000).astype(np.uint16), {}),
        (IDS % 3 == 0, {}),
    ],
    ids=["grey", "palette", "palette-4-bit", "16-bit", "1-bit"],
)
def test_ids_are_read_as_stored(tmp_path, array, options):
    label = read_label(_save(tmp_path / "label.png", array, **options))
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, array)


def test_32_bit_ids_are_read_as_stored(tmp_path):
    label = read_label(_save(tmp_path / "label.tif", (IDS * 100_000).astype(np.int32)))
    np.testing.assert_array_equal(label, IDS * 100_000)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_png_of_few_bits_is_not_stretched(tmp_path, bits):
    import cv2  # Pillow cannot write such files; a palette file is turned into one

    ids = (IDS % 2**bits).astype(np.uint8)
    path = _save(tmp_path / "label.png", ids, palette=True, bits=bits)
    _palette_to_grey(tmp_path / "label.png")
    assert Image.open(path).mode == "L"
    np.testing.assert_array_equal(read_label(path), ids)
    assert cv2.imread(path, cv2.IMREAD_GRAYSCALE).max() == 255  # others do stretch


def _palette_to_grey(path) -> None:
    """Rewrite a palette PNG: colour type 3 becomes 0, and the palette goes."""
    data = path.read_bytes()
    out, at = data[:8], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length
        if kind == b"IHDR":
            body = body[:9] + b"\0" + body[10:]
        if kind not in (b"PLTE", b"tRNS"):
            out += struct.pack(">I", length) + kind + body
            out += struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(out)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_label_whose_compression_changes_ids_is_refused(tmp_path, mode):
    path = str(tmp_path / "ids.jpg")
    Image.new(mode, (16, 16), 3).save(path, quality=95)
    with pytest.raises(DataError, match=r"ids\.jpg is a JPEG.* save them as PNG"):
        read_label(path)
    assert read_image(path, "RGB").shape == (16, 16, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_label_with_several_channels_is_refused(tmp_path, mode):
    path = str(tmp_path / "colours.png")
    Image.new(mode, (4, 3)).save(path)
    with pytest.raises(DataError, match=rf"colours\.png has mode {mode}"):
        read_label(path)


@pytest.mark.parametrize("read", [read_label, lambda path: read_image(path, "RGB")])
@pytest.mark.parametrize("damage", ["missing", "truncated", "not an image", "empty"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_unreadable_file_is_named(tmp_path, read, damage, suffix):
    path = tmp_path / f"broken.{suffix}"
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
    if damage == "truncated":
        _save(path, noise)
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage != "missing":
        path.write_bytes(b"" if damage == "empty" else b"hello, world " * 20)
    with pytest.raises(DataError, match=rf"broken\.{suffix}"):
        read(str(path))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("reader", ["image", "label"])
def test_no_damage_within_a_png_goes_unnoticed(tmp_path, mode, reader):
    """Flips a bit here and there: such a file used to come out as half an image."""
    path, random = tmp_path / "image.png", np.random.RandomState(0)
    rows = np.linspace(0, 200, 96).astype(np.uint8)
    smooth = rows[:, None, None] + random.randint(0, 8, (96, 120, 3), np.uint8)
    Image.fromarray(smooth).convert(mode).save(path)
    whole = path.read_bytes()
    start = whole.index(b"IDAT") + 4
    for at in random.randint(start, len(whole) - 16, 25):
        data = bytearray(whole)
        data[at] ^= 1 << random.randint(8)
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"image\.png (cannot be read|has mode)"):
            read_image(str(path), "RGB") if reader == "image" else read_label(str(path))


def test_damage_that_no_checksum_shows_is_left_to_the_decoder(tmp_path):
    """A wrong stream of pixels in a chunk that fits its checksum."""
    path = tmp_path / "image.png"
    _save(path, np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8))
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    data[start + length // 2 : start + length] = bytes(length - length // 2)
    checksum = zlib.crc32(data[start - 4 : start + length])
    data[start + length : start + length + 4] = checksum.to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"image\.png cannot be read"):
        read_image(str(path), "RGB")


@pytest.mark.parametrize("read", [read_label, lambda path: read_image(path, "RGB")])
def test_a_file_too_large_for_pillow_is_named_with_the_limit(tmp_path, read, monkeypatch):
    _save(tmp_path / "huge.png", np.zeros((8, 8), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(
        DataError, match=r"huge\.png .*\(64 pixels\) exceeds limit of 60 .*; cut it into tiles"
    ):
        read(str(tmp_path / "huge.png"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
@pytest.mark.parametrize("format", ["RGB", "BGR"])
@pytest.mark.parametrize("exif", [False, True])
def test_image_is_that_of_detectron2(tmp_path, suffix, format, exif):
    from detectron2.data.detection_utils import read_image as reference

    noise = np.random.RandomState(0).randint(0, 256, (20, 30, 3), np.uint8)
    options = {}
    if exif and suffix != "bmp":
        tags = Image.Exif()
        tags[274] = 6  # rotated by a quarter turn
        options["exif"] = tags
    path = _save(tmp_path / f"image.{suffix}", noise, **options)
    image = read_image(path, format)
    assert image.dtype == np.uint8
    assert image.shape == ((30, 20, 3) if options else (20, 30, 3))
    np.testing.assert_array_equal(image, reference(path, format))


def test_an_image_that_its_xmp_turns_is_that_of_detectron2(tmp_path):
    from detectron2.data.detection_utils import read_image as reference

    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    noise = np.random.RandomState(0).randint(0, 256, (20, 30, 3), np.uint8)
    path = _save(tmp_path / "image.png", noise, pnginfo=info)
    assert read_image(path, "RGB").shape == (30, 20, 3)
    np.testing.assert_array_equal(read_image(path, "RGB"), reference(path, "RGB"))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_images_are_converted_to_rgb(tmp_path, mode):
    from detectron2.data.detection_utils import read_image as reference

    path = str(tmp_path / "image.tif")
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).convert(mode).save(path)
    np.testing.assert_array_equal(read_image(path, "RGB"), reference(path, "RGB"))


def test_legal_label_passes():
    check_label(np.array([[0, 10], [11, 255]]), 12, 255, "a.png")
    check_label(np.array([[255, 255]]), 12, 255, "a.png")
    check_label(np.array([[0, 11]]), 11, 11, "a.png")


@pytest.mark.parametrize("value", [-1, 12, 254, 70000])
def test_value_out_of_range_is_named_with_its_file(value):
    with pytest.raises(DataError) as error:
        check_label(np.array([[0, value], [value, 255]]), 12, 255, "some/a.png")
    text = str(error.value)
    assert f"some/a.png has value {value} in 2 pixels" in text
    assert "0..11" in text and "255" in text and "\n" not in text


def test_different_sizes_are_named_with_both_files():
    with pytest.raises(DataError, match=r"a\.jpg is 3x2 .* b\.png is 4x2$") as caught:
        check_same_size(np.zeros((2, 3, 3)), np.zeros((2, 4)), "a.jpg", "b.png")
    assert "EXIF" not in str(caught.value)
    with pytest.raises(DataError, match="2x3; the image is read as its EXIF orientation turns it"):
        check_same_size(np.zeros((2, 3, 3)), np.zeros((3, 2)), "a.jpg", "b.png")
