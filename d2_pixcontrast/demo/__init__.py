"""Train two small models, one with pixel contrast, and compare them in a self-contained page.

    python -m d2_pixcontrast.demo [--output output/demo] [--iterations N] [--seed 0]

Both have the same seed, initial network, data in the same order and schedule. What detectron2 logs
goes into ``log.txt`` of each run's folder.
"""

import argparse
import sys
from pathlib import Path

from ..compat import CfgNode
from ..engine import make_output_dir, setup_cfg
from ..visualization.tsne import scikit_learn
from .page import write_page
from .progress import Progress, say
from .training import log_to, train

CONFIGS = Path(__file__).parents[1] / "model_zoo" / "configs" / "demo"
RUNS = {
    "baseline": ("Cross-entropy", "shapes_ce.yaml"),
    "contrast": ("With pixel contrast", "shapes_pixcontrast.yaml"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the demo with command line arguments; see the module's docstring."""
    args = _parser().parse_args(arguments)
    try:
        scikit_learn()  # for the report, when both have been trained
    except ImportError as error:
        sys.exit(f"python -m d2_pixcontrast.demo: {error}")
    output = Path(args.output)
    try:
        configs = {name: _config(output / name, file, args) for name, (_, file) in RUNS.items()}
        for cfg in configs.values():
            make_output_dir(cfg)
    except (ValueError, OSError) as error:
        sys.exit(f"python -m d2_pixcontrast.demo: {error}")
    progress = Progress({name: cfg.SOLVER.MAX_ITER for name, cfg in configs.items()})
    finished = []
    for name, cfg in configs.items():
        with log_to(output / name / "log.txt"):
            finished.append(train(cfg, RUNS[name][0], progress.hook(name)))
    report = output / "report.html"
    write_page(str(report), finished)
    say("")
    for run in finished:
        say(f"{run.result.name:22}{run.result.scores['mIoU']:5.1f} mIoU")
    say(f"Report: {report.resolve()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m d2_pixcontrast.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", default="output/demo", help="folder (default: %(default)s)")
    parser.add_argument("--iterations", type=_positive, help="of each run (default: the configs')")
    parser.add_argument(
        "--seed", type=_not_negative, default=0, help="of both (default: %(default)s)"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("has to be at least 1")
    return value


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("has to be at least 0")
    return value


def _config(folder: Path, file: str, args: argparse.Namespace) -> CfgNode:
    """The checked config of a run; drawing the data set, when it is first used, happens here."""
    opts = ["OUTPUT_DIR", str(folder), "SEED", str(args.seed)]
    if args.iterations:
        # As many evaluations and as long a warm-up, in proportion, as in the config's own length.
        opts += ["SOLVER.MAX_ITER", str(args.iterations)]
        opts += ["SOLVER.WARMUP_ITERS", str(args.iterations // 20)]
        opts += ["TEST.EVAL_PERIOD", str(max(20, args.iterations // 8))]
    return setup_cfg(
        argparse.Namespace(
            config_file=str(CONFIGS / file), opts=opts, eval_only=False, num_gpus=1, num_machines=1
        )
    )
