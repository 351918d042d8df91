"""``export torch_export``: a ``.pt2`` file that torch alone can run."""

import json
from pathlib import Path

import torch


def write_torch(
    program: torch.export.ExportedProgram, path: Path, class_names: list[str], evaluated_at: str
) -> None:
    """Write a network for ``torch.export.load(path).module()``.

    Args:
        program: see :func:`~d2_pixcontrast.export.trace`.
        path: of the file; its ending should be ``.pt2``.
        class_names: stored beside it as the extra file ``classes.json``.
        evaluated_at: as ``evaluated_at.txt``, see :func:`~d2_pixcontrast.export.evaluated_at`.
    """
    extra = {"classes.json": json.dumps(class_names), "evaluated_at.txt": evaluated_at}
    torch.export.save(program, path, extra_files=extra)


def run_torch(path: Path, image: torch.Tensor) -> torch.Tensor:
    """Logits of a (1, 3, H, W) image."""
    return torch.export.load(path).module()(image)
