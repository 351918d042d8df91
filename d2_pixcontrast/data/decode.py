"""A quicker way to the pixels of ordinary PNG and JPEG files, bit for bit those of Pillow."""

import io

import numpy as np
from PIL import Image

__all__ = ["decode_rgb"]

_END = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_ORIENTATION = 274  # EXIF tag; 1 = upright


def decode_rgb(data: bytes) -> np.ndarray | None:
    """Decode a whole, upright 8-bit RGB file with cv2; reading takes most of a loader's time.

    Args:
        data: the file's content.

    Returns:
        uint8 array (H, W, 3) in RGB order; None where Pillow has to decide: other formats and
        modes, rotations, and damaged files, which cv2 would fill with grey and not report.
    """
    image = Image.open(io.BytesIO(data))  # reads the header only
    if image.mode != "RGB" or not data.endswith(_END.get(image.format, b"-")):
        return None
    if image.format == "PNG":
        # An 8-bit file without EXIF, in any of the two ways that PNG knows.
        if image.tile[0][3] != "RGB" or b"eXIf" in data or b"Raw profile type exif" in data:
            return None
    elif image.getexif().get(_ORIENTATION, 1) != 1:
        return None
    return _decode(data)


def _decode(data: bytes) -> np.ndarray | None:
    import cv2

    image = cv2.imdecode(
        np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    )
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
