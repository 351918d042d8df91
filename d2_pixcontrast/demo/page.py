"""The demo's page."""

import platform

import numpy as np
import timm
import torch
from detectron2.data import MetadataCatalog

from ..compat import DETECTRON2_VERSION
from ..visualization import class_colors, write_report
from .progress import clock
from .training import Finished


def write_page(path: str, finished: list[Finished]) -> None:
    """Compare two finished runs, the baseline first, in an HTML file."""
    metadata = MetadataCatalog.get(finished[0].cfg.DATASETS.TEST[0])
    baseline, contrast = (run.result.scores["mIoU"] for run in finished)
    points = contrast - baseline
    outcome = f"{abs(points):.1f} points of mIoU {'more' if points > 0 else 'less'}"
    if abs(points) < 0.05:
        outcome = "no difference in mIoU"
    write_report(
        path,
        [run.result for run in finished],
        class_names=metadata.stuff_classes,
        colors=class_colors(metadata),
        samples=finished[0].samples,
        title="Pixel contrast on synthetic shapes",
        lead="The same small DeepLabV3+, trained twice from scratch: with cross-entropy alone, and "
        "with pixel contrast beside it. When it is used, the network is the same in both cases.",
        caveat=f"Pixel contrast gave {outcome} here. A few minutes on synthetic data at one "
        "seed prove nothing either way: at the demo's full length, three seeds of cross-entropy "
        "alone lay seven points apart.",
        setting=_setting(finished),
    )


def _setting(finished: list[Finished]) -> dict[str, str]:
    cfg, term = finished[1].cfg, finished[1].cfg.MODEL.PIXEL_CONTRAST
    solver, height_width = cfg.SOLVER, " × ".join(map(str, cfg.INPUT.CROP.SIZE))  # noqa: RUF001
    return {
        "Network": f"DeepLabV3+ on timm's {cfg.MODEL.TIMM.NAME}, output stride "
        f"{cfg.MODEL.TIMM.OUTPUT_STRIDE}, {finished[1].parameters / 1e6:.2f} million parameters",
        "Training": f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} crops of "
        f"{height_width}, {solver.OPTIMIZER}, learning rate {solver.BASE_LR:g} (poly)",
        "Pixel contrast": f"weight {term.LOSS_WEIGHT:g}, temperature {term.TEMPERATURE:g}, embeds "
        f"{' + '.join(term.IN_FEATURES)} in {term.PROJECTOR.DIM} dimensions, on after "
        f"{100 * term.WARMUP:g} % of the iterations",
        "Seed": str(cfg.SEED),
        "Time": ", ".join(
            f"{run.result.name} {clock(run.seconds)} "
            f"({run.seconds / run.cfg.SOLVER.MAX_ITER:.2f} s per iteration, evaluations included)"
            for run in finished
        ),
        "Device": f"{cfg.MODEL.DEVICE}, {torch.get_num_threads()} threads",
        "Configs": "configs/demo/shapes_ce.yaml, configs/demo/shapes_pixcontrast.yaml",
        "Versions": f"torch {torch.__version__}, detectron2 {DETECTRON2_VERSION}, timm "
        f"{timm.__version__}, numpy {np.__version__}, Python {platform.python_version()}",
    }
