"""Draws one image of overlapping shapes together with its label.

Look-alikes (disc and ring, square and rhombus, triangle and star) share a range of hues, so that
only the outline tells them apart; texture and size say nothing about the class.

Bitwise reproducible: arrays see only additions, products, square roots and comparisons, which are
exact in IEEE arithmetic; sines are of scalars; the generator is numpy's frozen ``RandomState``.
"""

import colorsys
import math

import numpy as np

__all__ = ["HEIGHT", "SHAPES", "VOID", "WIDTH", "draw"]

HEIGHT, WIDTH = 128, 160
SHAPES = ("disc", "ring", "square", "rhombus", "triangle", "star", "cross")  # ids from 1
VOID = 255
_FAMILY_HUE = (0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75)  # of each shape; neighbouring ranges overlap
_HUE_SPREAD = 0.17
_BORDER = 1.25  # void on both sides of an outline, in pixels
_HOLE = 0.5  # radius of a ring's hole over that of the ring
# Centres of the pixels, (1, WIDTH) and (HEIGHT, 1).
_XS = np.arange(WIDTH)[None] + 0.5
_YS = np.arange(HEIGHT)[:, None] + 0.5


def draw(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """One image, uint8 (HEIGHT, WIDTH, 3) RGB, and its label, uint8 (HEIGHT, WIDTH)."""
    image = _texture(rng, _XS, _YS, vivid=False)
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(rng.randint(2, 6)):
        _draw_stroke(rng, image)
    # Every class comes up equally often; which ones lie on top is random.
    for shape in rng.permutation(len(SHAPES))[: rng.randint(5, 8)]:
        _draw_shape(rng, image, label, shape)
    image *= _light(rng, _XS, _YS)[..., None]
    image += rng.uniform(-0.04, 0.04, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), label


def _draw_shape(rng, image: np.ndarray, label: np.ndarray, shape: int) -> None:
    x, y = rng.uniform(0.06, 0.94) * WIDTH, rng.uniform(0.06, 0.94) * HEIGHT
    radius, angle = rng.uniform(15, 28), rng.uniform(-0.6, 0.6) - math.pi / 2  # about upright
    # Only the pixels around the shape; the views below write through to the whole image.
    reach = int(1.5 * radius) + 8
    columns = slice(max(int(x) - reach, 0), int(x) + reach)
    rows = slice(max(int(y) - reach, 0), int(y) + reach)
    xs, ys = _XS[:, columns], _YS[rows]
    image, label = image[rows, columns], label[rows, columns]

    distance = _distance(SHAPES[shape], xs - x, ys - y, radius, angle)
    shadow = _distance(SHAPES[shape], xs - x - 2, ys - y - 3, radius, angle)
    image *= 1 - 0.45 * (0.5 - shadow / 6).clip(0, 1)[..., None]
    cover = (0.5 - distance).clip(0, 1)[..., None]  # anti-aliased
    image *= 1 - cover
    hue = _FAMILY_HUE[shape] + rng.uniform(-_HUE_SPREAD, _HUE_SPREAD)
    image += cover * _texture(rng, xs, ys, vivid=True, hue=hue)
    label[distance < 0] = shape + 1
    label[np.abs(distance) < _BORDER] = VOID


def _draw_stroke(rng, image: np.ndarray) -> None:
    """A line in the background: an edge that belongs to no shape."""
    x, y = rng.uniform(0, WIDTH, 2), rng.uniform(0, HEIGHT, 2)
    distance = _segment_distance(_XS, _YS, x[0], y[0], x[1], y[1]) - rng.uniform(0.5, 3)
    cover = (0.5 - distance).clip(0, 1)[..., None]
    image *= 1 - cover
    image += cover * _color(rng, vivid=rng.randint(2) == 1)


def _distance(shape: str, xs, ys, radius: float, angle: float) -> np.ndarray:
    """Signed distance in pixels to the outline of a shape around the origin, negative inside."""
    if shape in ("disc", "ring"):
        from_centre = np.sqrt(xs**2 + ys**2)
        if shape == "disc":
            return from_centre - radius
        return np.maximum(from_centre - radius, _HOLE * radius - from_centre)
    cos, sin = radius * math.cos(angle), radius * math.sin(angle)
    corners = [(cos * u - sin * v, sin * u + cos * v) for u, v in _corners(shape)]
    nearest, inside = np.inf, False
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        nearest = np.minimum(nearest, _segment_distance(xs, ys, x0, y0, x1, y1))
        if y0 != y1:  # even-odd rule: count the edges to the right of a pixel
            crossing = x0 + (ys - y0) * ((x1 - x0) / (y1 - y0))
            inside = inside ^ (((y0 <= ys) != (y1 <= ys)) & (xs < crossing))
    return np.where(inside, -nearest, nearest)


def _corners(shape: str) -> list[tuple[float, float]]:
    """Of a polygon around the origin; all shapes have about the area of a ring of radius 1."""
    if shape == "square":
        return [(-0.77, -0.77), (0.77, -0.77), (0.77, 0.77), (-0.77, 0.77)]
    if shape == "rhombus":
        return [(-1.5, 0), (0, -0.76), (1.5, 0), (0, 0.76)]
    if shape == "cross":
        a, b = 1.12, 0.36
        quarter = [(a, -b), (a, b), (b, b)]
        turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]
        return [(c * u - s * v, s * u + c * v) for c, s in turns for u, v in quarter]
    count, radii = {"triangle": (3, (1.33,)), "star": (10, (1.4, 0.62))}[shape]
    angles = [2 * math.pi * k / count for k in range(count)]
    return [
        (radii[k % len(radii)] * math.cos(t), radii[k % len(radii)] * math.sin(t))
        for k, t in enumerate(angles)
    ]


