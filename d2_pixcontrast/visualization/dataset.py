"""Show what the model is fed: training samples after augmentation, beside their files.

    python -m d2_pixcontrast.visualization.dataset --config-file FILE \\
        [--num-images 8] [--seed N] [--output DIR] [KEY VALUE ...]

Draws the first samples of the training stream, those that a training with this SEED begins with:
the image as it is, its label, both as they are fed, and a legend. Pixels without a label, padding
among them, are hatched. The same call draws the same pictures.
"""

import argparse
import itertools
import logging
import sys
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image
from tqdm import tqdm

from ..data import build_train_loader, check_datasets, read_image, read_label
from ..engine import load_cfg
from .colors import class_colors
from .overlay import enlarge, label_overlay, legend_of
from .panels import panel_row, resize_to_height, stack

LEAST_HEIGHT = 240  # smaller pictures are enlarged by a whole factor


def draw_sample(
    sample: dict, names: list[str], colors: np.ndarray, image_format: str
) -> np.ndarray:
    """The panels of one training sample.

    Args:
        sample: of the train loader, with "file_name" and "sem_seg_file_name".
        names, colors: of the classes; C names, (C, 3) uint8 RGB.
        image_format: order of the channels of ``sample["image"]``.

    Returns:
        (h, w, 3) uint8.
    """
    fed = sample["image"].numpy().transpose(1, 2, 0)
    fed = np.ascontiguousarray(fed[:, :, ::-1] if image_format == "BGR" else fed)
    fed_label = sample["sem_seg"].numpy()
    original = read_image(sample["file_name"], "RGB")
    label = read_label(sample["sem_seg_file_name"])
    scale = -(-LEAST_HEIGHT // len(fed))
    height = scale * len(fed)
    rows, columns = fed_label.shape
    labelled = label_overlay(original, label, colors, scale=-(-height // len(original)))
    panels = [
        (Path(sample["file_name"]).name, resize_to_height(original, height)),
        ("its label", resize_to_height(labelled, height)),
        (f"fed to the model, {columns} x {rows}", enlarge(fed, scale)),
        ("its label as fed", label_overlay(fed, fed_label, colors, scale=scale)),
    ]
    row = panel_row(panels)
    return stack([row, legend_of([label, fed_label], names, colors, width=row.shape[1])])


def main(arguments: list[str] | None = None) -> None:
    """Run with command line arguments; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m d2_pixcontrast.visualization.dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--num-images", type=int, default=8)
    parser.add_argument("--seed", type=int, help="default: the config's SEED, or else 0")
    parser.add_argument("--output", type=Path, default=Path("output/dataset"))
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        _run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


def _run(args: argparse.Namespace) -> None:
    if args.num_images < 1:
        raise ValueError("--num-images has to be at least 1")
    cfg = load_cfg(args.config_file, args.opts)
    cfg.SEED = max(cfg.SEED, 0) if args.seed is None else args.seed
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; it has to name a data set to draw")
    check_datasets(cfg)
    cfg.SOLVER.IMS_PER_BATCH = 1  # a sample depends on its position in the stream alone
    cfg.DATALOADER.NUM_WORKERS = 0
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    names, colors = list(metadata.stuff_classes), class_colors(metadata)
    args.output.mkdir(parents=True, exist_ok=True)
    stream = itertools.islice(build_train_loader(cfg), args.num_images)
    for number, (sample,) in enumerate(tqdm(stream, total=args.num_images, disable=None)):
        picture = draw_sample(sample, names, colors, cfg.INPUT.FORMAT)
        Image.fromarray(picture).save(args.output / f"{number:03}.png")
    sys.stdout.write(f"{args.num_images} samples: {args.output}\n")


if __name__ == "__main__":
    main()
