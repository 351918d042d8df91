"""The font of legends and captions."""

import functools
from pathlib import Path

from PIL import ImageFont

_NAME = "DejaVuSans.ttf"


@functools.cache
def load_font(size: int):
    """A font with the letters of most alphabets, which Pillow's own lacks.

    DejaVu Sans of the system, else the one that comes with matplotlib, else Pillow's own, which
    draws a box for what is not Latin-1.

    Args:
        size: pixels.
    """
    for path in (lambda: _NAME, _matplotlibs):
        try:
            return ImageFont.truetype(path(), size)
        except (OSError, ImportError):  # no such file, or a Pillow without FreeType
            continue
    return ImageFont.load_default(size)


def shortened(text: str, font, width: float) -> str:
    """``text``, without its beginning where that is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"


def _matplotlibs() -> str:
    import matplotlib  # only where it is needed: slow to import, and an extra

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / _NAME)
