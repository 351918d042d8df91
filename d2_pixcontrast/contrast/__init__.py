"""Losses, samplers and projection heads of cross-image contrast. Needs torch alone."""

from .losses import ContrastLoss, pixel_contrast_loss
from .projector import ProjectionHead
from .random_keys import random_keys
from .resize import nearest_resize
from .sampling import AnchorSample, gather_pixels, sample_hard_anchors

__all__ = [
    "AnchorSample",
    "ContrastLoss",
    "ProjectionHead",
    "gather_pixels",
    "nearest_resize",
    "pixel_contrast_loss",
    "random_keys",
    "sample_hard_anchors",
]