def _segment_distance(xs, ys, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Distance of pixels to the segment from (x0, y0) to (x1, y1)."""
    dx, dy = x1 - x0, y1 - y0
    along = (((xs - x0) * dx + (ys - y0) * dy) / (dx * dx + dy * dy)).clip(0, 1)
    return np.sqrt((xs - x0 - along * dx) ** 2 + (ys - y0 - along * dy) ** 2)


def _texture(rng, xs, ys, vivid: bool, hue: float | None = None) -> np.ndarray:
    """A surface, float (h, w, 3) in 0..1: two colours mixed by a random pattern."""
    pattern = (_stripes, _checks, _noise, _noise)[rng.randint(4)](rng, xs, ys)[..., None]
    first = _color(rng, vivid, hue)
    second = (first + rng.uniform(-0.25, 0.25, 3)).clip(0, 1)
    grain = 0.12 * (_noise(rng, xs, ys, cell=3) - 0.5)[..., None]
    return (first + (second - first) * pattern + grain).clip(0, 1)


def _color(rng, vivid: bool, hue: float | None = None) -> np.ndarray:
    """Vivid for shapes, dull for what is behind them; the ranges overlap. Any hue by default."""
    saturation, value = ((0.1, 0.45), (0.25, 0.75)) if not vivid else ((0.35, 0.9), (0.55, 1.0))
    hue = rng.uniform(0, 1) if hue is None else hue % 1
    rgb = colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb)


def _wave(rng, xs, ys) -> np.ndarray:
    """A triangle wave in a random direction, 0..1."""
    angle, period = rng.uniform(0, math.pi), rng.uniform(5, 14)
    phase = (xs * math.cos(angle) + ys * math.sin(angle)) / period + rng.uniform(0, 1)
    return np.abs(2 * (phase - np.floor(phase)) - 1)


def _stripes(rng, xs, ys) -> np.ndarray:
    return (3 * _wave(rng, xs, ys) - 1).clip(0, 1)


def _checks(rng, xs, ys) -> np.ndarray:
    return (4 * np.abs(_wave(rng, xs, ys) - _wave(rng, xs, ys)) - 1).clip(0, 1)


def _noise(rng, xs, ys, cell: int = 16) -> np.ndarray:
    """Random values every ``cell`` pixels, interpolated linearly, 0..1."""
    values = rng.uniform(0, 1, (HEIGHT // cell + 2, WIDTH // cell + 2))
    columns, rows = (xs / cell).astype(int), (ys / cell).astype(int)
    u, v = xs / cell - columns, ys / cell - rows
    top = values[rows, columns] * (1 - u) + values[rows, columns + 1] * u
    bottom = values[rows + 1, columns] * (1 - u) + values[rows + 1, columns + 1] * u
    return top * (1 - v) + bottom * v


def _light(rng, xs, ys) -> np.ndarray:
    """Brightness that falls off in a random direction, about 0.6..1.2."""
    angle = rng.uniform(0, 2 * math.pi)
    across = (xs / WIDTH - 0.5) * math.cos(angle) + (ys / HEIGHT - 0.5) * math.sin(angle)
    return rng.uniform(0.8, 1.0) + rng.uniform(0.1, 0.5) * across
