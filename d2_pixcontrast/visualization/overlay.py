"""Segmentations drawn over their images, and the legend that explains the colours."""

import numpy as np
from PIL import Image, ImageDraw

from .colors import VOID_COLOR, class_index, colorize
from .fonts import load_font, shortened


def overlay(
    image: np.ndarray,
    ids: np.ndarray,
    colors: np.ndarray,
    *,
    alpha: float = 0.55,
    void_color: tuple[int, int, int] = VOID_COLOR,
    scale: int = 1,
) -> np.ndarray:
    """Blend class colours into an image; where two classes meet, both show their full colour.

    The image is shown in grey, so that a colour always means a class.

    Args:
        image: (H, W, 3) uint8 RGB.
        ids: (H, W) class ids; whatever is outside 0..C-1 is void.
        colors: (C, 3) uint8 RGB.
        alpha: share of the class colour inside a region, 0 to 1.
        void_color: RGB of void.
        scale: enlarge both first, so that the boundaries of a small image are thin.

    Returns:
        (H * scale, W * scale, 3) uint8.

    Raises:
        ValueError: image and ids differ in size.
    """
    if image.shape[:2] != ids.shape:
        raise ValueError(f"image {image.shape[:2]} and ids {ids.shape} (height, width) differ")
    grey = np.asarray(Image.fromarray(enlarge(image, scale)).convert("L"))[..., None]
    index = class_index(ids, len(colors)).repeat(scale, axis=0).repeat(scale, axis=1)
    color = colorize(index, colors, void_color).astype(np.float32)
    share = np.where(boundaries(index), 1.0, alpha)[..., None].astype(np.float32)
    return (grey * (1 - share) + color * share).round().astype(np.uint8)


def label_overlay(
    image: np.ndarray, ids: np.ndarray, colors: np.ndarray, *, scale: int = 1
) -> np.ndarray:
    """As :func:`overlay`, with pixels that have no class hatched."""
    picture = overlay(image, ids, colors, scale=scale)
    void = class_index(ids, len(colors)) == len(colors)
    period = max(10, round(len(picture) / 30))  # as many stripes in a picture of any size
    return hatch(picture, void.repeat(scale, axis=0).repeat(scale, axis=1), period)


def boundaries(ids: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels with a pixel of another id above, below, left or right of them."""
    edge = np.zeros(ids.shape, dtype=bool)
    vertical, horizontal = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    edge[1:] |= vertical
    edge[:-1] |= vertical
    edge[:, 1:] |= horizontal
    edge[:, :-1] |= horizontal
    return edge


def hatch(picture: np.ndarray, region: np.ndarray, period: int = 10) -> np.ndarray:
    """Diagonal stripes over a region, for pixels that have no class.

    Args:
        picture: (H, W, 3) uint8.
        region: (H, W) bool.
        period: of the stripes, in pixels along a row.

    Returns:
        a new (H, W, 3) uint8.
    """
    rows, columns = np.indices(region.shape, sparse=True)
    stripe = (rows + columns) % period < period * 0.3
    return np.where((region & stripe)[..., None], np.uint8(70), picture)


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """(H, W, 3) uint8 to (H * scale, W * scale, 3), smoothly."""
    if scale == 1:
        return image
    height, width = image.shape[:2]
    return np.asarray(
        Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    )


def legend(names: list[str], colors: np.ndarray, *, width: int, font_size: int = 14) -> np.ndarray:
    """Swatches and names on white, wrapped to a width: to be put below an image.

    Args:
        names: C names. One that is too long for a line of its own loses its beginning.
        colors: (C, 3) uint8 RGB.
        width: pixels.
        font_size: pixels.

    Returns:
        (h, width, 3) uint8 with the height that it takes.
    """
    font = load_font(font_size)
    line, gap = round(1.7 * font_size), font_size
    room = width - 1.5 * font_size - gap
    names = [shortened(name, font, room) for name in names]
    places, x, y = [], gap // 2, 0
    for name in names:
        length = 1.5 * font_size + font.getlength(name)
        if x + length > width and x > gap // 2:
            x, y = gap // 2, y + line
        places.append((x, y))
        x += length + gap
    canvas = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(canvas)
    for name, color, (x, y) in zip(names, colors, places, strict=True):
        top = y + (line - font_size) / 2
        box = (x, top, x + font_size, top + font_size)
        draw.rectangle(box, fill=tuple(map(int, color)), outline="black")
        text = (x + 1.5 * font_size, y + line / 2)
        draw.text(text, name, fill="black", font=font, anchor="lm")
    return np.asarray(canvas)


def legend_of(maps: list[np.ndarray], names: list[str], colors: np.ndarray, *, width: int):
    """The legend of the classes that occur in some maps, and of the pixels that have none.

    Args:
        maps: integers of any shape; whatever is outside 0..C-1 has no class.
        names, colors, width: as for :func:`legend`.

    Returns:
        (h, width, 3) uint8.
    """
    found = np.unique(np.concatenate([np.unique(class_index(ids, len(names))) for ids in maps]))
    table = np.vstack([colors, VOID_COLOR]).astype(np.uint8)
    names = [*names, "not labelled (hatched)"]
    return legend([names[index] for index in found], table[found], width=width)
