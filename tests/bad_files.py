"""Files that a data set should not hold, and some odd ones that it may."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 40)  # (height, width) of the good pair


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def ids(size=SIZE) -> np.ndarray:
    """Legal ids of three classes, and some 255."""
    label = np.random.RandomState(1).randint(0, 3, size).astype(np.uint8)
    label[0] = 255
    return label


def save(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def cut(path: Path, share: float = 0.5) -> None:
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def palette(path: Path, label: np.ndarray) -> None:
    image = Image.fromarray(label, "L")
    image.putpalette(list(noise(768)))
    image.save(path)


def giant_header(path: Path) -> None:
    """A PNG of a hundred bytes that says it has 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end)


def one_pixel(images: Path, labels: Path) -> None:
    save(images / "bad.png", noise(1, 1, 3))
    save(labels / "bad.png", np.array([[2]], np.uint8))


def long(images: Path, labels: Path) -> None:
    """20000 x 20 pixels."""
    save(images / "bad.png", noise(20, 20000, 3))
    save(labels / "bad.png", ids((20, 20000)))


def float_image(images: Path, value: float) -> None:
    array = noise(*SIZE).astype(np.float32)
    array[3, 4] = value
    (images / "bad.png").unlink()
    save(images / "bad.tif", array)


def as_jpeg(images: Path) -> Path:
    (images / "bad.png").unlink()
    return save(images / "bad.jpg", noise(*SIZE, 3))


def linked(folder: Path, target: Path) -> None:
    """bad.png as a link to a file elsewhere."""
    target.parent.mkdir(exist_ok=True)
    (folder / "bad.png").rename(target)
    (folder / "bad.png").symlink_to(target)
