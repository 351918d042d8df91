"""``export publish``: from a training's checkpoint to a folder that others can use."""

import hashlib
import io
import logging
import os
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from safetensors.torch import save as safetensors_bytes

from ..compat import CfgNode
from ..config import flat_items, inference_config
from ..engine.inference import load_inference_model
from ..engine.weights_file import read_weights_file
from .cost import network_cost
from .graph import InferenceGraph
from .model_card import model_card
from .results import find_results, read_results

_HASH_DIGITS = 8
# What the card tells of the training.
_TOLD = ("SOLVER.", "DATASETS.", "SEED", "MODEL.WEIGHTS")

logger = logging.getLogger(__name__)


class Published(NamedTuple):
    """What :func:`publish` has written.

    Attributes:
        weights: ``model_final_<first digits of its SHA-256>.pth``.
        safetensors: the same in that format, or None.
        config: the config that the weights fill exactly.
        training_config: the config that they were trained with.
        card: README.md.
        bytes_before, bytes_after: size of the checkpoint and of ``weights``.
    """

    weights: Path
    safetensors: Path | None
    config: Path
    training_config: Path
    card: Path
    bytes_before: int
    bytes_after: int


def publish(
    cfg: CfgNode,
    weights: str,
    output: Path,
    *,
    results: Path | None = None,
    safetensors: bool = False,
) -> Published:
    """Write the network of a checkpoint, its configs and a model card to the folder ``output``.

    The network is the one that inference runs: no terms, projectors, banks, auxiliary heads,
    wrapper or optimiser. Whatever it reads at inference stays. The same checkpoint gives the same
    bytes.

    Args:
        cfg: config of the training.
        weights: a checkpoint of it.
        output: folder, made where it is missing; not that of the training.
        results: ``sem_seg_evaluation.json`` of these weights; None to look for the evaluation of
            the checkpoint's iteration in the ``metrics.json`` beside it.
        safetensors: write that format, too.

    Raises:
        ValueError: the weights cannot be read or do not fill the network, ``results`` is not such a
            file, or ``output`` holds a file that would be lost.
    """
    _check_output(output)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, device = "cpu", cfg.MODEL.DEVICE
    scores = [read_results(results)] if results else []
    model = load_inference_model(cfg, weights)
    checkpoint = PathManager.get_local_path(weights)
    iteration = read_weights_file(checkpoint, map_location="meta").get("iteration")
    if not scores:
        scores = find_results(
            Path(checkpoint).parent, iteration, cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST
        )
    _warn_of_another_config(cfg, Path(checkpoint).with_name("config.yaml"))
    state = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    cost = network_cost(InferenceGraph(model, cfg.INPUT.FORMAT), _image_size(cfg))

    output.mkdir(parents=True, exist_ok=True)
    files = [_write_hashed(output, "pth", _torch_bytes(state))]
    if safetensors:
        files.append(
            _write_hashed(output, "safetensors", safetensors_bytes(state, {"format": "pt"}))
        )
    cfg.MODEL.DEVICE = device
    cfg = _portable(cfg)
    card = model_card(
        cfg,
        files=files,
        scores=scores,
        class_names=class_names(cfg),
        cost=cost,
        iteration=iteration,
    )
    return Published(
        weights=files[0],
        safetensors=files[1] if safetensors else None,
        config=_write_text(output / "config.yaml", _without_weights(inference_config(cfg)).dump()),
        training_config=_write_text(output / "training_config.yaml", cfg.dump()),
        card=_write_text(output / "README.md", card),
        bytes_before=os.path.getsize(checkpoint),
        bytes_after=os.path.getsize(files[0]),
    )


def class_names(cfg: CfgNode) -> list[str]:
    """Names of the classes of the config's data; "class <id>" where that is not registered."""
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = MetadataCatalog.get(dataset).get("stuff_classes")
        if names:
            return list(names)
    return [f"class {index}" for index in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]


def _check_output(output: Path) -> None:
    """Refuse a folder whose config.yaml or README.md something else than publishing has written:
    the run's own, with its paths and terms, is what ``--resume`` needs."""
    if (output / "training_config.yaml").exists():
        return
    for name in ("config.yaml", "README.md"):
        if (output / name).exists():
            raise ValueError(
                f"--output {output} holds a {name} that publishing would replace; name a folder of "
                f"its own, such as {output / 'published'}"
            )


def _warn_of_another_config(cfg: CfgNode, run_config: Path) -> None:
    """Say in a line where the card would tell of another training than the run's own config."""
    if not run_config.is_file():
        return
    try:
        with open(run_config, encoding="utf-8") as file:
            theirs = yaml.safe_load(file)
        ours = dict(flat_items(yaml.safe_load(cfg.dump())))
        theirs = dict(flat_items(theirs))
        # Keys that only one of the two has are those of another version.
        other = [key for key, value in ours.items() if theirs.get(key, value) != value]
        other = [key for key in other if key.startswith(_TOLD)]
    except (OSError, yaml.YAMLError, AttributeError) as error:
        logger.warning(f"{run_config} cannot be compared with the given config: {error}")
        return
    if other:
        named = ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
        logger.warning(
            f"the model card may be wrong: {named} of the given config {_are(other)} "
            f"of the run; publish with --config-file {run_config}"
        )


def _are(keys: list[str]) -> str:
    return "is not that" if len(keys) == 1 else "are not those"


def _image_size(cfg: CfgNode) -> tuple[int, int]:
    """The training's crop, or (512, 512) where there is none in pixels."""
    crop = cfg.INPUT.CROP
    if crop.ENABLED and crop.TYPE == "absolute":
        return tuple(crop.SIZE)
    return 512, 512


def _torch_bytes(state: dict[str, torch.Tensor]) -> bytes:
    # Into memory: a file's name would become part of its content.
    buffer = io.BytesIO()
    torch.save({"model": state}, buffer)
    return buffer.getvalue()


def _write_hashed(folder: Path, ending: str, content: bytes) -> Path:
    digits = hashlib.sha256(content).hexdigest()[:_HASH_DIGITS]
    path = folder / f"model_final_{digits}.{ending}"
    path.write_bytes(content)
    return path


def _write_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _portable(cfg: CfgNode) -> CfgNode:
    """The config without this machine's folders, and with the names that files there give."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = "./output"
    if "://" not in cfg.MODEL.WEIGHTS:
        cfg.MODEL.WEIGHTS = os.path.basename(cfg.MODEL.WEIGHTS)
    for name, node in cfg.DATASETS.get("SEM_SEG_FOLDERS", {}).items():
        node.IMAGES = os.path.basename(os.path.normpath(node.IMAGES)) or "images"
        node.LABELS = os.path.basename(os.path.normpath(node.LABELS)) or "labels"
        metadata = MetadataCatalog.get(name)
        node.CLASSES = list(metadata.get("stuff_classes", node.CLASSES))
        if colors := metadata.get("stuff_colors"):
            node.COLORS = [list(color) for color in colors]
    return cfg


def _without_weights(cfg: CfgNode) -> CfgNode:
    """Where the published file will lie is not known here."""
    cfg.MODEL.WEIGHTS = ""
    return cfg
