"""Draw boundary-aware negatives: where a checkpoint is wrong, and what is chosen of that.

    python -m d2_pixcontrast.visualization.bane --config-file FILE --weights FILE \\
        [--weights FILE ...] [--num-images 4 | --image NAME ...] [--curve-images 50] [--seed 0] \\
        [--term NAME] [--level NAME] [--output DIR] [KEY VALUE ...]

Writes ``<image>.png`` for some images of DATASETS.TEST: image, label, prediction, error maps,
distance to their boundaries, and the negatives, of the last ``--weights``. If the config has terms,
all is on the grid of one of them, and ``similarity.png`` (its numbers: ``similarity.json``) draws
for each of the ``--weights``, such as the checkpoints of one training, how similar wrong pixels are
to the mean of their class by that distance. Without terms the grid is that of the logits, and there
is no such figure. The same call draws the same pictures.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import inference_config
from ..contrast import Bane
from ..data import SemSegMapper
from ..engine import SemSegCheckpointer, Trainer, setup_cfg
from ..modeling.terms import Term
from ..prediction.inputs import unique_names
from .anchor_similarity import SimilarityCurve, similarity_by_distance
from .bane_figures import draw_panel, draw_similarity
from .colors import class_colors
from .error_view import ErrorView, level_names, view_errors


class Viewer:
    """Looks at images of a config's test set with one checkpoint after another."""

    def __init__(self, cfg, *, term: str = "", level: str = "", seed: int = 0):
        """
        Args:
            cfg: the configuration.
            term: one of MODEL.SEM_SEG_HEAD.TERMS; "" = the first, if there is any.
            level: one of the term's features; "" = its first.
            seed: of the ties between negatives.

        Raises:
            ValueError: the config has no such term, or the term no such feature.
        """
        terms = list(cfg.MODEL.SEM_SEG_HEAD.TERMS)
        if term and term not in terms:
            raise ValueError(f"--term {term}: MODEL.SEM_SEG_HEAD.TERMS is {terms}")
        self.cfg = cfg if terms else inference_config(cfg)
        self.model = Trainer.build_model(self.cfg)
        self.term: Term | None = None
        self.level = ""
        if terms:
            self.term = self.model.sem_seg_head.terms[term or terms[0]]
            levels = level_names(self.term)
            if level and level not in levels:
                raise ValueError(f"--level {level}: {term or terms[0]} embeds {levels}")
            self.level = level or levels[0]
        elif level:
            raise ValueError(f"--level {level}: the config has no term that embeds anything")
        self.bane = _bane_of(cfg, term or next(iter(terms), "")).check()
        self.seed = seed
        self.dataset = DatasetCatalog.get(cfg.DATASETS.TEST[0])

    def load(self, weights: str) -> str:
        """Load a checkpoint and return what to call it: its iteration, or its file's name."""
        rest = SemSegCheckpointer(self.model, strict=True).load(weights)
        if "iteration" in rest:
            return f"iteration {rest['iteration'] + 1:,}"
        return Path(weights).stem

    def find(self, names: list[str]) -> list[int]:
        """Indices of the images with these file names, with or without their ending.

        Raises:
            ValueError: there is none of that name.
        """
        places = {}
        for index, entry in enumerate(self.dataset):
            file = Path(entry["file_name"])
            places.setdefault(file.name, index)
            places.setdefault(file.stem, index)
        missing = [name for name in names if name not in places]
        if missing:
            raise ValueError(f"--image {missing[0]}: {self.cfg.DATASETS.TEST[0]} has no such file")
        return [places[name] for name in names]

    def views(self, indices: list[int]) -> Iterator[ErrorView]:
        """The errors in these images."""
        mapper = SemSegMapper(self.cfg, is_train=False)
        head = self.cfg.MODEL.SEM_SEG_HEAD
        for index in indices:
            yield view_errors(
                self.model,
                mapper(self.dataset[index]),
                self.bane,
                num_classes=head.NUM_CLASSES,
                ignore_value=head.IGNORE_VALUE,
                term=self.term,
                level=self.level,
                seed=self.seed,
                index=index,
            )

    def curve(self, name: str, num_images: int, max_distance: int) -> SimilarityCurve:
        """:func:`similarity_by_distance` over the first images."""
        indices = list(range(min(num_images, len(self.dataset))))
        return similarity_by_distance(
            self.views(indices),
            name=name,
            num_classes=self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            max_distance=max_distance,
        )


def main(arguments: list[str] | None = None) -> None:
    """Run with command line arguments; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m d2_pixcontrast.visualization.bane",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument(
        "--weights", required=True, action="append", help="a checkpoint of train_net.py; repeatable"
    )
    parser.add_argument("--num-images", type=int, default=4, help="first images to draw")
    parser.add_argument(
        "--image", action="append", help="name of an image file to draw instead; repeatable"
    )
    parser.add_argument("--curve-images", type=int, default=50, help="images behind similarity.png")
    parser.add_argument("--max-distance", type=int, default=10, help="pixels in similarity.png")
    parser.add_argument("--term", default="", help="default: the config's first")
    parser.add_argument("--level", default="", help="feature that is embedded; default: the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/bane"))
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        _run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


def _run(args: argparse.Namespace) -> None:
    args.eval_only = True
    for option in ("num_images", "curve_images", "max_distance"):
        if getattr(args, option) < 1:
            raise ValueError(f"--{option.replace('_', '-')} has to be at least 1")
    cfg = setup_cfg(args)
    viewer = Viewer(cfg, term=args.term, level=args.level, seed=args.seed)
    first = list(range(min(args.num_images, len(viewer.dataset))))
    indices = viewer.find(args.image) if args.image else first
    args.output.mkdir(parents=True, exist_ok=True)
    curves = []
    for weights in args.weights:
        name = viewer.load(weights)
        if viewer.term is not None:
            curves.append(viewer.curve(name, args.curve_images, args.max_distance))
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    names, written = list(metadata.stuff_classes), []
    files = [Path(Path(viewer.dataset[index]["file_name"]).name) for index in indices]
    for view, name in zip(viewer.views(indices), unique_names(files), strict=True):
        written.append(f"{name}.png")
        draw_panel(args.output / written[-1], view, viewer.bane, names, class_colors(metadata))
    if curves:
        written += ["similarity.png", "similarity.json"]
        draw_similarity(args.output / "similarity.png", curves, viewer.level)
        _write_curves(args.output / "similarity.json", args.weights, curves)
    sys.stdout.write(f"{args.output}: {', '.join(written)}\n")


def _bane_of(cfg, term: str) -> Bane:
    """The options of a term that has such, else those of Contextrast."""
    node = (cfg.MODEL.PIXEL_CONTRAST if term == "PixelContrast" else cfg.MODEL.CONTEXTRAST).BANE
    return Bane(node.KEEP_PERCENT, node.TARGET, node.MAX_NEGATIVES)


def _write_curves(path: Path, weights: list[str], curves: list[SimilarityCurve]) -> None:
    lines = [
        {
            "weights": file,
            "name": curve.name,
            "mean": [float(m) if n else None for m, n in zip(curve.mean, curve.count)],
            "count": curve.count.tolist(),
        }
        for file, curve in zip(weights, curves, strict=True)
    ]
    path.write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    main()
