"""The segmentation head: decoder, classifier and training-only terms."""

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils import comm
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from ..compat import current_event_storage
from .decoder import build_decoder
from .losses import SegmentationLoss
from .terms import TermInputs, TrainingProgress, build_terms


@SEM_SEG_HEADS_REGISTRY.register()
class PixelContrastSemSegHead(nn.Module):
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
            aux_weight: factor of ``loss_sem_seg_aux``.
            terms: name to :class:`~d2_pixcontrast.modeling.Term`; training only.
            scalars_period: iterations between two records of the terms' scalars.
        """
        super().__init__()
        self.decoder = decoder
        self.predictor = predictor
        self.loss = loss
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.aux_head = aux_head
        self.aux_feature = aux_feature
        self.aux_weight = aux_weight
        self.terms = terms if terms is not None else nn.ModuleDict()
        self.scalars_period = scalars_period
        self._progress = None
        self._forwards = 0

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        # Training-only parts come last: with one seed the rest starts from the same weights.
        decoder = build_decoder(cfg, input_shape)
        predictor = _classifier(decoder.out_channels, head.NUM_CLASSES)
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

    def set_progress(self, progress: TrainingProgress) -> None:
        """Tell the terms where training stands. Without this the head counts training forwards."""
        self._progress = progress

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
        if self.aux_head is not None:
            aux_logits = self.aux_head(features[self.aux_feature])
            losses["loss_sem_seg_aux"] = self.loss(aux_logits, targets) * self.aux_weight
        if len(self.terms):
            inputs = TermInputs(
                features={**features, "decoder": decoded.features},
                logits=logits,
                labels=targets,
                ignore_value=self.ignore_value,
                progress=self._next_progress(),
                first_image=comm.get_rank() * targets.shape[0],
            )
            for term in self.terms.values():
                term_losses, scalars = term(inputs)
                losses.update(term_losses)
                self._record(scalars)
        return losses

    def _next_progress(self) -> TrainingProgress:
        if self._progress is not None:
            return self._progress
        progress = TrainingProgress(iteration=self._forwards, max_iter=max(self._forwards, 1))
        self._forwards += 1
        return progress

    def _record(self, scalars: dict[str, torch.Tensor]) -> None:
        """Write the terms' scalars; only now and then, since each of them waits for the device."""
        storage = current_event_storage()
        if scalars and storage is not None and (storage.iter + 1) % self.scalars_period == 0:
            storage.put_scalars(**_by_name(scalars))


def _by_name(scalars: dict[str, torch.Tensor]) -> dict[str, float]:
    """0-d tensors by their name, the items of (C,) tensors as ``<name>/<class>``."""
    result = {}
    for name, value in scalars.items():
        if value.dim():
            result.update({f"{name}/{c}": v for c, v in enumerate(value.tolist())})
        else:
            result[name] = float(value)
    return result


def _build_aux_head(cfg, input_shape) -> nn.Module | None:
    head = cfg.MODEL.SEM_SEG_HEAD
    if not head.AUX.IN_FEATURE:
        return None
    if head.AUX.IN_FEATURE not in input_shape:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.AUX.IN_FEATURE is {head.AUX.IN_FEATURE!r}; "
            f"the backbone gives {sorted(input_shape)}"
        )
    hidden = Conv2d(
        input_shape[head.AUX.IN_FEATURE].channels,
        head.AUX.CHANNELS,
        kernel_size=3,
        padding=1,
        bias=not head.NORM,
        norm=get_norm(head.NORM, head.AUX.CHANNELS),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(hidden)
    classifier = _classifier(head.AUX.CHANNELS, head.NUM_CLASSES)
    return nn.Sequential(hidden, nn.Dropout2d(0.1), classifier)


def _classifier(channels: int, num_classes: int) -> nn.Module:
    conv = Conv2d(channels, num_classes, kernel_size=1)
    nn.init.normal_(conv.weight, 0, 0.01)
    nn.init.zeros_(conv.bias)
    return conv
