"""The README.md of a published model."""

import math
import platform
from pathlib import Path

import detectron2
import torch

from .. import __version__
from ..compat import CfgNode
from ..config import WRAPPER_NAME
from ..engine.weights_file import file_sha256
from ..plugins import plugin_names
from .cost import NetworkCost
from .evaluated_at import evaluated_at
from .results import Scores


def model_card(
    cfg: CfgNode,
    *,
    files: list[Path],
    scores: list[Scores],
    class_names: list[str],
    cost: NetworkCost,
    iteration: int | None = None,
) -> str:
    """Markdown that says what the model is, what it was trained on and with, and how to use it.

    Args:
        cfg: config of the training.
        files: the weights files, the first of which the examples use.
        scores: of its data sets; [] where none are known.
        class_names: one per class.
        cost: of the network at inference.
        iteration: that the checkpoint was written in, counted from 0; None where it does not say.
    """
    sections = [
        f"# {_title(cfg)}",
        _table(_facts(cfg, cost, iteration)),
        "## Files",
        _table(
            {
                f"`{path.name}`": f"{_megabytes(path)}, SHA-256 `{file_sha256(path)}`"
                for path in files
            }
        ),
        "`config.yaml` builds exactly this network; `training_config.yaml` is what it was trained "
        "with.",
        "## Scores",
        *[_scores(found, cfg, class_names) for found in scores],
        *([] if scores else ["Not known: no evaluation of this checkpoint lay beside it."]),
        "## Use",
        _usage(files[0], cfg),
        "## Classes",
        "\n".join(f"{index}. {name}" for index, name in enumerate(class_names)),
        "## Licence",
        "The weights are derived from the training data and from the weights that the training "
        "started from: their licences say what may be done with this file, whatever the licence "
        "of the code (Apache-2.0) is. Several of the public data sets allow research alone.",
    ]
    return "\n\n".join(sections) + "\n"


def _title(cfg: CfgNode) -> str:
    return f"{_network(cfg)} on {', '.join(cfg.DATASETS.TRAIN) or 'unnamed data'}"


def _network(cfg: CfgNode) -> str:
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.NAME == "PixelContrastSemSegHead":
        decoder = head.DECODER
    else:
        decoder = head.WRAPPED if head.NAME == WRAPPER_NAME else head.NAME
    backbone = cfg.MODEL.BACKBONE.NAME
    if backbone == "build_timm_backbone":
        backbone = cfg.MODEL.TIMM.NAME
    elif "resnet" in backbone:
        backbone = f"ResNet-{cfg.MODEL.RESNETS.DEPTH}"
    memory = " with a dataset-level memory" if cfg.MODEL.DATASET_MEMORY.ENABLED else ""
    return f"{decoder}{memory}, {backbone}"


def _losses(cfg: CfgNode) -> list[str]:
    """Of the training, with the weights that the config gives to those beside the main one."""
    head, memory = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.DATASET_MEMORY
    main = head.LOSS_TYPE.replace("cross_entropy", "cross-entropy").replace("_", " ")
    weights = {f"auxiliary head on {name}": head.AUX.LOSS_WEIGHT for name in head.AUX.IN_FEATURES}
    if head.DECODER == "OCRDecoder":
        weights["object regions"] = head.AUX.LOSS_WEIGHT
    if memory.ENABLED:
        weights["stage 1 of the memory"] = memory.STAGE1_LOSS_WEIGHT
        weights["context of the memory"] = memory.CONTEXT_LOSS_WEIGHT
        weights["consistency of the memory"] = memory.CONSISTENCY.LOSS_WEIGHT
    return [
        f"{main}, classes weighted" if head.CLASS_WEIGHTS else main,
        *(f"{name} ({weight:g})" for name, weight in weights.items() if weight),
        *head.TERMS,
    ]


def _memory(cfg: CfgNode) -> str:
    node = cfg.MODEL.DATASET_MEMORY
    if node.READ == "zeros":
        return "read as zeros (an ablation)"
    if node.KIND == "statistics":
        return "mean and standard deviation of each class (MCIBI++)"
    entries = "1 entry" if node.ENTRIES_PER_CLASS == 1 else f"{node.ENTRIES_PER_CLASS} entries"
    return f"{entries} of {node.CHANNELS} channels for each class (MCIBI)"


