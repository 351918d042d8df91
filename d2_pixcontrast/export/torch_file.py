"""``export torch_export``: a ``.pt2`` file that torch alone can run."""

import json
from pathlib import Path

import torch

from .graph import InferenceGraph, trace


def export_torch(graph: InferenceGraph, path: Path, class_names: list[str]) -> None:
    """Write ``graph`` for ``torch.export.load(path).module()``.

    Args:
        graph: the network.
        path: of the file; its ending should be ``.pt2``.
        class_names: stored beside it as the extra file ``classes.json``.
    """
    torch.export.save(trace(graph), path, extra_files={"classes.json": json.dumps(class_names)})


def run_torch(path: Path, image: torch.Tensor) -> torch.Tensor:
    """Logits of a (1, 3, H, W) image."""
    return torch.export.load(path).module()(image)
