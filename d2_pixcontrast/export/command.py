"""The commands of ``python -m d2_pixcontrast.export``."""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..engine import load_cfg
from ..engine.inference import load_inference_model
from .cost import network_cost
from .evaluated_at import evaluated_at
from .graph import InferenceGraph, example_size, smallest_side, trace
from .onnx_file import run_onnx, write_onnx
from .publish import Published, class_names, publish
from .torch_file import run_torch, write_torch

TOLERANCE = 1e-4  # between the logits of the written graph and of the network
_CHECKED_SIZE = (117, 155)

_GRAPHS = {"onnx": (write_onnx, run_onnx), "torch_export": (write_torch, run_torch)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the commands and their options."""
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("publish", *_GRAPHS):
        command = commands.add_parser(name)
        command.add_argument("--config-file", required=True, help="config of the training")
        command.add_argument("--weights", required=True, help="its checkpoint")
        command.add_argument("--output", required=True, type=Path)
        if name == "publish":
            command.add_argument(
                "--results",
                type=Path,
                help="sem_seg_evaluation.json of these weights, for the model card; "
                "default: what the metrics.json beside the weights says of their iteration",
            )
            command.add_argument("--safetensors", action="store_true", help="write these, too")
        command.add_argument(
            "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config"
        )


def run(args: argparse.Namespace) -> Iterator[str]:
    """Do what the command line says; gives lines to print.

    Raises:
        ValueError: bad input, or a graph that does not compute what the network does.
        ImportError: a package of the extra "export" is missing.
    """
    cfg = load_cfg(args.config_file, args.opts)
    if args.command == "publish":
        published = publish(
            cfg, args.weights, args.output, results=args.results, safetensors=args.safetensors
        )
        yield from _published_lines(args.weights, published)
        return
    cfg.MODEL.DEVICE = "cpu"
    graph = InferenceGraph(load_inference_model(cfg, args.weights), cfg.INPUT.FORMAT).eval()
    write, execute = _GRAPHS[args.command]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write(trace(graph), args.output, class_names(cfg), evaluated_at(cfg))
    yield f"{args.output}: {_mebibytes(os.path.getsize(args.output))}"
    yield (
        f"takes an image at its own size, of {smallest_side(graph)} pixels a side at least; the "
        f"config evaluates at {evaluated_at(cfg)}"
    )
    yield f"network: {network_cost(graph, example_size(graph, _CHECKED_SIZE))}"
    yield compare(graph, args.output, execute)


def compare(graph: InferenceGraph, path: Path, execute: Callable) -> str:
    """Run a written file and the network on an image of a size that was not traced.

    Args:
        graph: the network.
        path: of the file.
        execute: (path, image) to logits.

    Returns:
        a line to print.

    Raises:
        ValueError: their logits differ by more than TOLERANCE (of the largest, where that is
            above 1).
    """
    size = example_size(graph, _CHECKED_SIZE)
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
    try:
        found = execute(path, image)
    except ImportError as error:
        return f"not checked ({error})"
    with torch.no_grad():
        expected = graph(image)
    difference = (found - expected).abs().max().item()
    scale = max(expected.abs().max().item(), 1.0)
    if not difference <= TOLERANCE * scale:
        raise ValueError(f"{path} differs from the network: logits by up to {difference:.2g}")
    return f"logits differ from the network's by at most {difference:.1e} (image {size})"


def _published_lines(weights: str, published: Published) -> Iterator[str]:
    before, after = published.bytes_before, published.bytes_after
    yield f"before: {weights}: {_mebibytes(before)}"
    yield f"after: {published.weights}: {_mebibytes(after)} ({after / before:.0%})"
    for path in (published.safetensors, *published[2:5]):
        if path is not None:
            yield f"       {path}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
