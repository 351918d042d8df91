"""Layers that heads and decoders share."""

from detectron2.layers import Conv2d, get_norm
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    """Convolution at the input's size, norm layer (``norm`` "": none) and ReLU."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(conv)
    return conv


def classifier(channels: int, num_classes: int) -> nn.Module:
    """1x1 convolution from features to logits that are all nearly 0 at first."""
    conv = Conv2d(channels, num_classes, kernel_size=1)
    nn.init.normal_(conv.weight, 0, 0.01)
    nn.init.zeros_(conv.bias)
    return conv


_ACTIVATIONS = {"relu": F.relu, "leaky_relu": F.leaky_relu}


def use_activation(module: nn.Module, name: str) -> None:
    """Put another activation in place of every ReLU of detectron2's convolutions in ``module``.

    Args:
        module: changed in place.
        name: "relu", or "leaky_relu" with torch's slope of .01.

    Raises:
        ValueError: unknown name.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.ACTIVATION is {name!r}; known are {list(_ACTIVATIONS)}"
        )
    for part in module.modules():
        if getattr(part, "activation", None) is F.relu:
            part.activation = _ACTIVATIONS[name]
