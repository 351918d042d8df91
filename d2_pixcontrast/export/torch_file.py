"""``export torch_export``: a ``.pt2`` file that torch alone can run."""

import json
from pathlib import Path

import torch


def write_torch(program: torch.export.ExportedProgram, path: Path, class_names: list[str]) -> None:
    """Write a network for ``torch.export.load(path).module()``.

    Args:
        program: see :func:`~d2_pixcontrast.export.trace`.
        path: of the file; its ending should be ``.pt2``.
        class_names: stored beside it as the extra file ``classes.json``.
    """
    torch.export.save(program, path, extra_files={"classes.json": json.dumps(class_names)})


def run_torch(path: Path, image: torch.Tensor) -> torch.Tensor:
    """Logits of a (1, 3, H, W) image."""
    return torch.export.load(path).module()(image)
