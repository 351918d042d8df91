"""Backbone weights by timm's names."""

import logging
import os
from pathlib import Path

import torch
from torch import nn

from ..modeling.backbone.timm_backbone import TimmBackbone
from ..modeling.backbone.timm_features import create_features

TIMM_PREFIX = "timm://"
WEIGHTS_DIR_VARIABLE = "PIXCONTRAST_WEIGHTS_DIR"


def load_timm_weights(model: nn.Module, name: str, key: str = "MODEL.WEIGHTS") -> None:
    """Fill the model's timm backbone with the pretrained weights called ``name``.

    A file ``$PIXCONTRAST_WEIGHTS_DIR/<name>.safetensors`` is preferred where the variable is set;
    otherwise timm downloads the weights or takes them from its cache.

    Raises:
        ValueError: the backbone is not a timm model of this name, or there are no such weights.
    """
    folder = os.environ.get(WEIGHTS_DIR_VARIABLE)
    local = Path(folder) / f"{name}.safetensors" if folder else None
    if local is not None and local.is_file():
        load_timm_file(model, str(local), name)
        return
    backbone = _timm_backbone(model, f"{TIMM_PREFIX}{name}")
    where = f"{local} does not exist and " if local else f"${WEIGHTS_DIR_VARIABLE} is not set and "
    try:
        _copy_pretrained(backbone, name)
    except Exception as error:  # timm and its hub client raise many kinds
        raise ValueError(
            f"{key} is {TIMM_PREFIX}{name}: {where}timm could not get the weights "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error


def load_timm_file(model: nn.Module, path: str, name: str | None = None) -> None:
    """Fill the model's timm backbone from a file with timm's key names.

    Raises:
        ValueError: the model has no timm backbone, or the file does not fit it.
    """
    backbone = _timm_backbone(model, path)
    try:
        _copy_pretrained(backbone, name or backbone.name, pretrained_cfg_overlay={"file": path})
    except (RuntimeError, ValueError, KeyError) as error:
        # torch lists every tensor, one line each; the first says enough.
        reason = " ".join(str(error).split("\n\t")[:2]).strip()[:300]
        raise ValueError(f"{path} does not fit the backbone {backbone.name}: {reason}") from error


def _timm_backbone(model: nn.Module, source: str) -> TimmBackbone:
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, TimmBackbone):
        raise ValueError(
            f"{source} has no tensor that this model has, and could only hold weights of a timm "
            f"model, but MODEL.BACKBONE.NAME built a {type(backbone).__name__}"
        )
    return backbone


def _seeded_state(name: str, backbone: TimmBackbone, **kwargs) -> dict[str, torch.Tensor]:
    """The feature extractor's state; what is not loaded has the same values each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = create_features(name, indices=backbone.out_indices, **backbone.options, **kwargs)
    return features.state_dict()


def _copy_pretrained(backbone: TimmBackbone, name: str, **kwargs) -> None:
    if name.split(".")[0] != backbone.name.split(".")[0]:
        raise ValueError(f"these are weights of {name}, but MODEL.TIMM.NAME is {backbone.name}")
    # timm itself maps its checkpoints to the feature extractor's names, which can differ. It does
    # not say what the file lacked: a weight that is still the initial one was not in it.
    loaded = _seeded_state(name, backbone, pretrained=True, **kwargs)
    initial = _seeded_state(name, backbone)
    missing = [k for k, v in loaded.items() if v.ndim > 1 and torch.equal(v, initial[k])]
    if missing:
        raise ValueError(f"it lacks {len(missing)} tensors (first: {missing[0]})")
    backbone.body.load_state_dict(loaded)
    logging.getLogger(__name__).info(
        f"Loaded {len(backbone.body.state_dict())} tensors of {name} into the backbone"
    )
