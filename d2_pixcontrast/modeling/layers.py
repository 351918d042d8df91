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
