"""Pictures side by side, with captions and a legend."""

import numpy as np
from PIL import Image, ImageDraw

from .fonts import load_font, shortened

GAP = 8  # pixels between pictures and around them
_INK = (22, 25, 29)


def panel_row(panels: list[tuple[str, np.ndarray]], *, font_size: int = 14) -> np.ndarray:
    """Pictures of one height side by side, each below its caption.

    Args:
        panels: (caption, (H, W, 3) uint8) with W of their own.
        font_size: of the captions, in pixels. Captions that are too long lose their beginning.

    Returns:
        (h, w, 3) uint8.

    Raises:
        ValueError: the pictures differ in height.
    """
    heights = {picture.shape[0] for _, picture in panels}
    if len(heights) != 1:
        raise ValueError(f"pictures of one row have different heights: {sorted(heights)}")
    font = load_font(font_size)
    top = round(1.9 * font_size)
    width = GAP + sum(picture.shape[1] + GAP for _, picture in panels)
    canvas = Image.new("RGB", (width, top + heights.pop() + GAP), "white")
    draw, x = ImageDraw.Draw(canvas), GAP
    for caption, picture in panels:
        text = shortened(caption, font, picture.shape[1])
        draw.text((x, top / 2), text, fill=_INK, font=font, anchor="lm")
        canvas.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, top))
        x += picture.shape[1] + GAP
    return np.asarray(canvas)


def stack(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures below each other; narrower ones are filled up with white on the right."""
    width = max(picture.shape[1] for picture in pictures)
    return np.vstack(
        [
            np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255)
            for p in pictures
        ]
    )


def resize_to_height(image: np.ndarray, height: int) -> np.ndarray:
    """(H, W, 3) uint8 to (height, W', 3) with the same aspect."""
    width = max(round(image.shape[1] * height / image.shape[0]), 1)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
