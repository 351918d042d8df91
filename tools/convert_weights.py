#!/usr/bin/env python
"""Converts a checkpoint of another code base, for --eval-only or to train on from it.

The config says which network of ours the file is to fill; configs/published has one for each
published model. Nothing in the file is run. Every tensor in it is mapped, dropped for a reason that
is printed, or an error. Example::

    python tools/convert_weights.py --source mmseg \
        --config-file configs/published/mmseg/cityscapes_fcn_hrnet_w18.yaml IN.pth OUT.pth
    python train_net.py --config-file configs/published/mmseg/cityscapes_fcn_hrnet_w18.yaml \
        --eval-only MODEL.WEIGHTS OUT.pth
"""

import argparse
import logging
import sys
from pathlib import Path

from d2_pixcontrast.conversion import SOURCES, convert, write
from d2_pixcontrast.engine import load_cfg


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, choices=sorted(SOURCES), help="whose file it is")
    parser.add_argument("--config-file", required=True, help="of the network in the file")
    parser.add_argument(
        "--copy",
        default="",
        help="which of the file's networks to take, such as ema_state_dict; default: the trained",
    )
    parser.add_argument("input", metavar="IN", help="the other code base's checkpoint")
    parser.add_argument("output", metavar="OUT", type=Path, help="ours, a file for MODEL.WEIGHTS")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs for the config")
    args = parser.parse_intermixed_args()  # options may come last
    logging.disable(logging.WARNING)
    try:
        if not Path(args.input).is_file():
            raise ValueError(f"there is no file {args.input}")
        if args.output.exists() and args.output.samefile(args.input):
            raise ValueError(f"OUT would replace IN, {args.input}; give it another name")
        cfg = load_cfg(args.config_file, args.opts)
        conversion = convert(cfg, SOURCES[args.source], args.input, args.copy)
        write(conversion, args.output)
    except (ValueError, OSError) as error:
        sys.exit(f"convert_weights.py: {error}")
    lines = [*conversion.lines(), f"wrote {args.output}"]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
