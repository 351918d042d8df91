"""UPerNet: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018."""

import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from ..layers import conv_norm_relu
from .base import DECODER_REGISTRY, DecoderOutput, on_finest_grid
from .psp import PyramidPooling


@DECODER_REGISTRY.register()
class UPerDecoder(nn.Module):
    """Pyramid pooling on the deepest feature, a feature pyramid down to the finest, and the fusion
    of all its levels there.

    512 channels everywhere and dropout .1 are mmsegmentation's ``UPerHead``.
    """

    def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
        """
        Raises:
            ValueError: fewer than two input features.
        """
        super().__init__()
        if len(input_shape) < 2:
            raise ValueError(
                "UPerDecoder reads two features or more; MODEL.SEM_SEG_HEAD.IN_FEATURES is "
                f"{list(input_shape)}"
            )
        head = cfg.MODEL.SEM_SEG_HEAD
        width, norm = head.UPER.CHANNELS, head.NORM
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        *lower, deepest = self.in_features
        channels = {name: input_shape[name].channels for name in self.in_features}
        self.pyramid = PyramidPooling(channels[deepest], width, head.UPER.POOL_SCALES, norm)
        self.laterals = nn.ModuleList(conv_norm_relu(channels[f], width, 1, norm) for f in lower)
        self.smooth = nn.ModuleList(conv_norm_relu(width, width, 3, norm) for _ in lower)
        self.fuse = conv_norm_relu(len(self.in_features) * width, width, 3, norm)
        self.dropout = nn.Dropout2d(head.UPER.DROPOUT)
        self.out_channels = width
        self.out_stride = input_shape[self.in_features[0]].stride

    def forward(self, features: dict[str, torch.Tensor]) -> DecoderOutput:
        *lower, deepest = self.in_features
        above = self.pyramid(features[deepest])
        levels = {deepest: above}
        # From the deepest to the finest: what is above joins, and is smoothed for the output only.
        for name, lateral, smooth in reversed(list(zip(lower, self.laterals, self.smooth))):
            own = lateral(features[name])
            above = own + F.interpolate(above, own.shape[-2:], mode="bilinear", align_corners=False)
            levels[name] = smooth(above)
        joined = on_finest_grid(levels, self.in_features)
        return DecoderOutput(self.dropout(self.fuse(joined)))
