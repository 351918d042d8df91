"""What the tools have in common that look at the model of one config."""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path


def inspection_parser(description: str) -> argparse.ArgumentParser:
    """Of a config file, KEY VALUE pairs and ``--json``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--json", type=Path, help="write the result there, too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser


def run_inspection(parser: argparse.ArgumentParser, inspect: Callable) -> None:
    """Print what ``inspect`` finds; end with one line where its input is bad.

    Args:
        parser: see :func:`inspection_parser`.
        inspect: of the arguments, to the result for ``--json`` and its text.
    """
    args = parser.parse_args()
    logging.disable(logging.INFO)
    try:
        result, text = inspect(args)
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(text)
