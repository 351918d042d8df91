"""Looking into PNG files without decoding them, and decoding only what is needed of them."""

import struct
import zlib
from collections.abc import Iterator

__all__ = ["damaged_chunk", "first_rows", "has_exif"]

_MAGIC = b"\x89PNG\r\n\x1a\n"
_SIGNATURE = len(_MAGIC)  # bytes in front of the first chunk
_BLOCK = 0xFFFF  # bytes that an uncompressed block holds at most
_ORIENTED = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # keywords of text chunks


def has_exif(data: bytes) -> bool:
    """Whether a PNG file has EXIF data, in any of the two ways that there are, or XMP, which may
    say how the image is turned as well."""
    return any(
        kind == b"eXIf" or data.startswith(_ORIENTED, start) for kind, start, _ in _chunks(data)
    )


def damaged_chunk(data: bytes) -> str | None:
    """The kind of the first chunk of a PNG file that a picture needs and that is not what it was
    when it was written, by its checksum; None where there is none, and for other files.

    Decoders that do not look at checksums show some damage as noise.
    """
    if not data.startswith(_MAGIC):
        return None
    for kind, start, length in _chunks(data):
        if kind[:1].isupper() and not _is_intact(data, start, length):
            return kind.decode("latin-1")
    return None


def first_rows(data: bytes, rows: int) -> bytes | None:
    """An uncompressed PNG of the first rows of another one, bit for bit.

    Most of the time that a large PNG takes is spent on decompression, which has to begin at the top
    but not to go on to the bottom: a crop needs nothing of what is below it. The filters of the
    rows, which a decoder undoes much quicker than Python can, stay as they are.

    Args:
        data: a PNG file of 8-bit RGB.
        rows: how many, at most all.

    Returns:
        The file's content; None where rows cannot be had one by one (interlaced files) or the data
        is damaged.
    """
    width, _, *depth_to_filter, interlaced = struct.unpack(">II5B", data[16:29])
    if interlaced:
        return None
    left = rows * (1 + 3 * width)  # each row begins with the number of its filter
    stream, parts = zlib.decompressobj(), []
    view = memoryview(data)
    for kind, start, length in _chunks(data):
        if kind == b"IDAT" and left > 0:
            if not _is_intact(data, start, length):
                return None
            try:
                parts.append(stream.decompress(view[start : start + length], left))
            except zlib.error:
                return None
            left -= len(parts[-1])
    if left:
        return None
    header = struct.pack(">II5B", width, rows, *depth_to_filter, interlaced)
    chunks = ((b"IHDR", [header]), (b"IDAT", _stored(parts)), (b"IEND", []))
    return data[:_SIGNATURE] + b"".join(piece for chunk in chunks for piece in _chunk(*chunk))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of the content, and its length."""
    at = _SIGNATURE
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at + 8, length
        at += 8 + length + 4  # a checksum follows


def _is_intact(data: bytes, start: int, length: int) -> bool:
    """Whether a chunk fits its checksum, which is over its kind and content."""
    end = start + length
    found = zlib.crc32(memoryview(data)[start - 4 : end])
    return found == int.from_bytes(data[end : end + 4], "big") and len(data) >= end + 4


def _stored(parts: list[bytes]) -> list[bytes | memoryview]:
    """A zlib stream (RFC 1950, 1951) of blocks without compression: pieces that are not copied.

    ``zlib.compress(..., 0)`` gives the same, more slowly.
    """
    pieces, checksum = [b"\x78\x01"], zlib.adler32(b"")
    for part in parts:
        checksum = zlib.adler32(part, checksum)
        for start in range(0, len(part), _BLOCK):
            block = memoryview(part)[start : start + _BLOCK]
            pieces += [struct.pack("<BHH", 0, len(block), len(block) ^ 0xFFFF), block]
    return pieces + [struct.pack("<BHH", 1, 0, 0xFFFF), struct.pack(">I", checksum)]


def _chunk(kind: bytes, pieces: list[bytes | memoryview]) -> list[bytes | memoryview]:
    checksum = zlib.crc32(kind)
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    length = struct.pack(">I", sum(map(len, pieces)))
    return [length, kind, *pieces, struct.pack(">I", checksum)]
