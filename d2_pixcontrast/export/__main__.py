"""Share a trained model.

    python -m d2_pixcontrast.export publish      --config-file FILE --weights FILE --output DIR
    python -m d2_pixcontrast.export onnx         --config-file FILE --weights FILE --output FILE
    python -m d2_pixcontrast.export torch_export --config-file FILE --weights FILE --output FILE

publish writes the network that inference runs as model_final_<hash>.pth, its configs and a model
card. The other two write a graph that needs neither this package nor detectron2: from a
(1, 3, H, W) float RGB image of any size, values 0 to 255, to (1, C, H, W) logits.
"""

import argparse
import logging
import sys

from .command import add_arguments, run


def main(arguments: list[str] | None = None) -> None:
    """Run with command line arguments; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m d2_pixcontrast.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        for line in run(args):
            sys.stdout.write(f"{line}\n")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{parser.prog}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