def _facts(cfg: CfgNode, cost: NetworkCost, iteration: int | None) -> dict[str, str]:
    solver, head = cfg.SOLVER, cfg.MODEL.SEM_SEG_HEAD
    crop = "x".join(map(str, cfg.INPUT.CROP.SIZE)) if cfg.INPUT.CROP.ENABLED else "none"
    return {
        "Task": "semantic segmentation",
        "Training data": ", ".join(cfg.DATASETS.TRAIN),
        "Classes": f"{head.NUM_CLASSES}, ignored label {head.IGNORE_VALUE}",
        "Losses": ", ".join(_losses(cfg)),
        **({"Memory": _memory(cfg)} if cfg.MODEL.DATASET_MEMORY.ENABLED else {}),
        "Initial weights": cfg.MODEL.WEIGHTS or "random",
        "Schedule": f"{_length(solver.MAX_ITER, iteration)}, batches of "
        f"{solver.IMS_PER_BATCH} images, crop {crop}, scale {tuple(cfg.INPUT.SCALE_RANGE)}",
        "Optimiser": f"{solver.OPTIMIZER}, learning rate {solver.BASE_LR}, "
        f"weight decay {solver.WEIGHT_DECAY}, {solver.LR_SCHEDULER_NAME}",
        "Seed": str(cfg.SEED) if cfg.SEED >= 0 else "drawn",
        **({"Plugins": ", ".join(plugin_names())} if plugin_names() else {}),
        "Evaluated at": evaluated_at(cfg),
        "Cost": str(cost),
        "Published with": f"d2_pixcontrast {__version__}, detectron2 {detectron2.__version__}, "
        f"torch {torch.__version__}, Python {platform.python_version()}",
    }


def _length(max_iter: int, iteration: int | None) -> str:
    # MAX_ITER itself: a best checkpoint of the last evaluation, as earlier versions wrote it.
    if iteration is None or iteration >= max_iter - 1:
        return f"{max_iter} iterations"
    return f"checkpoint of iteration {iteration + 1} of {max_iter}"


def _scores(scores: Scores, cfg: CfgNode, class_names: list[str]) -> str:
    dataset = scores.dataset or ", ".join(cfg.DATASETS.TEST)
    images = f", {scores.num_images} images" if scores.num_images else ""
    # NaN: a class that is nowhere in the data.
    values = {k: f"{v:.2f}" if math.isfinite(v) else "-" for k, v in scores.values.items()}
    means = sorted((name for name in values if "-" not in name), key=lambda n: (n != "mIoU", n))
    by_class = {name: values[f"IoU-{name}"] for name in class_names if f"IoU-{name}" in values}
    text = f"{dataset}{images}, in percent, from the run's `{scores.source}`.\n\n"
    text += _table({name: values[name] for name in means})
    return f"{text}\n\nIoU by class:\n\n{_table(by_class)}" if by_class else text


def _usage(weights: Path, cfg: CfgNode) -> str:
    # Where the test data of a reader lies is not where it lay in the training.
    own = [name for name in cfg.DATASETS.TEST if name in cfg.DATASETS.SEM_SEG_FOLDERS]
    folders = "".join(
        f" \\\n    DATASETS.SEM_SEG_FOLDERS.{name}.{kind} DIR"
        for name in own
        for kind in ("IMAGES", "LABELS")
    )
    return f"""```bash
python train_net.py --config-file config.yaml --eval-only MODEL.WEIGHTS {weights.name}{folders}
python -m d2_pixcontrast.predict --config-file config.yaml --weights {weights.name} \\
    --input IMAGE_OR_FOLDER --output DIR
```

```python
from d2_pixcontrast.engine import load_cfg, load_inference_model

model = load_inference_model(load_cfg("config.yaml"), "{weights.name}")
```"""


def _table(rows: dict[str, str]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    )


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.1f} MiB"
