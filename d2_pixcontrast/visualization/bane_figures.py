"""Figures 3 and 5 of Contextrast, CVPR 2024: where its negatives lie, and how alike they are."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..contrast import Bane
from .anchor_similarity import SimilarityCurve
from .colors import VOID_COLOR, class_index, colorize
from .error_view import ErrorView
from .figures import pyplot, save


def draw_panel(
    path: Path, view: ErrorView, bane: Bane, names: list[str], colors: np.ndarray
) -> None:
    """Image, label and prediction above error maps, distances and chosen negatives.

    Args:
        path: of the PNG file.
        view: of the image.
        bane: how its negatives were chosen.
        names, colors: of the classes, (C, 3) uint8.
    """
    plt = pyplot()
    height, width = view.image.shape[:2]
    tile = 3.4
    size = (3 * tile, 2 * tile * height / width + 1.5)
    figure, axes = plt.subplots(2, 3, figsize=size, layout="constrained")
    label, prediction = view.label.numpy(), view.prediction.numpy()
    backdrop = _faint(view.image.numpy(), label.shape)
    wrong, chosen = view.group.numpy() >= 0, view.chosen.numpy()
    map_colors = colorize(view.group.numpy(), colors)
    of = "label" if bane.target == "other" else "predicted class"
    pictures = {
        "Image": view.image.numpy(),
        "Label": colorize(label, colors),
        "Prediction": colorize(prediction, colors),
        f"Errors by {of}: {wrong.sum():,} pixels": _put(backdrop, wrong, map_colors),
        "Distance to the boundary of the error": backdrop,
        f"Negatives: the nearest {bane.keep_percent:g} %, {chosen.sum():,} pixels": _put(
            _put(backdrop, wrong, _pale(map_colors)), chosen, map_colors
        ),
    }
    # All in the coordinates of the grid, whatever their resolution.
    extent = (0, label.shape[1], label.shape[0], 0)
    for ax, (title, picture) in zip(axes.flat, pictures.items()):
        ax.imshow(picture, extent=extent, interpolation="nearest", aspect="auto")
        ax.set_box_aspect(height / width)
        ax.set_title(title, fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    _draw_distances(figure, axes[1, 1], view, extent)
    shown = class_index(np.concatenate([label.ravel(), prediction.ravel()]), len(names))
    _draw_legend(figure, sorted(set(shown.tolist())), names, colors)
    save(figure, path)


def draw_similarity(path: Path, curves: list[SimilarityCurve], level: str) -> None:
    """Similarity against distance above the number of pixels, one line per checkpoint."""
    plt = pyplot()
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(6.4, 5.4), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    last = len(curves[0].mean)
    distance = np.arange(1, last + 1)
    tones = plt.get_cmap("viridis_r")(np.linspace(0.12, 1, len(curves)))
    for curve, tone in zip(curves, tones):
        top.plot(distance, curve.mean, "o-", color=tone, markersize=4, label=curve.name)
        bottom.plot(distance, curve.count, "o-", color=tone, markersize=3, linewidth=1)
    top.set_title("Wrong pixels: similarity to the mean of their class", fontsize=11)
    top.set_ylabel("mean cosine")
    bottom.set_ylabel("pixels")
    bottom.set_yscale("symlog", linthresh=1)
    bottom.set_xlabel(f"distance to the boundary of the error, in pixels of the grid of {level}")
    ticks = distance if last <= 16 else distance[:: -(-last // 16)]
    # The last entry is of all distances from there up.
    bottom.set_xticks(ticks, [f"{k}+" if k == last else str(k) for k in ticks])
    for ax in (top, bottom):
        ax.grid(color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    top.legend(frameon=False, fontsize=9)
    save(figure, path)


def _draw_distances(figure, ax, view, extent):
    from matplotlib.ticker import MaxNLocator

    distance = np.where(view.group.numpy() >= 0, view.distance.numpy(), np.nan)
    finite = distance[np.isfinite(distance)]
    # A map that covers the image has no boundary; it is drawn like the farthest there is.
    farthest = max(finite.max(initial=1.0), 2.0)
    picture = ax.imshow(
        np.where(np.isinf(distance), farthest, distance),
        extent=extent,
        cmap="viridis",
        vmin=1,
        vmax=farthest,
        interpolation="nearest",
        aspect="auto",
    )
    # Inside the axes' own margin, so that all pictures keep their size.
    bar = ax.inset_axes((0.2, -0.075, 0.6, 0.035))
    figure.colorbar(picture, cax=bar, orientation="horizontal", ticks=MaxNLocator(6, integer=True))
    bar.tick_params(labelsize=8)


def _draw_legend(figure, classes, names, colors):
    from matplotlib.patches import Patch

    every = [*names, "no class"]
    tones = np.vstack([colors, VOID_COLOR]) / 255
    patches = [Patch(facecolor=tones[c], edgecolor="0.5", label=every[c]) for c in classes]
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=9,
        fontsize=8,
        frameon=False,
        title="pale: wrong, but not chosen",
        title_fontsize=8,
        handlelength=1.2,
        columnspacing=1.4,
    )


def _faint(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8: the image in light grey, so that errors stand out."""
    grey = Image.fromarray(image).convert("L").resize(size[::-1], Image.Resampling.BOX)
    return _pale(np.repeat(np.asarray(grey)[..., None], 3, axis=2), 0.25)


def _pale(colors: np.ndarray, share: float = 0.4) -> np.ndarray:
    """A share of the colours in white."""
    return (255 - (255 - colors.astype(np.float64)) * share).astype(np.uint8)


def _put(picture: np.ndarray, mask: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """The picture with (h, w, 3) colors where the mask is set."""
    return np.where(mask[..., None], colors, picture).astype(np.uint8)
