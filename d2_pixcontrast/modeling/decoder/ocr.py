"""Object-contextual representations: Yuan et al., "Object-Contextual Representations for Semantic
Segmentation", ECCV 2020."""

import contextlib

import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from ..layers import classifier, conv_norm_relu
from .base import DECODER_REGISTRY, DecoderOutput, on_finest_grid


@DECODER_REGISTRY.register()
class OCRDecoder(nn.Module):
    """OCR: each pixel is augmented with the object regions that it resembles.

    A first prediction (the auxiliary logits) splits the image into one soft region per class, each
    region is summed up in one vector, and each pixel attends to these few vectors. Reads the
    concatenation of HRNet's streams, or one feature as after a ResNet.
    """

    predicts_aux = True

    def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
        """
        Raises:
            ValueError: OCR.REGION_FEATURE is not one of the input features, or the only one.
        """
        super().__init__()
        head = cfg.MODEL.SEM_SEG_HEAD
        width, norm, self.region_feature = head.OCR.CHANNELS, head.NORM, head.OCR.REGION_FEATURE
        names = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.in_features = [name for name in names if name != self.region_feature]
        if not self.in_features or self.region_feature not in ("", *names):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.OCR.REGION_FEATURE is {self.region_feature!r}; it has to be "
                "empty, or one of several features of MODEL.SEM_SEG_HEAD.IN_FEATURES, which is "
                f"{list(input_shape)}"
            )
        self.align_corners = head.ALIGN_CORNERS
        channels = sum(input_shape[name].channels for name in self.in_features)
        region = input_shape[self.region_feature].channels if self.region_feature else channels
        self.region_head = nn.Sequential(
            conv_norm_relu(region, region, head.OCR.REGION_KERNEL, norm),
            classifier(region, head.NUM_CLASSES),
        )
        self.pixels = conv_norm_relu(channels, width, 3, norm)
        self.attention = ObjectAttention(width, head.OCR.KEY_CHANNELS, norm)
        self.fuse = conv_norm_relu(2 * width, width, 1, norm)
        self.dropout = nn.Dropout2d(head.OCR.DROPOUT)
        self.out_channels = width
        self.out_stride = input_shape[self.in_features[0]].stride

    def forward(self, features: dict[str, torch.Tensor]) -> DecoderOutput:
        joined = on_finest_grid(features, self.in_features, self.align_corners)
        aux_logits = self.region_head(
            features[self.region_feature] if self.region_feature else joined
        )
        pixels = self.pixels(joined)
        context = self.attention(pixels, gather_regions(pixels, aux_logits))
        fused = self.fuse(torch.cat([context, pixels], dim=1))  # eq. 6
        return DecoderOutput(self.dropout(fused), aux_logits)


class ObjectAttention(nn.Module):
    """Object-contextual representation of each pixel: attention over the regions (eq. 3 and 5)."""

    def __init__(self, channels: int, key_channels: int, norm: str):
        """
        Args:
            channels: of pixels and regions.
            key_channels: of queries, keys and values.
            norm: name of the norm layers.
        """
        super().__init__()

        def embedding():
            return nn.Sequential(
                conv_norm_relu(channels, key_channels, 1, norm),
                conv_norm_relu(key_channels, key_channels, 1, norm),
            )

        self.query = embedding()
        self.key = embedding()
        self.value = conv_norm_relu(channels, key_channels, 1, norm)
        self.out = conv_norm_relu(key_channels, channels, 1, norm)
        self.scale = key_channels**-0.5

    def forward(self, pixels: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) pixels and (B, C, K) regions to a (B, C, h, w) context."""
        regions = regions.unsqueeze(-1)  # a map of K x 1, for the convolutions
        # Scaled before the product: half precision overflows otherwise.
        query = self.query(pixels).flatten(2) * self.scale
        scores = self.key(regions).flatten(2).transpose(1, 2) @ query  # (B, K, hw)
        context = self.value(regions).flatten(2) @ scores.softmax(dim=1)
        return self.out(context.unflatten(2, pixels.shape[-2:]))


def gather_regions(pixels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Mean of the pixels of each soft object region (eq. 4).

    Args:
        pixels: (B, C, h, w).
        logits: (B, K, h', w') of the regions; brought to the pixels' size.

    Returns:
        (B, C, K): pixels weighted by the softmax of a class' logits over all pixels.
    """
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    with _without_autocast(pixels.device.type):
        logits = logits.to(dtype)
        if logits.shape[-2:] != pixels.shape[-2:]:
            logits = F.interpolate(logits, pixels.shape[-2:], mode="bilinear", align_corners=False)
        # A weight is about 1 / hw, which float16 cannot hold on a large map.
        weights = logits.flatten(2).softmax(dim=2)
        regions = pixels.flatten(2).to(dtype) @ weights.transpose(1, 2)
    return regions.to(pixels.dtype)


def _without_autocast(device_type: str):
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()  # the meta device, on which models are only sized
