#!/usr/bin/env python
"""What a memory of pixel contrast holds, and what mining picks of it.

An entry is an outlier if it lies nearer to the mean of another class than to that of its own: a
pixel at a boundary, under a wrong label, or of something that the network does not know yet. Their
share is given for each class, for all pairs, and for those that ``semi_hard`` mining draws from
(the farthest positives, the nearest negatives), each with the pairs' mean cosine: where that of the
negatives is close to 1, the embeddings have contracted. Example::

    python tools/inspect_memory.py --config-file output/mem/config.yaml \
        MODEL.WEIGHTS output/mem/model_0002499.pth
"""

from collections.abc import Sequence

import torch
from inspection import inspection_parser, run_inspection
from torch.nn import functional as F

from d2_pixcontrast.contrast import ClassEntries, Mining
from d2_pixcontrast.contrast.mining import choose
from d2_pixcontrast.engine import SemSegCheckpointer, Trainer, load_cfg
from d2_pixcontrast.export.publish import class_names

TERM = "PixelContrast"


def inspect(bank: Sequence[ClassEntries], hard_fraction: float, anchors: int = 3000) -> dict:
    """Shares of outliers in a bank.

    Args:
        bank: as :func:`~d2_pixcontrast.contrast.pixel_contrast_loss` takes it.
        hard_fraction: share of an anchor's positives, and of its negatives, that are the hardest.
        anchors: how many entries, drawn at random of those that are no outliers, are the anchors.

    Returns:
        {"entries": number, "classes": share of each class (NaN without entries), "positives",
        "hard_positives", "negatives", "hard_negatives": share of the anchors' pairs, "cosine":
        {the same four: mean cosine of these pairs}}.

    Raises:
        ValueError: the bank is empty.
    """
    rows, classes = _filled(bank)
    num_classes = len(bank[0].fill)
    sums = rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, classes, rows)
    outlier = (rows @ F.normalize(sums, dim=1).t()).argmax(dim=1) != classes
    counts = classes.bincount(minlength=num_classes)
    shares = outlier.double().new_zeros(num_classes).index_add_(0, classes, outlier.double())
    usual = (~outlier).nonzero().squeeze(1)
    order = torch.randperm(len(usual), generator=torch.Generator().manual_seed(0))
    anchor = usual[order[:anchors]]
    cosine = rows[anchor] @ rows.t()
    same = classes[anchor, None] == classes
    itself = torch.arange(len(rows)) == anchor[:, None]
    mining = Mining("semi_hard", hard_fraction=hard_fraction)
    keys = torch.zeros_like(anchor)  # nothing is drawn: there is room for all of the hardest
    result = {"entries": len(rows), "classes": (shares / counts).tolist(), "cosine": {}}
    for name, hardness, pairs in (
        ("positives", -cosine, same & ~itself),
        ("negatives", cosine, ~same),
    ):
        hardness = hardness.masked_fill(~pairs, -torch.inf)
        index, mask = choose(hardness, mining, hardness.shape[1], keys)
        result[name] = _mean(outlier, pairs)
        result[f"hard_{name}"] = _mean(outlier[index], mask)
        result["cosine"][name] = _mean(cosine, pairs)
        result["cosine"][f"hard_{name}"] = _mean(cosine.gather(1, index), mask)
    return result


def _filled(bank: Sequence[ClassEntries]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, classes = [], []
    for entries, fill in bank:
        filled = torch.arange(entries.shape[1]) < fill[:, None]
        rows.append(entries[filled].float())
        classes.append(filled.nonzero()[:, 0])
    if not sum(map(len, rows)):
        raise ValueError("the memory is empty: MODEL.WEIGHTS has to be a checkpoint of a training")
    return torch.cat(rows), torch.cat(classes)


def _mean(values: torch.Tensor, mask: torch.Tensor) -> float:
    return ((values * mask).sum() / mask.sum()).item()


def table(result: dict, names: Sequence[str], hard_fraction: float) -> str:
    """In Markdown."""
    hardest = f"the hardest {hard_fraction:.0%} of"
    rows = [("positives", "positives"), (f"{hardest} the positives", "hard_positives")]
    rows += [("negatives", "negatives"), (f"{hardest} the negatives", "hard_negatives")]
    lines = [f"{result['entries']} entries", "", "| of | outliers | mean cosine |", "|---|---|---|"]
    lines += [
        f"| {words} | {result[key]:.1%} | {result['cosine'][key]:.2f} |" for words, key in rows
    ]
    lines += [f"| class {n} | {s:.1%} | |" for n, s in zip(names, result["classes"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    run_inspection(inspection_parser(__doc__), _inspect)


def _inspect(args) -> tuple[dict, str]:
    cfg = load_cfg(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    fraction = cfg.MODEL.PIXEL_CONTRAST.MINING.HARD_FRACTION
    result = inspect(_bank(cfg), fraction)
    return result, table(result, class_names(cfg), fraction)


def _bank(cfg) -> list[ClassEntries]:
    if TERM not in cfg.MODEL.SEM_SEG_HEAD.TERMS or not cfg.MODEL.PIXEL_CONTRAST.MEMORY.ENABLED:
        raise ValueError(
            f"the config has no {TERM} in MODEL.SEM_SEG_HEAD.TERMS with "
            "MODEL.PIXEL_CONTRAST.MEMORY.ENABLED"
        )
    model = Trainer.build_model(cfg)
    SemSegCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.sem_seg_head.terms[TERM].bank.entries()


if __name__ == "__main__":
    main()
