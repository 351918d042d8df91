#!/usr/bin/env python
"""How hard each loss pulls: norms of its gradient, and its angle to that of the cross-entropy.

For a few training batches the gradient of every loss (with its weight) is taken alone, on the
backbone and on the decoder. A term whose norm is far above the cross-entropy's leads the training,
one far below does nothing; a cosine near -1 says that it pulls the other way. Example::

    python tools/measure_gradients.py --config-file A_pixcontrast.yaml --batches 4 \
        MODEL.WEIGHTS output/a/model_0000499.pth

Without a trained checkpoint as MODEL.WEIGHTS this is the first step of a training. Terms are taken
after their warm-up, and memories are filled with the batches before.
"""

import statistics

import torch
from inspection import inspection_parser, run_inspection

from d2_pixcontrast.engine import SemSegCheckpointer, Trainer, load_cfg
from d2_pixcontrast.modeling import TrainingProgress

CROSS_ENTROPY = "loss_sem_seg"
PARTS = {"backbone": "backbone.", "decoder": "sem_seg_head.decoder."}


def measure(cfg, batches: int) -> dict[str, dict[str, dict[str, float]]]:
    """Medians over the batches.

    Args:
        cfg: of a training.
        batches: how many are looked at, after as many that fill the memories.

    Returns:
        {loss: {part: {"norm": of its gradient, "ratio": to the cross-entropy's, "cosine": with
        the cross-entropy's}}}; a loss without a gradient there has norm 0.
    """
    model = Trainer.build_model(cfg).train()
    SemSegCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    progress = TrainingProgress(iteration=1, max_iter=1)
    for module in model.modules():
        if hasattr(module, "set_progress"):
            module.set_progress(progress)
    loader = iter(Trainer.build_train_loader(cfg))
    for _ in range(batches):
        model(next(loader))
    rows = [gradients(model, model(next(loader))) for _ in range(batches)]
    return {
        loss: {part: _medians([row[loss][part] for row in rows]) for part in PARTS}
        for loss in rows[0]
    }


def gradients(model: torch.nn.Module, losses: dict[str, torch.Tensor]) -> dict:
    """As :func:`measure` returns, for the losses of one batch."""
    flat = {
        loss: {part: _gradient(value, model, prefix) for part, prefix in PARTS.items()}
        for loss, value in losses.items()
    }
    return {
        loss: {part: _compare(g, flat[CROSS_ENTROPY][part]) for part, g in by_part.items()}
        for loss, by_part in flat.items()
    }


def _gradient(loss: torch.Tensor, model: torch.nn.Module, prefix: str) -> torch.Tensor:
    named = [p for n, p in model.named_parameters() if n.startswith(prefix) and p.requires_grad]
    found = torch.autograd.grad(loss, named, retain_graph=True, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(named, found, strict=True)]
    return torch.cat([gradient.flatten() for gradient in filled]).double()


def _compare(gradient: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    norm, other = gradient.norm().item(), reference.norm().item()
    product = norm * other
    return {
        "norm": norm,
        "ratio": norm / other if other else float("inf"),
        "cosine": (gradient @ reference).item() / product if product else 0.0,
    }


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def table(result: dict) -> str:
    """In Markdown."""
    lines = ["| loss | part | norm | / cross-entropy's | cosine |", "|---|---|---|---|---|"]
    for loss, by_part in result.items():
        for part, row in by_part.items():
            numbers = f"{row['norm']:.3g} | {row['ratio']:.2f} | {row['cosine']:+.2f}"
            lines.append(f"| {loss} | {part} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = inspection_parser(__doc__)
    parser.add_argument("--batches", type=int, default=4)
    run_inspection(parser, _inspect)


def _inspect(args) -> tuple[dict, str]:
    result = measure(load_cfg(args.config_file, args.opts), args.batches)
    return result, table(result)


if __name__ == "__main__":
    main()
