"""Draw the embedding space of a checkpoint: t-SNE, and how alike the classes are.

    python -m d2_pixcontrast.visualization.embeddings --config-file FILE --weights FILE \\
        [--num-images 50] [--per-class 100] [--seed 0] [--output DIR] [KEY VALUE ...]

Writes ``tsne.png`` and ``similarity.png`` of the features that the classifier reads, at pixels of
DATASETS.TEST chosen by the labels and the seed alone. The same call draws the same pictures.
"""

import argparse
import itertools
import logging
import sys
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog

from ..config import inference_config
from ..engine import SemSegCheckpointer, Trainer, setup_cfg
from .colors import class_colors
from .figures import pyplot, save
from .pixel_sample import PixelSample, sample_embeddings
from .tsne import project, scikit_learn


def class_similarity(sample: PixelSample, num_classes: int) -> np.ndarray:
    """Mean cosine between the embeddings of two classes.

    Returns:
        (C, C) float64; the diagonal leaves out a pixel's similarity to itself. NaN where a class
        has no pixel (on the diagonal: fewer than two).
    """
    unit = sample.embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True).clip(min=1e-12)
    member = np.eye(num_classes)[sample.classes]
    counts, sums = member.sum(axis=0), member.T @ unit
    pairs = np.outer(counts, counts) - np.diag(counts)
    total = sums @ sums.T - np.diag(member.T @ (unit**2).sum(axis=1))
    return np.divide(total, pairs, out=np.full_like(total, np.nan), where=pairs > 0)


def draw_tsne(path: Path, sample: PixelSample, names: list[str], colors, seed: int) -> None:
    """Scatter plot of the t-SNE of a sample, one colour per class."""
    plt = pyplot()
    cloud = project(sample.embeddings, sample.classes, seed=seed)
    figure, axes = plt.subplots(figsize=(8, 7), layout="constrained")
    for index in np.unique(cloud.classes):
        points = cloud.coordinates[cloud.classes == index]
        axes.scatter(*points.T, s=10, color=colors[index] / 255, label=names[index], linewidths=0)
    axes.set_title(
        f"t-SNE of the classifier's input: mean cosine within a class {cloud.within:.2f}, "
        f"between classes {cloud.between:.2f}",
        fontsize=10,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal")
    columns = 1 + (len(names) - 1) // 30
    figure.legend(loc="outside right upper", fontsize=7, markerscale=2, ncols=columns)
    save(figure, path)


def draw_similarity(path: Path, matrix: np.ndarray, names: list[str]) -> None:
    """The similarity matrix as a picture, with its numbers where there is room for them."""
    plt = pyplot()
    side = 3 + 0.28 * len(names)
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    if len(names) <= 25:
        for row, column in itertools.product(range(len(names)), repeat=2):
            value = matrix[row, column]
            if np.isfinite(value):
                tone = "white" if abs(value) > 0.6 else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", size=5, color=tone)
    axes.set_title("Mean cosine between classes", fontsize=10)
    figure.colorbar(image, shrink=0.8)
    save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Run with command line arguments; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m d2_pixcontrast.visualization.embeddings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="a checkpoint of train_net.py")
    parser.add_argument("--num-images", type=int, default=50)
    parser.add_argument("--per-class", type=int, default=100, help="pixels per class, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/embeddings"))
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        _run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{parser.prog}: {error}")


def _run(args: argparse.Namespace) -> None:
    args.eval_only = True
    if min(args.num_images, args.per_class) < 1:
        raise ValueError("--num-images and --per-class have to be at least 1")
    pyplot(), scikit_learn()  # not to find out after the network has run that one is missing
    cfg = inference_config(setup_cfg(args))
    model = Trainer.build_model(cfg)
    SemSegCheckpointer(model, strict=True).load(args.weights)
    dataset = cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(dataset)
    names = list(metadata.stuff_classes)
    loader = itertools.islice(Trainer.build_test_loader(cfg, dataset), args.num_images)
    sample = sample_embeddings(
        model, loader, num_classes=len(names), per_class=args.per_class, seed=args.seed
    )
    args.output.mkdir(parents=True, exist_ok=True)
    draw_tsne(args.output / "tsne.png", sample, names, class_colors(metadata), args.seed)
    draw_similarity(args.output / "similarity.png", class_similarity(sample, len(names)), names)
    sys.stdout.write(f"{len(sample.classes)} pixels: {args.output}/tsne.png, similarity.png\n")


if __name__ == "__main__":
    main()
