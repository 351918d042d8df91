"""Auxiliary predictions from encoder features, for training alone."""

import torch
from detectron2.layers import ShapeSpec
from torch import nn

from .layers import classifier, conv_norm_relu


class AuxiliaryHeads(nn.ModuleDict):
    """Per encoder feature a 3x3 convolution, dropout and a classifier: mmsegmentation's auxiliary
    ``FCNHead``, after Zhao et al., CVPR 2017."""

    def __init__(self, shapes: dict[str, ShapeSpec], *, channels: int, num_classes: int, norm: str):
        """
        Args:
            shapes: of the features to predict from.
            channels: of the hidden layer.
            num_classes: C.
            norm: name of the norm layer.
        """
        super().__init__(
            {
                name: nn.Sequential(
                    conv_norm_relu(shape.channels, channels, 3, norm),
                    nn.Dropout2d(0.1),
                    classifier(channels, num_classes),
                )
                for name, shape in shapes.items()
            }
        )

    def forward(self, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """{name: (B, channels, h, w)} to (B, C, h, w) logits per feature."""
        return [head(features[name]) for name, head in self.items()]


def build_aux_heads(cfg, input_shape: dict[str, ShapeSpec]) -> AuxiliaryHeads | None:
    """Those of MODEL.SEM_SEG_HEAD.AUX; None without IN_FEATURES.

    Raises:
        ValueError: a feature that the backbone does not give.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    names = list(head.AUX.IN_FEATURES)
    if any(name not in input_shape for name in names):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES is {names}; the backbone gives "
            f"{sorted(input_shape)}"
        )
    if not names:
        return None
    return AuxiliaryHeads(
        {name: input_shape[name] for name in names},
        channels=head.AUX.CHANNELS,
        num_classes=head.NUM_CLASSES,
        norm=head.NORM,
    )
