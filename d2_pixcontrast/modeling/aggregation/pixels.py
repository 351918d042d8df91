"""Encoder features as one map."""

import torch
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from ..decoder.base import on_finest_grid
from ..layers import conv_norm_relu


class JoinedFeatures(nn.Module):
    """The encoder features concatenated on the finest grid, as one feature, for all that follows.

    This is how a decoder of one feature reads HRNet's four streams. With ``stride`` 2 a 3x3
    convolution with norm and ReLU halves the grid, as MCIBI does where HRNet's stride of 4 is too
    fine for an attention between all positions (Cityscapes, LIP).
    """

    NAME = "joined"

    def __init__(
        self, input_shape: dict[str, ShapeSpec], *, stride: int, norm: str, align_corners: bool
    ):
        """
        Args:
            input_shape: of the features that are joined.
            stride: 1 or 2.
            norm: name of the norm layer.
            align_corners: of the interpolation.

        Raises:
            ValueError: another stride.
        """
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"MODEL.SEM_SEG_HEAD.JOIN_STRIDE has to be 0, 1 or 2, got {stride}")
        self.names = finest_first(input_shape)
        self.align_corners = align_corners
        channels = sum(shape.channels for shape in input_shape.values())
        finest = input_shape[self.names[0]].stride
        self.shape = ShapeSpec(channels=channels, stride=finest * stride)
        self.conv = None
        if stride == 2:
            self.conv = Conv2d(
                channels,
                channels,
                kernel_size=3,
                stride=2,
                padding=1,
                bias=not norm,
                norm=get_norm(norm, channels),
                activation=F.relu,
            )
            weight_init.c2_msra_fill(self.conv)

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{name: (B, C, h, w)} to {NAME: (B, sum of C, h', w')}."""
        joined = on_finest_grid(features, self.names, self.align_corners)
        return {self.NAME: joined if self.conv is None else self.conv(joined)}


class PixelRepresentations(nn.Module):
    """f of MCIBI: a 3x3 convolution with norm and ReLU on the named encoder features."""

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        channels: int,
        norm: str,
        align_corners: bool = False,
    ):
        """
        Args:
            input_shape: of the features; several are concatenated on the finest grid.
            channels: D, of the result.
            norm: name of the norm layer.
            align_corners: of the interpolation.
        """
        super().__init__()
        self.names = finest_first(input_shape)
        self.align_corners = align_corners
        self.stride = input_shape[self.names[0]].stride
        total = sum(shape.channels for shape in input_shape.values())
        self.conv = conv_norm_relu(total, channels, 3, norm)

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """{name: (B, C, h, w)} to (B, D, h', w')."""
        return self.conv(on_finest_grid(features, self.names, self.align_corners))


def finest_first(input_shape: dict[str, ShapeSpec]) -> list[str]:
    """Names by stride; those of one stride in their order."""
    return sorted(input_shape, key=lambda name: input_shape[name].stride)
