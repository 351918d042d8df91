#!/usr/bin/env python
"""Report what is in a dataset's files: ids, class shares, sizes, missing or unusable files.

Of datasets that are registered, of all that a config names, or of two folders:

    python datasets/check_dataset.py --dataset camvid_sem_seg_train camvid_sem_seg_val
    python datasets/check_dataset.py --config-file configs/....yaml [KEY VALUE ...]
    python datasets/check_dataset.py --images DIR --labels DIR --classes classes.txt

The exit code is 1 where there is an error, such as a label that training could not use, or a config
whose NUM_CLASSES is not the number of classes.
"""

import argparse
import sys

from d2_pixcontrast.data.check import check_datasets
from d2_pixcontrast.data.datasets.folders import read_classes
from d2_pixcontrast.data.labels import DataError
from d2_pixcontrast.data.parallel import available_cores
from d2_pixcontrast.data.survey import Source, folder_source, named_source, survey
from d2_pixcontrast.engine import load_cfg


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", nargs="+", metavar="NAME", help="registered datasets")
    what.add_argument("--config-file", metavar="FILE", help="its DATASETS.TRAIN and TEST")
    what.add_argument("--images", metavar="DIR", help="folder of images")
    parser.add_argument("--labels", metavar="DIR", help="folder of labels")
    parser.add_argument(
        "--classes",
        nargs="+",
        help="names of the ids (two or more), or one text file; without: any id will do",
    )
    parser.add_argument("--ignore-value", type=int, default=255, help="default 255")
    parser.add_argument("--image-suffix", default="", help="default: any image's extension")
    parser.add_argument("--label-suffix", default="", help="default: any image's extension")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="options of the config")
    args = parser.parse_args(argv)
    if bool(args.images) != bool(args.labels):
        parser.error("--images and --labels go together")
    if args.opts and not args.config_file:
        parser.error(f"KEY VALUE options need --config-file: {' '.join(args.opts)}")
    return args


def sources(args: argparse.Namespace, cfg) -> list[Source]:
    if args.images:
        classes = args.classes
        if classes and len(classes) == 1:
            classes, _ = read_classes(classes[0])
        return [
            folder_source(
                classes,
                args.ignore_value,
                image_root=args.images,
                label_root=args.labels,
                image_suffix=args.image_suffix,
                label_suffix=args.label_suffix,
            )
        ]
    names = args.dataset or [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    return [named_source(name) for name in dict.fromkeys(names)]


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        cfg = load_cfg(args.config_file, args.opts) if args.config_file else None
        reports = [survey(source, args.workers) for source in sources(args, cfg)]
        sys.stdout.write("\n\n".join(text for text, _ in reports) + "\n")
        if not all(good for _, good in reports):
            return 1
        if cfg is not None:  # do the files and the model agree?
            check_datasets(cfg)
    except (DataError, ValueError) as error:
        sys.stderr.write(f"check_dataset.py: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
