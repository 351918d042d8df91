"""Detectron2's ``build_model``, with one clear error for a config that cannot be built.

Its ResNets get the padding of :class:`~.backbone.PaddedResNet`.
"""

import traceback

import torch
from detectron2 import modeling
from detectron2.layers import get_norm
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from torch import nn

from ..config import WRAPPER_NAME
from ..config_numbers import look_up
from ..contrast import ClassMemory
from .backbone import pad_resnet
from .head_with_terms import HeadWithTerms
from .registry import lookup

_NORMS = (
    "RESNETS.NORM",
    "SEM_SEG_HEAD.NORM",
    "PIXEL_CONTRAST.PROJECTOR.NORM",
    "CONTEXTRAST.PROJECTOR.NORM",
    "MULTI_SCALE_CONTRAST.PROJECTOR.NORM",
)
_CHANNELS = 32  # that any norm layer can have


def build_model(cfg) -> nn.Module:
    """The model of a config, on MODEL.DEVICE.

    Raises:
        ValueError: a name that is not registered, a method that the head would leave out, or
            whatever else the model's parts do not take.
    """
    _check_names(cfg.MODEL)
    try:
        model = modeling.build_model(cfg)
    except (AssertionError, KeyError) as error:  # with which detectron2's parts check a config
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = error if isinstance(error, AssertionError) and error.args else repr(error)
        raise ValueError(
            f"the model of this config cannot be built: {text} (where {place.name} of "
            f"{place.filename} has: {place.line})"
        ) from error
    except ValueError as error:
        if "num_groups" not in str(error):
            raise
        groups = [key for key in _NORMS if look_up(cfg.MODEL, key) == "GN"]
        raise ValueError(
            f"{' or '.join(f'MODEL.{key}' for key in groups)} is 'GN', whose 32 groups have to "
            f"divide the channels that it normalises ({error}); take another norm"
        ) from error
    _check_methods(cfg.MODEL, model)
    if cfg.MODEL.SEM_SEG_HEAD.UPSAMPLE_LOGITS:
        pad_resnet(getattr(model, "backbone", None))
    if cfg.MODEL.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    return model


def _check_methods(node, model: nn.Module) -> None:
    """Refuse to train the baseline where the config asks for a method. An architecture without
    such a head knows itself what it does."""
    head = node.SEM_SEG_HEAD
    if not hasattr(model, "sem_seg_head"):
        return
    if head.TERMS and not _has(model, HeadWithTerms):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.TERMS is {list(head.TERMS)}, but NAME {head.NAME} runs no terms; "
            f"set NAME {WRAPPER_NAME} and WRAPPED {head.NAME}, or TERMS [] to train without"
        )
    if node.DATASET_MEMORY.ENABLED and not _has(model, ClassMemory):
        raise ValueError(
            f"MODEL.DATASET_MEMORY.ENABLED is True, but MODEL.SEM_SEG_HEAD.NAME {head.NAME} has no "
            "memory; set NAME PixelContrastSemSegHead, or ENABLED False"
        )


def _has(model: nn.Module, kind: type) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


def _check_names(model) -> None:
    lookup(META_ARCH_REGISTRY, model.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    lookup(BACKBONE_REGISTRY, model.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    # For inference the wrapped head takes the place of the wrapper.
    key = "MODEL.SEM_SEG_HEAD.NAME (or WRAPPED)"
    lookup(SEM_SEG_HEADS_REGISTRY, model.SEM_SEG_HEAD.NAME, key)
    for key in _NORMS:
        node = look_up(model, key)
        try:
            get_norm(node, _CHANNELS)
        except KeyError as error:
            raise ValueError(
                f"MODEL.{key} is {node!r}; known are '' (none), 'BN', 'SyncBN', 'FrozenBN', 'GN' "
                "and more of detectron2's get_norm"
            ) from error
