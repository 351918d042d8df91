"""The segmentation head: decoder, data-set memory, classifier and training-only terms."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from .aggregation import build_aggregation, build_joined_features, without_dropout
from .aux_heads import build_aux_heads
from .decoder import build_decoder
from .head_with_terms import HeadWithTerms
from .layers import classifier, use_activation
from .losses import SegmentationLoss
from .terms import build_terms


@SEM_SEG_HEADS_REGISTRY.register()
class PixelContrastSemSegHead(HeadWithTerms):
    """Decoder -> [data-set memory] -> 1x1 classifier, and any set of training-only terms beside the
    cross-entropy.

    In evaluation mode neither the terms nor the auxiliary heads run. Without a memory the network
    is the plain one then; a memory is part of it, and only read.
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
        aux_heads: nn.Module | None = None,
        aux_weight: float = 0.4,
        joined: nn.Module | None = None,
        aggregation: nn.Module | None = None,
        terms: nn.ModuleDict | None = None,
        scalars_period: int = 20,
        align_corners: bool = False,
        upsample_logits: bool = True,
        activation: str = "relu",
    ):
        """
        Args:
            decoder: see :data:`~d2_pixcontrast.modeling.DECODER_REGISTRY`.
            predictor: the classifier, from the decoder's features (those of the ``aggregation``
                where there is one) to logits.
            loss: (logits, labels) to a scalar, at label resolution.
            ignore_value: label without a class.
            loss_weight: factor of ``loss_sem_seg``.
            aux_heads: encoder features to a list of logits; training only.
            aux_weight: factor of ``loss_sem_seg_aux``, the sum over ``aux_heads`` or that of the
                decoder's own auxiliary logits.
            joined: {name: (B, C, h, w)} of the backbone to those that the decoder reads.
            aggregation: a :class:`~d2_pixcontrast.modeling.aggregation.DatasetMemoryAggregation`.
            terms: name to :class:`~d2_pixcontrast.modeling.Term`; training only.
            scalars_period: iterations between two records of the terms' scalars.
            align_corners: where logits are brought to the image's size, and features that a term
                reads to one grid. (Decoder and loss have their own.)
            upsample_logits: in evaluation to the image's size; else they keep their own, and
                detectron2's meta-architecture brings them to the output's, corners not aligned.
            activation: what stands where the parts have a ReLU: "relu", or "leaky_relu".

        Raises:
            ValueError: ``aux_heads`` beside a decoder that gives auxiliary logits itself, an
                unknown activation, or aligned corners without upsampling.
        """
        super().__init__()
        self.joined = joined
        self.decoder = decoder
        self.aggregation = aggregation
        self.predictor = predictor
        self.loss = loss
        self.loss_weight = loss_weight
        self.aux_heads = aux_heads
        self.aux_weight = aux_weight
        self.align_corners = align_corners
        self.upsample_logits = upsample_logits
        if align_corners and not upsample_logits:
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.UPSAMPLE_LOGITS is False and ALIGN_CORNERS True: "
                "detectron2 resizes logits without aligning corners"
            )
        if aux_heads is not None and _predicts_aux(decoder):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES is {list(aux_heads)}, but "
                f"{type(decoder).__name__} has an auxiliary head of its own; leave it empty"
            )
        use_activation(self, activation)
        self.set_terms(terms, ignore_value=ignore_value, scalars_period=scalars_period)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        timm = cfg.MODEL.BACKBONE.NAME == "build_timm_backbone"
        if timm and not head.UPSAMPLE_LOGITS and cfg.MODEL.TIMM.SIZE_DIVISIBILITY != 1:
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.UPSAMPLE_LOGITS is False, which wants images that are not "
                "padded: set MODEL.TIMM.SIZE_DIVISIBILITY to 1"
            )
        # What a method adds comes last: with one seed the rest starts from the same weights.
        joined = build_joined_features(cfg, input_shape)
        names = list(head.IN_FEATURES) if joined is None else [joined.NAME]
        encoded = input_shape if joined is None else {joined.NAME: joined.shape}
        with_memory = cfg.MODEL.DATASET_MEMORY.ENABLED
        decoder = build_decoder(without_dropout(cfg) if with_memory else cfg, encoded, names)
        width = cfg.MODEL.DATASET_MEMORY.CHANNELS if with_memory else None
        predictor = classifier(width or decoder.out_channels, head.NUM_CLASSES)
        aux_heads = build_aux_heads(cfg, input_shape)
        aggregation = build_aggregation(cfg, {n: encoded[n] for n in names}, decoder)
        loss = SegmentationLoss(
            ignore_value=head.IGNORE_VALUE,
            loss_type=head.LOSS_TYPE,
            class_weights=head.CLASS_WEIGHTS,
            num_classes=head.NUM_CLASSES,
            align_corners=head.ALIGN_CORNERS,
        )
        last = aggregation or decoder
        decoded = ShapeSpec(channels=last.out_channels, stride=last.out_stride)
        return dict(
            decoder=decoder,
            predictor=predictor,
            loss=loss,
            ignore_value=head.IGNORE_VALUE,
            loss_weight=head.LOSS_WEIGHT,
            aux_heads=aux_heads,
            aux_weight=head.AUX.LOSS_WEIGHT,
            joined=joined,
            aggregation=aggregation,
            terms=build_terms(cfg, {**input_shape, "decoder": decoded}),
            scalars_period=head.SCALARS_PERIOD,
            align_corners=head.ALIGN_CORNERS,
            upsample_logits=head.UPSAMPLE_LOGITS,
            activation=head.ACTIVATION,
        )

    def forward(self, features: dict[str, torch.Tensor], targets: torch.Tensor | None = None):
        """
        Args:
            features: {name: (B, C, h, w)} of the backbone.
            targets: (B, H, W) int64 labels, in training.

        Returns:
            (None, losses) in training, else ((B, num_classes, H, W) logits, {}).
        """
        encoded = features if self.joined is None else self.joined(features)
        decoded = self.decoder(encoded)
        if self.aggregation is None:
            aggregated, out_stride = decoded, self.decoder.out_stride
        else:
            aggregated = self.aggregation(encoded, decoded.features)
            out_stride = self.aggregation.out_stride
        logits = self.predictor(aggregated.features)
        if self.training:
            return None, self.losses(features, decoded, aggregated, logits, targets)
        if self.aggregation is not None and self.aggregation.second_pass:
            logits = self.predictor(self.aggregation.again(aggregated, logits))
        if not self.upsample_logits:
            if len(logits) > 1:  # whose sizes may differ, and the smaller ones' padding would stay
                raise ValueError(
                    "MODEL.SEM_SEG_HEAD.UPSAMPLE_LOGITS False takes one image at a time"
                )
            return logits, {}
        # Images that are not padded are no multiple of the stride; their backbone says their size.
        size = getattr(features, "image_size", None)
        size = size or (logits.shape[-2] * out_stride, logits.shape[-1] * out_stride)
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)
        return logits, {}

    def losses(self, features, decoded, aggregated, logits, targets) -> dict[str, torch.Tensor]:
        """All losses by name: cross-entropies, the memory's, the terms'. The memory learns here."""
        losses = {"loss_sem_seg": self.loss(logits, targets) * self.loss_weight}
        aux_logits = [decoded.aux_logits] if _predicts_aux(self.decoder) else []
        if self.aux_heads is not None:
            aux_logits = self.aux_heads(features)
        if aux_logits:
            aux_losses = [self.loss(aux, targets) for aux in aux_logits]
            losses["loss_sem_seg_aux"] = sum(aux_losses) * self.aux_weight
        if self.aggregation is None and not self.terms:
            return losses
        progress = self.next_progress()
        if self.aggregation is not None:
            losses.update(self._memory_losses(aggregated, targets, progress))
        losses.update(self.term_losses(features, aggregated.features, logits, targets, progress))
        return losses

    def _memory_losses(self, aggregated, targets, progress) -> dict[str, torch.Tensor]:
        losses = self.aggregation.losses(
            aggregated, targets, loss=self.loss, predictor=self.predictor, progress=progress
        )
        # After the losses, which look at the memory that the network has read.
        scalars = self.aggregation.update(
            aggregated, targets, ignore_value=self.ignore_value, progress=progress
        )
        self._record(scalars)
        return losses


def _predicts_aux(decoder: nn.Module) -> bool:
    return getattr(decoder, "predicts_aux", False)
