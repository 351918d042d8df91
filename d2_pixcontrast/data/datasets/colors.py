"""Palettes for datasets that come without one."""

import colorsys

__all__ = ["distinct_colors", "voc_colors"]

Color = tuple[int, int, int]


def distinct_colors(count: int) -> tuple[Color, ...]:
    """``count`` different (R, G, B) colours, always the same; neighbours in the list differ most.

    Hues are spread by the golden ratio, in four steps of saturation and lightness.
    """
    colors = []
    for index in range(count):
        hue = (index * 0.61803398875) % 1.0
        saturation, value = ((0.85, 0.95), (0.55, 0.75), (0.95, 0.6), (0.4, 0.95))[index % 4]
        rgb = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append(tuple(round(255 * channel) for channel in rgb))
    return tuple(colors)


def voc_colors(count: int) -> tuple[Color, ...]:
    """PASCAL VOC's own colours: the bits of an id, dealt to R, G, B in turn from the top bit down.

    ``count`` is at most 256.
    """
    return tuple(
        tuple(
            sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
            for channel in range(3)
        )
        for index in range(count)
    )
