"""FCN on the concatenation of all features (HRNet's segmentation head)."""

import torch
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from .base import DECODER_REGISTRY, DecoderOutput


@DECODER_REGISTRY.register()
class FCNDecoder(nn.Module):
    """Features on the finest grid, concatenated, one convolution: HRNetV2 (Wang et al., 2019)."""

    def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
        super().__init__()
        head = cfg.MODEL.SEM_SEG_HEAD
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        channels = sum(shape.channels for shape in input_shape.values())
        self.out_channels = head.FCN.CHANNELS or channels
        self.out_stride = input_shape[self.in_features[0]].stride
        self.conv = Conv2d(
            channels,
            self.out_channels,
            kernel_size=head.FCN.KERNEL_SIZE,
            padding=head.FCN.KERNEL_SIZE // 2,
            bias=not head.NORM,
            norm=get_norm(head.NORM, self.out_channels),
            activation=F.relu,
        )
        weight_init.c2_msra_fill(self.conv)
        self.dropout = nn.Dropout2d(head.FCN.DROPOUT)

    def forward(self, features: dict[str, torch.Tensor]) -> DecoderOutput:
        finest = features[self.in_features[0]]
        maps = [finest] + [
            F.interpolate(features[name], finest.shape[-2:], mode="bilinear", align_corners=False)
            for name in self.in_features[1:]
        ]
        return DecoderOutput(self.dropout(self.conv(torch.cat(maps, dim=1))))
