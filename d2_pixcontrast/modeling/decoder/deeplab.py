"""DeepLabV3 and DeepLabV3+, from detectron2's own parts."""

import torch
from detectron2.layers import ASPP, ShapeSpec
from detectron2.projects.deeplab import DeepLabV3PlusHead
from torch import nn
from torch.nn import functional as F

from ..layers import conv_norm_relu
from .base import DECODER_REGISTRY, DecoderOutput, only_feature


@DECODER_REGISTRY.register()
class DeepLabV3PlusDecoder(DeepLabV3PlusHead):
    """DeepLabV3+ (Chen et al., ECCV 2018): detectron2's head without its classifier and loss.

    The image pooling covers the whole feature map at any size: detectron2 fixes its window to the
    training crop, which fails on other test sizes.
    """

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        skips = len(input_shape) - 1
        if len(head.PROJECT_CHANNELS) != skips:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS is {list(head.PROJECT_CHANNELS)}; "
                f"{skips} numbers are needed, one per feature of {list(input_shape)} but the "
                "deepest"
            )
        arguments = super().from_config(cfg, input_shape)
        arguments.update(input_shape=input_shape, num_classes=None, train_size=None)
        return arguments

    def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
        super().__init__(cfg, input_shape)
        head = cfg.MODEL.SEM_SEG_HEAD
        deepest = self.in_features[-1]
        _adapt_aspp(self.decoder[deepest]["project_conv"], input_shape[deepest].channels, head)
        self.out_channels = head.CONVS_DIM if len(input_shape) > 1 else head.ASPP_CHANNELS
        self.out_stride = min(shape.stride for shape in input_shape.values())

    def forward(self, features: dict[str, torch.Tensor]) -> DecoderOutput:
        return DecoderOutput(self.layers(features))


@DECODER_REGISTRY.register()
class DeepLabV3Decoder(nn.Module):
    """DeepLabV3 (Chen et al., 2017): ASPP with image pooling on one encoder feature."""

    def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
        """
        Raises:
            ValueError: not exactly one input feature.
        """
        super().__init__()
        head = cfg.MODEL.SEM_SEG_HEAD
        self.in_feature, shape = only_feature(self, input_shape)
        self.aspp = ASPP(
            shape.channels,
            head.ASPP_CHANNELS,
            head.ASPP_DILATIONS,
            norm=head.NORM,
            activation=F.relu,
            dropout=head.ASPP_DROPOUT,
            use_depthwise_separable_conv=head.USE_DEPTHWISE_SEPARABLE_CONV,
        )
        _adapt_aspp(self.aspp, shape.channels, head)
        self.refine = None
        if head.ASPP_REFINE:
            self.refine = conv_norm_relu(head.ASPP_CHANNELS, head.ASPP_CHANNELS, 3, head.NORM)
            self.refine.activation = None
        self.out_channels = head.ASPP_CHANNELS
        self.out_stride = shape.stride

    def forward(self, features: dict[str, torch.Tensor]) -> DecoderOutput:
        pyramid = self.aspp(features[self.in_feature])
        return DecoderOutput(pyramid if self.refine is None else self.refine(pyramid))


def _adapt_aspp(aspp: ASPP, in_channels: int, head) -> None:
    """What other code bases' ASPP has beyond detectron2's, by two keys of the config's head.

    Detectron2 has no norm in the pooling branch and joins the branches by a 1x1 convolution;
    mmsegmentation, openseg.pytorch and MCIBI have the norm and a 3x3 convolution. The norm needs
    two images in training, be they on one rank or, with SyncBN, on two.
    """
    if head.ASPP_POOL_NORM:
        pooled = conv_norm_relu(in_channels, head.ASPP_CHANNELS, 1, head.NORM)
        aspp.convs[-1] = nn.Sequential(nn.AdaptiveAvgPool2d(1), pooled)
    if head.ASPP_PROJECT_KERNEL != 1:
        joined = len(aspp.convs) * head.ASPP_CHANNELS
        aspp.project = conv_norm_relu(
            joined, head.ASPP_CHANNELS, head.ASPP_PROJECT_KERNEL, head.NORM
        )
