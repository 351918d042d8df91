"""Pyramid pooling: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017."""

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from ..layers import conv_norm_relu
from .base import DECODER_REGISTRY, DecoderOutput, only_feature


@DECODER_REGISTRY.register()
class PSPDecoder(nn.Module):
    """PSPNet: pixels beside the means of ever smaller parts of the image.

    512 channels and dropout .1 are mmsegmentation's ``PSPHead``.
    """

    def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
        """
        Raises:
            ValueError: not exactly one input feature.
        """
        super().__init__()
        head = cfg.MODEL.SEM_SEG_HEAD
        self.in_feature, shape = only_feature(self, input_shape)
        self.pyramid = PyramidPooling(
            shape.channels, head.PSP.CHANNELS, head.PSP.POOL_SCALES, head.NORM
        )
        self.dropout = nn.Dropout2d(head.PSP.DROPOUT)
        self.out_channels = head.PSP.CHANNELS
        self.out_stride = shape.stride

    def forward(self, features: dict[str, torch.Tensor]) -> DecoderOutput:
        return DecoderOutput(self.dropout(self.pyramid(features[self.in_feature])))


class PyramidPooling(nn.Module):
    """The pyramid pooling module and the 3x3 convolution that fuses its output.

    With batch norm the pooled maps, the smallest of which is a single number per image and channel,
    need two images in training, be they on one rank or, with SyncBN, on two.
    """

    def __init__(
        self, in_channels: int, channels: int, scales: Sequence[int] = (1, 2, 3, 6), norm="BN"
    ):
        """
        Args:
            in_channels: of the feature map.
            channels: of each pooled map and of the output.
            scales: the map is pooled to scale x scale bins, for each scale.
            norm: name of the norm layers.
        """
        super().__init__()
        self.scales = tuple(scales)
        self.reduce = nn.ModuleList(
            conv_norm_relu(in_channels, channels, 1, norm) for _ in self.scales
        )
        self.fuse = conv_norm_relu(in_channels + len(self.scales) * channels, channels, 3, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, h, w) to (B, channels, h, w)."""
        size = x.shape[-2:]
        pooled = [conv(bins) for conv, bins in zip(self.reduce, pool_to_bins(x, self.scales))]
        resized = [F.interpolate(p, size, mode="bilinear", align_corners=False) for p in pooled]
        return self.fuse(torch.cat([x, *resized], dim=1))


def pool_to_bins(x: torch.Tensor, scales: Sequence[int]) -> list[torch.Tensor]:
    """Adaptive average pooling to several numbers of bins, as one linear map per axis.

    Equal to ``F.adaptive_avg_pool2d``, which ONNX has only for sizes that are a multiple of the
    bins; and the map is read once, not once per scale.

    Args:
        x: (B, C, h, w).
        scales: bins per axis.

    Returns:
        (B, C, scale, scale) for each scale.
    """
    height, width = x.shape[-2:]
    columns = torch.cat([bin_weights(width, n, x) for n in scales])  # (all bins, w)
    strips = (x @ columns.T).split(list(scales), dim=-1)  # (B, C, h, scale) each
    return [bin_weights(height, n, x) @ strip for n, strip in zip(scales, strips)]


def bin_weights(size: int, bins: int, like: torch.Tensor) -> torch.Tensor:
    """(bins, size) matrix of the mean over each bin: row i covers the cells that overlap
    [i size / bins, (i + 1) size / bins)."""
    cells = torch.arange(size, device=like.device)
    index = torch.arange(bins, device=like.device)[:, None]
    inside = (cells >= index * size // bins) & (cells * bins < (index + 1) * size)
    return (inside / inside.sum(dim=1, keepdim=True)).to(like.dtype)
