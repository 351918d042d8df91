"""Small charts as inline SVG. Colours come from the page's CSS, so that they follow its theme."""

import math
from html import escape
from typing import NamedTuple

import numpy as np


class Series(NamedTuple):
    """A line.

    Attributes:
        name: for the hover title.
        points: (x, y) pairs; those that are not finite are left out.
        css_class: colours the line ("run0", "run1", ...).
        markers: whether each point gets a dot.
    """

    name: str
    points: list[tuple[float, float]]
    css_class: str
    markers: bool = False


WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 34


def line_chart(series: list[Series], *, label: str, x_label: str = "iteration") -> str:
    """Lines over a common grid that starts at 0.

    Args:
        series: the lines; without a finite point there is no chart, but a sentence.
        label: what is drawn, for screen readers.
        x_label: below the x axis.
    """
    series = [s._replace(points=[p for p in s.points if np.isfinite(p).all()]) for s in series]
    values = [value for s in series for _, value in s.points]
    if not values:
        return '<p class="muted">No values were recorded.</p>'
    y_ticks = ticks(max(values))
    x_ticks = ticks(max(x for s in series for x, _ in s.points))
    span_x, span_y = x_ticks[-1], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (WIDTH - _LEFT - _RIGHT) * x / span_x,
            HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * y / span_y,
        )

    parts = [_grid(place, x_ticks, y_ticks, x_label)]
    parts += [_line(s, place) for s in series if s.points]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def ticks(maximum: float, count: int = 5) -> list[float]:
    """0 and further round numbers in equal steps; the last is the first that is >= ``maximum``."""
    if not maximum > 0:
        return [0.0, 1.0]
    rough = maximum / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * (1 - 1e-9))
    number = math.ceil(maximum / step - 1e-9)
    return [round(i * step, 10) for i in range(number + 1)]


def scatter(
    coordinates: np.ndarray,
    classes: np.ndarray,
    names: list[str],
    colors: np.ndarray,
    *,
    label: str,
) -> str:
    """Points in their classes' colours; hovering shows the class.

    Args:
        coordinates: (N, 2) in the unit square.
        classes: (N,) integers below C.
        names, colors: of the C classes.
        label: for screen readers.
    """
    size, margin = 420, 12
    places = margin + (size - 2 * margin) * np.asarray(coordinates)
    # All points in a random order, lest the last class cover the others.
    order = np.random.RandomState(0).permutation(len(places))
    dots = "".join(
        f'<circle cx="{places[i, 0]:.1f}" cy="{size - places[i, 1]:.1f}" r="3.6" '
        f'fill="{css_color(colors[classes[i]])}"><title>{escape(names[classes[i]])}</title></circle>'
        for i in order
    )
    return (
        f'<svg class="scatter" viewBox="0 0 {size} {size}" role="img" '
        f'aria-label="{escape(label)}">{dots}</svg>'
    )


def css_color(color) -> str:
    """(R, G, B) as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*map(int, color))


def number(value: float) -> str:
    """As short as a tick or a title needs it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _grid(place, x_ticks, y_ticks, x_label: str) -> str:
    parts = []
    for value in y_ticks:
        x, y = place(0, value)
        kind = "axis" if value == 0 else "grid"
        ends = f'x1="{x}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
        parts.append(f'<line class="{kind}" {ends}/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in x_ticks:
        x, y = place(value, 0)
        # The last one would stick out, had it not its end at the edge.
        anchor = "end" if value == x_ticks[-1] else "middle" if value else "start"
        text = number(value)
        parts.append(f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="{anchor}">{text}</text>')
    parts.append(
        f'<text x="{(WIDTH + _LEFT - _RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    return "".join(parts)


def _line(series: Series, place) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in series.points))
    name = escape(series.name)
    parts = [f'<polyline class="line {series.css_class}" points="{path}"/>']
    for x, value in series.points:
        # Points of a dense line are invisible and only give something to hover over.
        px, py = place(x, value)
        kind = "dot" if series.markers else "target"
        parts.append(
            f'<circle class="{kind} {series.css_class}" cx="{px:.1f}" cy="{py:.1f}" '
            f'r="{3.2 if series.markers else 6}">'
            f"<title>{name}, iteration {x:,.0f}: {value:.4g}</title></circle>"
        )
    return "".join(parts)
