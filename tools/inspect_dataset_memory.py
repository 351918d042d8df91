#!/usr/bin/env python
"""How much a trained network makes of its data-set memory (MCIBI).

Where the entries of two classes have a cosine near 1, what was read says little about the class.
What a pixel gathers of the memory is a mean over the image where its attention spreads over all
positions: the spread is exp(entropy) over their number, 1 for a uniform one. The layer that fuses
a pixel with what it has gathered answers to both; the share is the variance, between the pixels of
an image, of what it answers to the memory, over the sum of that and of what it answers to the pixel
itself. Example::

    python tools/inspect_dataset_memory.py --config-file output/mcibi/config.yaml --images 20 \
        MODEL.WEIGHTS output/mcibi/model_final.pth
"""

import contextlib
import itertools
import statistics
from collections.abc import Iterator

import torch
from inspection import inspection_parser, run_inspection
from torch import nn
from torch.nn import functional as F

from d2_pixcontrast.contrast import MemoryEntries
from d2_pixcontrast.engine import Trainer, load_cfg, load_inference_model
from d2_pixcontrast.modeling.aggregation.attention import GridAttention

MOST_QUERIES = 1024  # of an image, evenly spread; the table of all pairs of positions would be huge


def cosines(entries: MemoryEntries) -> dict[str, float]:
    """Between the filled entries of different classes.

    Returns:
        {"lowest", "mean", "highest"}.

    Raises:
        ValueError: fewer than two classes have one.
    """
    rows = F.normalize(entries.rows[entries.mask].double(), dim=1)
    labels = entries.labels[entries.mask]
    values = (rows @ rows.t())[labels[:, None] != labels]
    if not len(values):
        raise ValueError("the memory is empty: MODEL.WEIGHTS has to be a checkpoint of a training")
    lowest, highest = values.aminmax()
    return {"lowest": lowest.item(), "mean": values.mean().item(), "highest": highest.item()}


@torch.no_grad()
def spread(attention: GridAttention, asking: torch.Tensor, source: torch.Tensor) -> float:
    """Share of the positions that the attention of a position covers, the mean over positions.

    Args:
        attention: in evaluation.
        asking, source: (1, C, h, w), its input.
    """
    query = attention.query(asking)[0].flatten(1).t()
    query = query[:: -(-len(query) // MOST_QUERIES)]
    key = attention.key(source)[0].flatten(1)
    logs = (query @ key / query.shape[1] ** 0.5).log_softmax(dim=1)
    entropy = -(logs.exp() * logs).sum(dim=1)
    return (entropy.exp().mean() / key.shape[1]).item()


@torch.no_grad()
def memory_share(fuse: nn.Conv2d, joined: torch.Tensor) -> float:
    """Share of the memory in how differently a layer answers to the pixels of an image.

    Args:
        fuse: a convolution of pixels and of what they have gathered, as many channels each.
        joined: (1, 2 * D, h, w), its input.
    """
    half = joined.shape[1] // 2
    own, memory = (
        F.conv2d(part, weight, padding=fuse.padding).var(dim=(0, 2, 3)).sum().item()
        for part, weight in zip(joined.split(half, 1), fuse.weight.split(half, 1), strict=True)
    )
    return memory / (own + memory)


@contextlib.contextmanager
def recorded_inputs(modules: list[nn.Module]) -> Iterator[dict[nn.Module, tuple]]:
    """A dict that gets the inputs of the last call of each of the modules within the context."""
    inputs: dict[nn.Module, tuple] = {}
    handles = [m.register_forward_hook(lambda m, i, _: inputs.update({m: i})) for m in modules]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def inspect(model: nn.Module, batches) -> dict:
    """
    Args:
        model: in evaluation, whose head has a data-set memory.
        batches: of one image each.

    Returns:
        {"cosines": see :func:`cosines`, "spread" and "memory_share": means over the images}.

    Raises:
        ValueError: the memory is empty, or there are no images.
    """
    aggregation = model.sem_seg_head.aggregation
    result = {"cosines": cosines(aggregation.memory.class_entries())}
    attentions, spreads, shares = list(aggregation.memory_attentions), [], []
    with recorded_inputs([*attentions, aggregation.fuse]) as inputs, torch.no_grad():
        for batch in batches:
            model(batch)
            spreads.append(statistics.mean(spread(a, *inputs[a]) for a in attentions))
            shares.append(memory_share(aggregation.fuse, *inputs[aggregation.fuse]))
    if not shares:
        raise ValueError("there are no images: --images and DATASETS.TEST say which")
    return {**result, "spread": statistics.mean(spreads), "memory_share": statistics.mean(shares)}


def table(result: dict) -> str:
    """In Markdown."""
    found = result["cosines"]
    lines = [
        "| | |\n|---|---|",
        f"| cosine of two classes' entries, mean | {found['mean']:.2f} |",
        f"| lowest, highest | {found['lowest']:.2f}, {found['highest']:.2f} |",
        f"| spread of the attention | {result['spread']:.1%} |",
        f"| share of the memory | {result['memory_share']:.1%} |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = inspection_parser(__doc__)
    parser.add_argument("--images", type=int, default=20, help="of DATASETS.TEST, evenly spread")
    run_inspection(parser, _inspect)


def _inspect(args) -> tuple[dict, str]:
    cfg = load_cfg(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    if not cfg.MODEL.DATASET_MEMORY.ENABLED:
        raise ValueError("the config has no MODEL.DATASET_MEMORY.ENABLED")
    result = inspect(*_model_and_images(cfg, args.images))
    return result, table(result)


def _model_and_images(cfg, count: int):
    model = load_inference_model(cfg, cfg.MODEL.WEIGHTS)
    loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    step = max(1, len(loader) // max(1, count))
    return model, itertools.islice(loader, 0, step * count, step)


if __name__ == "__main__":
    main()
