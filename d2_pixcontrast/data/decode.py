"""A quicker way to the pixels of ordinary PNG and JPEG files, bit for bit those of Pillow."""

import io

import numpy as np
from PIL import Image

from .png import first_rows, has_exif

__all__ = ["decode_grey", "decode_rgb"]

_END = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_ORIENTATION = 274  # EXIF tag; 1 = upright
# Up to this share of a PNG's rows it is quicker to decode these alone.
_PART = 0.75


def decode_rgb(data: bytes, rows: int | None = None) -> np.ndarray | None:
    """Decode a whole, upright 8-bit RGB file with cv2; reading takes most of a loader's time.

    Args:
        data: the file's content.
        rows: how many rows from the top are needed: others may come out black. None = all.

    Returns:
        uint8 array (H, W, 3) in RGB order; None where Pillow has to decide: other formats and
        modes, rotations, and damaged files, which cv2 would fill with grey and not report.
    """
    image = Image.open(io.BytesIO(data))  # reads the header only
    if image.mode != "RGB" or not _is_whole(image, data):
        return None
    if image.format == "PNG":
        if image.tile[0][3] != "RGB" or has_exif(data):  # tile: 8 bits per channel
            return None
        if rows is not None and rows <= _PART * image.height:
            return _decode_rows(data, rows, image.size)
    elif image.getexif().get(_ORIENTATION, 1) != 1:
        return None
    return _imdecode_rgb(data)


def decode_grey(data: bytes) -> np.ndarray | None:
    """Decode a whole 8-bit grey PNG file with cv2, as most labels are.

    Returns:
        uint8 array (H, W); None where Pillow has to decide.
    """
    import cv2

    image = Image.open(io.BytesIO(data))
    if image.format != "PNG" or image.mode != "L" or not _is_whole(image, data):
        return None
    if image.tile[0][3] != "L":  # fewer bits, which are stretched
        return None
    label = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    # A transparent colour would make it four channels.
    return label if label is not None and label.ndim == 2 else None


def _is_whole(image: Image.Image, data: bytes) -> bool:
    return data.endswith(_END.get(image.format, b"-"))


def _decode_rows(data: bytes, rows: int, size: tuple[int, int]) -> np.ndarray | None:
    part = first_rows(data, rows)
    if part is None:
        return _imdecode_rgb(data)
    top = _imdecode_rgb(part)
    if top is None:
        return None
    image = np.zeros((size[1], size[0], 3), np.uint8)  # what is not touched costs nothing
    image[:rows] = top
    return image


def _imdecode_rgb(data: bytes) -> np.ndarray | None:
    import cv2

    rgb = getattr(cv2, "IMREAD_COLOR_RGB", None)  # OpenCV 4.11
    flags = (cv2.IMREAD_COLOR if rgb is None else rgb) | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None or rgb is not None:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
