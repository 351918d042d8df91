"""The sections of the report, each from the page's data to a piece of HTML."""

import base64
import io
import math
from html import escape

import numpy as np
from PIL import Image

from .overlay import enlarge, overlay
from .page import Page, RunResult
from .svg import Series, css_color, line_chart, scatter


def data_uri(image: np.ndarray) -> str:
    """(H, W, 3) uint8 as a JPEG in a data URI; full colour resolution, for the thin boundaries."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def headline(page: Page) -> str:
    baseline = page.runs[0].scores["mIoU"]
    parts = []
    for index, run in enumerate(page.runs):
        value = run.scores["mIoU"]
        parts.append(_figure(f"run{index}", _percent(value), f"mIoU, {_lower(run.name)}"))
        if index:
            difference = value - baseline
            parts.append(_figure(_sign_class(difference), _difference(difference), "points"))
    return f'<div class="figures">{"".join(parts)}</div>'


def _figure(kind: str, value: str, caption: str) -> str:
    return f'<div class="figure {kind}"><b>{value}</b><span>{escape(caption)}</span></div>'


def per_class(page: Page) -> str:
    # Narrow screens have no room for names there: they get the marks of the key above.
    head = "".join(
        f'<th class="number"><span class="stroke narrow run{index}"></span>'
        f'<span class="wide">{escape(run.name)}</span></th>'
        for index, run in enumerate(page.runs)
    )
    if len(page.runs) == 2:
        head += '<th class="number">Diff<span class="wide">erence</span></th>'
    rows = [
        _score_row(page, f"IoU-{name}", _named(name, color))
        for name, color in zip(page.names, page.colors, strict=True)
    ]
    rows.append(_score_row(page, "mIoU", "mean", "mean"))
    return (
        "<section><h2>IoU per class</h2>"
        '<p class="note">Percent. Intersection over union of each class, over all pixels of the '
        f"validation images that have a label.</p>{_run_key(page)}"
        f'<table><thead><tr><th>Class</th><th class="bars"></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _score_row(page: Page, key: str, heading: str, kind: str = "") -> str:
    values = [run.scores.get(key, math.nan) for run in page.runs]
    bars = "".join(
        f'<div class="bar run{index}" style="width:{value:.2f}%" '
        f'title="{escape(run.name)}: {_percent(value)}"></div>'
        for index, (run, value) in enumerate(zip(page.runs, values, strict=True))
        if math.isfinite(value)
    )
    cells = "".join(f"<td>{_percent(value)}</td>" for value in values)
    if len(values) == 2:
        difference = values[-1] - values[0]
        cells += f'<td class="{_sign_class(difference)}">{_difference(difference)}</td>'
    bars = f'<td class="bars"><div class="track">{bars}</div></td>'
    return f'<tr class="{kind}"><th>{heading}</th>{bars}{cells}</tr>'


def curves(page: Page) -> str:
    panels = [
        ("sem_seg/mIoU", "mIoU on the validation images, percent", True),
        ("loss_sem_seg", "Cross-entropy", False),
        ("loss_pixel_contrast", "Pixel contrast term, weighted", False),
        ("total_loss", "Total loss", False),
    ]
    charts = []
    for key, title, markers in panels:
        series = [
            Series(run.name, points, f"run{index}", markers)
            for index, run in enumerate(page.runs)
            if (points := _history(run, key))
        ]
        if series:
            chart = line_chart(series, label=title)
            charts.append(f'<div class="panel"><h3>{escape(title)}</h3>{chart}</div>')
    if not charts:
        return ""
    return (
        "<section><h2>Training</h2>"
        '<p class="note">Losses are medians over 20 iterations.</p>'
        f'{_run_key(page)}<div class="pair">{"".join(charts)}</div></section>'
    )


def _history(run: RunResult, key: str) -> list[tuple[float, float]]:
    # The last evaluation is recorded one beyond the last step, which has losses.
    steps = [row["iteration"] + 1 for row in run.history if "total_loss" in row]
    last = max(steps, default=math.inf)
    return [(min(row["iteration"] + 1, last), row[key]) for row in run.history if key in row]


def overlays(page: Page) -> str:
    if not page.samples:
        return ""
    columns = ["Image", "Label", *(run.name for run in page.runs)]
    cells = [f"<h3>{escape(name)}</h3>" for name in columns]
    for index, sample in enumerate(page.samples):
        scale = max(1, round(480 / sample.image.shape[1]))
        cells.append(_picture(enlarge(sample.image, scale), sample.name, "Image", ""))
        pictures = [sample.label, *(run.predictions[index] for run in page.runs)]
        for column, ids in zip(columns[1:], pictures, strict=True):
            drawn = overlay(sample.image, ids, page.colors, scale=scale)
            right = "" if ids is sample.label else _share_right(ids, sample.label, page)
            last = column == columns[-1]
            cells.append(_picture(drawn, sample.name, column, right, last))
    return (
        "<section><h2>Predictions</h2>"
        '<p class="note">Validation images at even intervals, not selected. Below each prediction: '
        "the share of its labelled pixels that are right.</p>"
        f"{_class_key(page)}"
        f'<div class="rows" style="grid-template-columns:repeat({len(columns)},1fr)">'
        f"{''.join(cells)}</div></section>"
    )


def _picture(image: np.ndarray, name: str, column: str, caption: str, last: bool = False) -> str:
    title = escape(f"{name}: {column}")
    kind = ' class="last"' if last else ""
    narrow = f'<span class="narrow">{escape(column)} </span>'
    return (
        f'<figure{kind}><img src="{data_uri(image)}" alt="{title}" title="{title}" '
        f'width="{image.shape[1]}" height="{image.shape[0]}">'
        f"<figcaption>{narrow}{caption}</figcaption></figure>"
    )


def _share_right(ids: np.ndarray, label: np.ndarray, page: Page) -> str:
    labelled = (label >= 0) & (label < len(page.names))
    return f"{_percent(100.0 * (ids == label)[labelled].mean())} %" if labelled.any() else ""


def embeddings(page: Page) -> str:
    panels = []
    for run in page.runs:
        if run.embedding is None:
            continue
        points = run.embedding
        drawn = scatter(
            points.coordinates,
            points.classes,
            page.names,
            page.colors,
            label=f"t-SNE of the features of {run.name}",
        )
        within, between = _cosine(points.within), _cosine(points.between)
        panels.append(
            f'<div class="panel"><h3>{escape(run.name)}</h3>{drawn}'
            f"<small>Mean cosine within a class {within}, between classes {between}</small></div>"
        )
    if not panels:
        return ""
    return (
        "<section><h2>Embeddings</h2>"
        '<p class="note">t-SNE of the classifier\'s input, L2-normalised, at the same validation '
        "pixels for all models, equally many of each class. Distances between clusters and their "
        "sizes mean little in t-SNE; the cosines below are of the features themselves.</p>"
        f'{_class_key(page)}<div class="pair">{"".join(panels)}</div></section>'
    )


def setting(setting: dict[str, str]) -> str:
    if not setting:
        return ""
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in setting.items())
    return f"<section><h2>Setting</h2><dl>{rows}</dl></section>"


def _named(name: str, color) -> str:
    swatch = f'<span class="swatch" style="background:{css_color(color)}"></span>'
    return f'<span class="name">{swatch}{escape(name)}</span>'


def _class_key(page: Page) -> str:
    items = "".join(
        f'<span><span class="swatch" style="background:{css_color(c)}"></span>{escape(n)}</span>'
        for n, c in zip(page.names, page.colors, strict=True)
    )
    return f'<div class="key">{items}</div>'


def _run_key(page: Page) -> str:
    items = "".join(
        f'<span><span class="stroke run{index}"></span>{escape(run.name)}</span>'
        for index, run in enumerate(page.runs)
    )
    return f'<div class="key">{items}</div>'


def _lower(name: str) -> str:
    """A run's name within a sentence; abbreviations stay as they are."""
    return name[:1].lower() + name[1:] if name[1:2].islower() else name


def _percent(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "–"  # noqa: RUF001


def _cosine(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "–"  # noqa: RUF001


def _difference(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if math.isfinite(value) else "–"  # noqa: RUF001


def _sign_class(difference: float) -> str:
    """How a difference is coloured; what rounds to 0.0 is neither better nor worse."""
    if not math.isfinite(difference) or abs(difference) < 0.05:
        return ""
    return "better" if difference > 0 else "worse"
