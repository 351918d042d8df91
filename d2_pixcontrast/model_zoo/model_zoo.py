"""The functions of detectron2's model_zoo, for this package's configs."""

from pathlib import Path

import torch
from detectron2.utils.file_io import PathManager

from ..compat import CfgNode
from ..engine.checkpoint import SemSegCheckpointer
from ..engine.inference import load_inference_model, on_this_machine
from ..engine.setup import load_cfg
from ..engine.weights_file import file_sha256
from ..modeling import build_model
from ..modeling.registry import suggest
from .table import TABLE_VARIABLE, Checkpoint, read_table

_CONFIGS = Path(__file__).parent / "configs"


def get_config_file(config_path: str) -> str:
    """Path of a config that comes with the package.

    Args:
        config_path: relative to configs/, such as
            "CamVid-SemanticSegmentation/deeplabv3plus_mobilenetv2_ce_cpu.yaml".

    Raises:
        ValueError: there is none of this name; the message has similar ones.
    """
    path = _CONFIGS / config_path
    if not path.is_file():
        known = [p.relative_to(_CONFIGS).as_posix() for p in sorted(_CONFIGS.rglob("*.yaml"))]
        raise ValueError(
            f"the model zoo has no config {config_path!r}; {suggest(config_path, known)}"
        )
    return str(path)


def get_checkpoint_url(config_path: str) -> str:
    """Path or URL of the model trained with a config.

    Raises:
        ValueError: none is known; the message says how to name one.
    """
    return _checkpoint(config_path).url


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """The config, not frozen.

    Args:
        config_path: see :func:`get_config_file`.
        trained: set MODEL.WEIGHTS to :func:`get_checkpoint_url`; otherwise it is what the
            training starts from.
    """
    cfg = load_cfg(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> torch.nn.Module:
    """The model of a config.

    Args:
        config_path: see :func:`get_config_file`.
        trained: False: the model to train, with its terms and initial weights, in training mode.
            True: the trained network, without what only training needs, in evaluation mode.
        device: instead of the config's; None for that one, or the CPU where there is no GPU.

    Raises:
        ValueError: no such config or checkpoint, or the file is not the one of the table.
    """
    cfg = get_config(config_path, trained)
    if device is None:
        on_this_machine(cfg)
    else:
        cfg.MODEL.DEVICE = device
    if trained:
        _check_file(_checkpoint(config_path))
        return load_inference_model(cfg, cfg.MODEL.WEIGHTS)
    model = build_model(cfg)
    SemSegCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def _checkpoint(config_path: str) -> Checkpoint:
    get_config_file(config_path)  # a name without a config is the more likely mistake
    table = read_table()
    if config_path not in table:
        raise ValueError(
            f"no trained model is known for {config_path}: none is published with this package. "
            f"Set {TABLE_VARIABLE} to a YAML file {{config: {{url: FILE or URL, sha256: ...}}}}"
        )
    return table[config_path]


def _check_file(checkpoint: Checkpoint) -> None:
    try:
        path = PathManager.get_local_path(checkpoint.url)
        found = file_sha256(path)
    except OSError as error:
        raise ValueError(f"cannot get {checkpoint.url}: {error}") from error
    if found != checkpoint.sha256:
        raise ValueError(
            f"{path} is not the file that {TABLE_VARIABLE} describes: its SHA-256 is {found}"
        )
