"""Segment images, folders of images, videos or a registered data set with a trained network.

    python -m d2_pixcontrast.predict --config-file FILE --weights FILE --output DIR \\
        --input IMAGE|FOLDER|VIDEO ... | --dataset NAME [--tta] [--sliding-window] \\
        [--probabilities] [--cityscapes-submission] [--skip-errors] [--opts KEY VALUE ...]

Writes overlay/ (colours and legend) and label/ (class ids) into DIR; of a video the overlay alone.
The class ids are those that ``train_net.py --eval-only`` scores, with --tta those of sem_seg_TTA.
Without a GPU it runs on the CPU.

Several checkpoints beside the image, and beside the label where there is one (compare/):

    python -m d2_pixcontrast.predict --config-file FILE --compare WEIGHTS|CONFIG:WEIGHTS ... \\
        --output DIR --input IMAGE|FOLDER ... [--labels FOLDER] | --dataset NAME
"""

import argparse
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from . import data  # noqa: F401  registers the data sets, for their class names and colours
from .data import DataError, read_image
from .engine import load_cfg
from .prediction.compare import Checkpoint, Comparison, find_checkpoints
from .prediction.inputs import (
    InputImage,
    below_common_root,
    dataset_inputs,
    find_inputs,
    is_video,
    unique_names,
)
from .prediction.outputs import COMPARE, OVERLAY, RESULT_FOLDERS, ResultWriter, picture_scale
from .prediction.predictor import Predictor
from .prediction.video import VideoReader, VideoWriter
from .visualization.overlay import legend, overlay
from .visualization.panels import stack

PROG = "python -m d2_pixcontrast.predict"


def main(arguments: list[str] | None = None) -> None:
    """Run with command line arguments; see the module's docstring."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        summary, skipped = _run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"{PROG}: {error}")
    sys.stdout.write(f"{summary}\n")
    if skipped:
        sys.exit("\n".join([f"{PROG}: {len(skipped)} skipped:", *map(str, skipped)]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", help="of the training")
    parser.add_argument("--weights", default="", help="a checkpoint (default: MODEL.WEIGHTS)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="images, folders, videos")
    source.add_argument("--dataset", help="a registered data set, e.g. camvid_sem_seg_val")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--tta", action="store_true", help="TEST.AUG.ENABLED True: scales, flip")
    parser.add_argument("--sliding-window", action="store_true", help="TEST.SLIDING.ENABLED True")
    parser.add_argument("--probabilities", action="store_true", help="as (C, H, W) float16, .npz")
    parser.add_argument(
        "--cityscapes-submission", action="store_true", help="labelIds for Cityscapes' server"
    )
    parser.add_argument("--compare", nargs="+", help="checkpoints, each WEIGHTS or CONFIG:WEIGHTS")
    parser.add_argument("--labels", help="with --compare: folder of labels, <image's path>.png")
    parser.add_argument(
        "--skip-errors", action="store_true", help="go on after an unreadable image; exit status 1"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def _run(args: argparse.Namespace) -> tuple[str, list[DataError]]:
    """What was done, and the images that were skipped."""
    if args.labels and not args.compare:
        raise ValueError("--labels is for --compare")
    opts = [*args.opts]
    opts += ["TEST.AUG.ENABLED", "True"] if args.tta else []
    opts += ["TEST.SLIDING.ENABLED", "True"] if args.sliding_window else []
    if args.compare:
        checkpoints = find_checkpoints(args.compare, args.config_file)
    elif args.config_file:
        checkpoints = [Checkpoint(args.config_file, args.weights)]
    else:
        raise ValueError("--config-file is missing")
    # Before any look-up: this registers the data sets of DATASETS.SEM_SEG_FOLDERS.
    cfgs = [load_cfg(checkpoint.config_file, opts) for checkpoint in checkpoints]
    videos = [path for path in args.input or [] if is_video(path)]
    if args.dataset:
        images = dataset_inputs(args.dataset)
    else:
        paths = [path for path in args.input if path not in videos]
        earlier = [args.output / folder for folder in RESULT_FOLDERS]
        images = find_inputs(paths, args.labels, but=earlier) if paths else []
    if args.compare:
        return _compare(args, checkpoints, cfgs, images, videos)
    if videos and (args.probabilities or args.cityscapes_submission):
        raise ValueError("of a video only the overlay is written, no probabilities or submission")

    predictor = Predictor(cfgs[0], args.weights)
    writer = ResultWriter(
        args.output,
        predictor.class_names,
        predictor.colors,
        probabilities=args.probabilities,
        submission=args.cityscapes_submission,
    )

    def predict(source: InputImage) -> None:
        image = read_image(source.path, "RGB")
        writer.write(source, image, predictor(image))

    skipped = _each(images, predict, args.skip_errors)
    names = unique_names(below_common_root(videos))
    for video, name in zip(videos, names, strict=True):
        _predict_video(video, args.output / OVERLAY / name, predictor)
    done = [_count(len(images) - len(skipped), "image")] if images else []
    done += [_count(len(videos), "video")] if videos else []
    return f"{' and '.join(done)}: {args.output}", skipped


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _compare(args, checkpoints, cfgs, images, videos) -> tuple[str, list[DataError]]:
    if videos or args.weights or args.probabilities or args.cityscapes_submission:
        raise ValueError(
            "--compare takes images, and no --weights, --probabilities or --cityscapes-submission"
        )
    comparison = Comparison(checkpoints, cfgs)

    def compare(source: InputImage) -> None:
        path = args.output / COMPARE / f"{source.name}.png"
        image = read_image(source.path, "RGB")
        comparison.write(path, source, image)

    skipped = _each(images, compare, args.skip_errors)
    return f"{len(images) - len(skipped)} images: {args.output / COMPARE}", skipped


def _each(images: list[InputImage], function, skip_errors: bool) -> list[DataError]:
    """Call ``function`` for each image, below a progress bar; returns the errors it skipped."""
    skipped = []
    for source in tqdm(images, unit="image", disable=None if images else True):
        try:
            function(source)
        except DataError as error:
            if not skip_errors:
                raise
            skipped.append(error)
    return skipped


def _predict_video(path: str, output: Path, predictor: Predictor) -> None:
    """The overlay of each frame, with a legend of all classes."""
    reader = VideoReader(path)
    writer = VideoWriter(output, reader.rate)
    key = None
    for frame in tqdm(reader, total=reader.length or None, unit="frame", disable=None):
        classes = predictor(frame).classes
        picture = overlay(frame, classes, predictor.colors, scale=picture_scale(frame))
        if key is None:
            key = legend(predictor.class_names, predictor.colors, width=picture.shape[1])
        writer.write(stack([picture, key]))
    writer.close()


if __name__ == "__main__":
    main()
