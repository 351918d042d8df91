"""FCN on the concatenation of all features (HRNet's segmentation head)."""

import torch
from detectron2.layers import ShapeSpec
from torch import nn

from ..layers import conv_norm_relu
from .base import DECODER_REGISTRY, DecoderOutput, on_finest_grid


@DECODER_REGISTRY.register()
class FCNDecoder(nn.Module):
    """Features on the finest grid, concatenated, one convolution: HRNetV2 (Wang et al., 2019)."""

    gives_context = False  # within the image: a data-set memory stores the output itself

    def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
        super().__init__()
        head = cfg.MODEL.SEM_SEG_HEAD
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        channels = sum(shape.channels for shape in input_shape.values())
        self.align_corners = head.ALIGN_CORNERS
        self.out_channels = head.FCN.CHANNELS or channels
        self.out_stride = input_shape[self.in_features[0]].stride
        self.conv = conv_norm_relu(channels, self.out_channels, head.FCN.KERNEL_SIZE, head.NORM)
        self.dropout = nn.Dropout2d(head.FCN.DROPOUT)

    def forward(self, features: dict[str, torch.Tensor]) -> DecoderOutput:
        joined = on_finest_grid(features, self.in_features, self.align_corners)
        return DecoderOutput(self.dropout(self.conv(joined)))
