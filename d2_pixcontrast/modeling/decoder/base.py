"""What every decoder gives."""

from typing import NamedTuple

import torch
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn
from torch.nn import functional as F

from ..registry import lookup

DECODER_REGISTRY = Registry("PIXCONTRAST_DECODER")
DECODER_REGISTRY.__doc__ = """
Decoders of PixelContrastSemSegHead, by MODEL.SEM_SEG_HEAD.DECODER.

A registered class is called as ``cls(cfg, input_shape)`` with the ShapeSpecs of
MODEL.SEM_SEG_HEAD.IN_FEATURES. It has ``out_channels`` and ``out_stride``, and its ``forward`` maps
{name: (B, C, h, w)} to a :class:`DecoderOutput`. One that gives auxiliary logits says so with a
class attribute ``predicts_aux = True``. The output is taken for the context within the image by a
data-set memory, unless ``gives_context = False`` says that it is no more than each pixel's own.
"""


class DecoderOutput(NamedTuple):
    """What a decoder gives for a batch.

    Attributes:
        features: (B, out_channels, h, w), read by the classifier.
        aux_logits: (B, num_classes, h', w') of decoders that predict on their way, or None.
    """

    features: torch.Tensor
    aux_logits: torch.Tensor | None = None


def select_features(input_shape: dict[str, ShapeSpec], names: list[str]) -> dict[str, ShapeSpec]:
    """The encoder features that MODEL.SEM_SEG_HEAD.IN_FEATURES names.

    Raises:
        ValueError: no name, or one of a feature that the backbone does not give.
    """
    missing = [name for name in names if name not in input_shape]
    if missing or not names:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {names}; the backbone gives {sorted(input_shape)}"
        )
    return {name: input_shape[name] for name in names}


def build_decoder(
    cfg, input_shape: dict[str, ShapeSpec], names: list[str] | None = None
) -> nn.Module:
    """The decoder that the config names.

    Args:
        cfg: of the model.
        input_shape: the features that there are.
        names: of those that it reads; None = MODEL.SEM_SEG_HEAD.IN_FEATURES.

    Raises:
        ValueError: unknown decoder, or a feature that there is not.
    """
    names = list(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES) if names is None else names
    decoder = lookup(DECODER_REGISTRY, cfg.MODEL.SEM_SEG_HEAD.DECODER, "MODEL.SEM_SEG_HEAD.DECODER")
    return decoder(cfg, select_features(input_shape, names))


def only_feature(decoder: nn.Module, input_shape: dict[str, ShapeSpec]) -> tuple[str, ShapeSpec]:
    """Name and shape of the feature of a decoder that reads one.

    Raises:
        ValueError: there is none, or more than one.
    """
    if len(input_shape) != 1:
        raise ValueError(
            f"{type(decoder).__name__} reads one feature; MODEL.SEM_SEG_HEAD.IN_FEATURES is "
            f"{list(input_shape)}"
        )
    ((name, shape),) = input_shape.items()
    return name, shape


def on_finest_grid(
    features: dict[str, torch.Tensor], names: list[str], align_corners: bool = False
) -> torch.Tensor:
    """The named features, brought to the size of the first and concatenated."""
    finest, *others = (features[name] for name in names)
    size = finest.shape[-2:]
    resized = [F.interpolate(m, size, mode="bilinear", align_corners=align_corners) for m in others]
    return torch.cat([finest, *resized], dim=1)
