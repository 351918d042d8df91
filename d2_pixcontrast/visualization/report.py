"""One self-contained HTML page that compares a baseline with other runs."""

import os
from html import escape

import numpy as np
from detectron2.utils.file_io import PathManager

from . import sections
from .page import Page, RunResult, Sample
from .style import CSS


def write_report(
    path: str,
    runs: list[RunResult],
    *,
    class_names: list[str],
    colors: np.ndarray,
    samples: list[Sample] = (),
    title: str = "Semantic segmentation with pixel contrast",
    lead: str = "",
    caveat: str = "",
    setting: dict[str, str] | None = None,
) -> None:
    """Write the page: scores, IoU per class, training curves, overlays, t-SNE and setting.

    All images are data URIs, charts are inline SVG and there is no script: the page needs nothing
    but itself. A section without data is left out.

    Args:
        path: of the HTML file; its folder is made.
        runs: the baseline first; up to four.
        class_names: C names.
        colors: (C, 3) uint8 RGB.
        samples: images to show.
        title: heading of the page.
        lead: sentence below the heading.
        caveat: sentence below the scores.
        setting: what was run, name to value.

    Raises:
        ValueError: not one to four runs, or a run has not one prediction per sample.
    """
    if not 1 <= len(runs) <= 4:
        raise ValueError(f"a report has one to four runs, got {len(runs)}")
    for run in runs:
        if len(run.predictions) != len(samples):
            raise ValueError(
                f"{run.name} has {len(run.predictions)} predictions for {len(samples)} samples"
            )
    page = Page(list(runs), list(samples), list(class_names), np.asarray(colors))
    body = "".join(
        [
            f"<header><h1>{escape(title)}</h1>",
            f'<p class="lead">{escape(lead)}</p>' if lead else "",
            sections.headline(page),
            f'<p class="caveat">{escape(caveat)}</p>' if caveat else "",
            "</header>",
            sections.per_class(page),
            sections.curves(page),
            sections.overlays(page),
            sections.embeddings(page),
            sections.setting(setting or {}),
        ]
    )
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )
    PathManager.mkdirs(os.path.dirname(path) or ".")
    with PathManager.open(path, "w") as file:
        file.write(html)
