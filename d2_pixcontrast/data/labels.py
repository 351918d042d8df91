"""Reading images and labels: ids exactly as stored, and errors that name the file."""

import io
import os

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from .decode import decode_grey, decode_rgb
from .png import damaged_chunk

__all__ = ["DataError", "check_label", "check_same_size", "read_image", "read_label"]

# PIL modes in which one stored number per pixel is left as it is.
_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")
_LOSSY = ("JPEG", "MPO")
# PIL stretches grey PNGs of 2 and 4 bits to 0..255; these factors undo it.
_STRETCHED = {"L;2": 85, "L;4": 17}


class DataError(ValueError):
    """Input data that cannot be used. The message names the file and what is wrong with it."""


def read_label(path: str, *, compact: bool = False) -> np.ndarray:
    """Read a label file.

    Palette files give the indices, not the colours; 1 to 8-bit, 16-bit and 32-bit grey files give
    the numbers stored.

    Args:
        path: an image file, local or known to detectron2's path manager.
        compact: leave the ids of files of up to 8 bits in 8 bits, which is quicker.

    Returns:
        array (H, W), int32, or uint8 where ``compact`` allows it.

    Raises:
        DataError: the file is missing, cannot be decoded, has several channels, or is a JPEG,
            whose compression makes up ids along every boundary.
    """
    with _naming("label", path):
        with PathManager.open(path, "rb") as file:
            data = file.read()
        label = decode_grey(data)
        if label is None:
            label = _decode_ids(data, path)
    return label if compact and label.dtype == np.uint8 else label.astype(np.int32)


def _decode_ids(data: bytes, path: str) -> np.ndarray:
    _check_intact(data)
    image = Image.open(io.BytesIO(data))
    if image.format in _LOSSY:
        raise DataError(
            f"label {path} is a JPEG, whose compression changes ids, above all at boundaries; take "
            "the labels that it was made of, or draw new ones, and save them as PNG"
        )
    stretched = _STRETCHED.get(_raw_mode(image), 1)
    label = np.asarray(image)
    if image.mode not in _ID_MODES:
        raise DataError(
            f"label {path} has mode {image.mode}, but a label stores one class id per pixel "
            "(palette or grey); convert its colours to ids first"
        )
    return label // label.dtype.type(stretched) if stretched > 1 else label


def read_image(path: str, format: str, rows: int | None = None) -> np.ndarray:
    """Read an image as :func:`detectron2.data.detection_utils.read_image` does (EXIF included).

    Args:
        path: an image file, local or known to detectron2's path manager.
        format: order of the channels, "RGB" or "BGR".
        rows: how many rows from the top are needed, which may save time: others may come out
            black, and damage to them unnoticed. None = all.

    Returns:
        uint8 array (H, W, 3).

    Raises:
        DataError: the file is missing, cannot be decoded, or has no 8-bit channels.
    """
    with _naming("image", path):
        with PathManager.open(path, "rb") as file:
            data = file.read()
        image = decode_rgb(data, rows)
        if image is None:
            return _decode_image(data, path, format)
        return image[:, :, ::-1] if format == "BGR" else image


def _decode_image(data: bytes, path: str, format: str) -> np.ndarray:
    """What detectron2's read_image does, without its second look at the file, and with errors."""
    _check_intact(data)
    image = Image.open(io.BytesIO(data))
    _check_depth(image.mode, path)
    # Before the orientation is asked for: what goes wrong in decoding then is swallowed with what
    # goes wrong in EXIF, and half an image comes out.
    image.load()
    image = detection_utils._apply_exif_orientation(image)
    return detection_utils.convert_PIL_to_numpy(image, format)


def _check_intact(data: bytes) -> None:
    if kind := damaged_chunk(data):
        raise OSError(f"it is damaged (the checksum of its {kind} chunk is wrong)")


def _check_depth(mode: str, path: str) -> None:
    """Refuse what Pillow would clip to 0..255: 16 and 32-bit grey, and floats, NaN among them."""
    if mode.startswith(("I", "F")):
        raise DataError(
            f"image {path} has mode {mode}, one number of more than 8 bits per pixel; convert it "
            "to 8 bits per channel first"
        )


def check_label(label: np.ndarray, num_classes: int, ignore_value: int, path: str) -> None:
    """Raise :class:`DataError` unless all of ``label`` (H, W) is in 0..num_classes-1 or ignored."""
    wrong = label[((label < 0) | (label >= num_classes)) & (label != ignore_value)]
    if not wrong.size:
        return
    values = np.unique(wrong)
    found = ", ".join(str(value) for value in values[:10]) + (", ..." if len(values) > 10 else "")
    raise DataError(
        f"label {path} has value {found} in {wrong.size} pixels; legal are "
        f"0..{num_classes - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes}) "
        f"and {ignore_value} (IGNORE_VALUE)"
    )


def check_same_size(image: np.ndarray, label: np.ndarray, image_path: str, label_path: str) -> None:
    """Raise :class:`DataError` unless image (H, W, 3) and label (H, W) have the same size."""
    if image.shape[:2] != label.shape:
        hint = ""
        if image.shape[:2] == label.shape[::-1]:
            hint = "; the image is read as its EXIF orientation turns it, the label as it is stored"
        raise DataError(
            f"image {image_path} is {image.shape[1]}x{image.shape[0]} (width x height), "
            f"but its label {label_path} is {label.shape[1]}x{label.shape[0]}{hint}"
        )


class _naming:
    """Turn whatever decoding raises into one error that names the file."""

    def __init__(self, kind: str, path: str):
        self.kind, self.path = kind, path

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{self.kind} {self.path} does not exist") from error
        # PIL reports broken files in several ways, a bare SyntaxError among them.
        if isinstance(error, UnidentifiedImageError):  # its message names the buffer
            size = os.path.getsize(PathManager.get_local_path(self.path))
            what = "no image format that is known" if size else "empty"
            raise DataError(f"{self.kind} {self.path} cannot be read: it is {what}") from error
        if isinstance(error, Image.DecompressionBombError):
            raise DataError(
                f"{self.kind} {self.path} cannot be read: {str(error).rstrip('.')}; "
                "cut it into tiles"
            ) from error
        if isinstance(error, Exception) and not isinstance(error, DataError):
            raise DataError(f"{self.kind} {self.path} cannot be read: {error}") from error


def _raw_mode(image: Image.Image) -> str | None:
    if not image.tile:
        return None
    arguments = image.tile[0][3]
    return arguments if isinstance(arguments, str) else None
