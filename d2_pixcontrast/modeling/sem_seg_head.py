"""The segmentation head: decoder, classifier and training-only terms."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from .decoder import build_decoder
from .head_with_terms import HeadWithTerms
from .layers import classifier, conv_norm_relu
from .losses import SegmentationLoss
from .terms import build_terms


@SEM_SEG_HEADS_REGISTRY.register()
class PixelContrastSemSegHead(HeadWithTerms):
    """Decoder -> 1x1 classifier, and any set of training-only terms beside the cross-entropy.

    In evaluation mode neither the terms nor the auxiliary head run: the network is the plain one.
    """

    @configurable
    def __init__(
        self,
        *,
        decoder: nn.Module,
        predictor: nn.Module,
        loss: nn.Module,
        ignore_value: int,
        loss_weight: float = 1.0,
        aux_head: nn.Module | None = None,
        aux_feature: str = "",
        aux_weight: float = 0.4,
        terms: nn.ModuleDict | None = None,
        scalars_period: int = 20,
    ):
        """
        Args:
            decoder: see :data:`~d2_pixcontrast.modeling.DECODER_REGISTRY`.
            predictor: the classifier, from the decoder's features to logits.
            loss: (logits, labels) to a scalar, at label resolution.
            ignore_value: label without a class.
            loss_weight: factor of ``loss_sem_seg``.
            aux_head: logits from one encoder feature; training only.
            aux_feature: name of that feature.
            aux_weight: factor of ``loss_sem_seg_aux``, of ``aux_head`` or of the decoder's own
                auxiliary logits.
            terms: name to :class:`~d2_pixcontrast.modeling.Term`; training only.
            scalars_period: iterations between two records of the terms' scalars.

        Raises:
            ValueError: an ``aux_head`` beside a decoder that gives auxiliary logits itself.
        """
        super().__init__()
        self.decoder = decoder
        self.predictor = predictor
        self.loss = loss
        self.loss_weight = loss_weight
        self.aux_head = aux_head
        self.aux_feature = aux_feature
        self.aux_weight = aux_weight
        if aux_head is not None and _predicts_aux(decoder):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.AUX.IN_FEATURE is {aux_feature!r}, but "
                f"{type(decoder).__name__} has an auxiliary head of its own; leave it empty"
            )
        self.set_terms(terms, ignore_value=ignore_value, scalars_period=scalars_period)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        # Training-only parts come last: with one seed the rest starts from the same weights.
        decoder = build_decoder(cfg, input_shape)
        predictor = classifier(decoder.out_channels, head.NUM_CLASSES)
        aux = _build_aux_head(cfg, input_shape)
        loss = SegmentationLoss(
            ignore_value=head.IGNORE_VALUE,
            loss_type=head.LOSS_TYPE,
            class_weights=head.CLASS_WEIGHTS,
            num_classes=head.NUM_CLASSES,
        )
        decoded = ShapeSpec(channels=decoder.out_channels, stride=decoder.out_stride)
        return dict(
            decoder=decoder,
            predictor=predictor,
            loss=loss,
            ignore_value=head.IGNORE_VALUE,
            loss_weight=head.LOSS_WEIGHT,
            aux_head=aux,
            aux_feature=head.AUX.IN_FEATURE,
            aux_weight=head.AUX.LOSS_WEIGHT,
            terms=build_terms(cfg, {**input_shape, "decoder": decoded}),
            scalars_period=head.SCALARS_PERIOD,
        )

    def forward(self, features: dict[str, torch.Tensor], targets: torch.Tensor | None = None):
        """
        Args:
            features: {name: (B, C, h, w)} of the backbone.
            targets: (B, H, W) int64 labels, in training.

        Returns:
            (None, losses) in training, else ((B, num_classes, H, W) logits, {}).
        """
        decoded = self.decoder(features)
        logits = self.predictor(decoded.features)
        if self.training:
            return None, self.losses(features, decoded, logits, targets)
        logits = F.interpolate(
            logits, scale_factor=self.decoder.out_stride, mode="bilinear", align_corners=False
        )
        return logits, {}

    def losses(self, features, decoded, logits, targets) -> dict[str, torch.Tensor]:
        """Cross-entropy, auxiliary cross-entropy and the terms' losses, by name."""
        losses = {"loss_sem_seg": self.loss(logits, targets) * self.loss_weight}
        aux_logits = decoded.aux_logits if _predicts_aux(self.decoder) else None
        if self.aux_head is not None:
            aux_logits = self.aux_head(features[self.aux_feature])
        if aux_logits is not None:
            losses["loss_sem_seg_aux"] = self.loss(aux_logits, targets) * self.aux_weight
        losses.update(self.term_losses(features, decoded.features, logits, targets))
        return losses


def _predicts_aux(decoder: nn.Module) -> bool:
    return getattr(decoder, "predicts_aux", False)


def _build_aux_head(cfg, input_shape) -> nn.Module | None:
    head = cfg.MODEL.SEM_SEG_HEAD
    if not head.AUX.IN_FEATURE:
        return None
    if head.AUX.IN_FEATURE not in input_shape:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.AUX.IN_FEATURE is {head.AUX.IN_FEATURE!r}; "
            f"the backbone gives {sorted(input_shape)}"
        )
    channels = input_shape[head.AUX.IN_FEATURE].channels
    hidden = conv_norm_relu(channels, head.AUX.CHANNELS, 3, head.NORM)
    return nn.Sequential(hidden, nn.Dropout2d(0.1), classifier(head.AUX.CHANNELS, head.NUM_CLASSES))
