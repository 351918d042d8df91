"""Contrast within and between scales: Pissas et al., "Multi-scale and Cross-scale Contrastive
Learning for Semantic Segmentation", ECCV 2022."""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import nn

from ...contrast import LabelledRows, ProjectionHead, cross_contrast_loss, sample_balanced
from .base import (
    TERM_REGISTRY,
    Term,
    detached,
    require_positive,
    require_same_length,
    select_shapes,
)
from .inputs import TermInputs
from .parts import build_projector

_NODE = "MODEL.MULTI_SCALE_CONTRAST"
_BALANCES = ("weight", "min")
# Each scale draws from streams of its own, and no other term from these.
_STREAMS = range(200, 300)


@TERM_REGISTRY.register()
class MultiScaleContrast(Term):
    """Embeds every encoder level and contrasts its pixels with one another, and those of the finest
    level with those of coarser ones."""

    loss_names = ("loss_multiscale_contrast", "loss_crossscale_contrast")

    @configurable
    def __init__(
        self,
        *,
        projectors: list[ProjectionHead],
        in_features: list[str],
        num_classes: int,
        loss_weight: float = 0.1,
        scale_weights: list[float] = (1.0, 0.7, 0.4, 0.1),
        cross_features: list[str] = ("res5", "res4"),
        cross_weight: float = 1.0,
        temperature: float = 0.1,
        warmup: float = 0.0,
        max_samples: int = 10000,
        max_views: int = 2500,
        min_pixels: int = 5,
        balance: str = "weight",
    ):
        """
        Args:
            projectors: for each scale, maps its features to unit embeddings.
            in_features: names of the scales, the finest first.
            num_classes: number of classes.
            loss_weight: factor of both losses.
            scale_weights: factor of each scale in ``loss_multiscale_contrast``.
            cross_features: scales that the finest is contrasted with.
            cross_weight: factor of each of them in ``loss_crossscale_contrast``.
            temperature: tau.
            warmup: fraction of the training during which the term is off.
            max_samples: pixels per scale, at most.
            max_views: pixels per (image, class), at most.
            min_pixels: an (image, class) with fewer pixels is left out.
            balance: "weight" (groups give what they have, and each has the same weight) or "min"
                (all groups give as many as the smallest; the published rule).

        Raises:
            ValueError: a number out of its range, an unknown word, not one weight per scale, or a
                ``cross_features`` that is no coarser scale.
        """
        super().__init__(warmup)
        require_positive(
            _NODE,
            LOSS_WEIGHT=loss_weight,
            CROSS_WEIGHT=cross_weight,
            TEMPERATURE=temperature,
            MAX_SAMPLES=max_samples,
            MAX_VIEWS=max_views,
            MIN_PIXELS=min_pixels,
        )
        require_same_length(_NODE, IN_FEATURES=in_features, SCALE_WEIGHTS=scale_weights)
        for weight in scale_weights:
            require_positive(_NODE, SCALE_WEIGHTS=weight)
        if not set(cross_features) <= set(in_features[1:]):
            raise ValueError(
                f"{_NODE}.CROSS_FEATURES is {list(cross_features)}; the finest scale "
                f"{in_features[0]} can be contrasted with {list(in_features[1:])} of IN_FEATURES"
            )
        if balance not in _BALANCES:
            raise ValueError(f"{_NODE}.BALANCE is {balance!r}; known are {list(_BALANCES)}")
        if not cross_features:
            self.loss_names = ("loss_multiscale_contrast",)
        self.projectors = nn.ModuleList(projectors)
        self.in_features = list(in_features)
        self.num_classes = num_classes
        self.loss_weight = loss_weight
        self.scale_weights = tuple(scale_weights)
        self.cross_features = list(cross_features)
        self.cross_weight = cross_weight
        self.temperature = temperature
        self.max_samples = max_samples
        self.max_views = max_views
        self.min_pixels = min_pixels
        self.balance = balance

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.MULTI_SCALE_CONTRAST
        shapes = select_shapes(_NODE, node.IN_FEATURES, input_shape)
        return dict(
            projectors=[build_projector(node, shape.channels, norm_last=True) for shape in shapes],
            in_features=node.IN_FEATURES,
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            loss_weight=node.LOSS_WEIGHT,
            scale_weights=node.SCALE_WEIGHTS,
            cross_features=node.CROSS_FEATURES,
            cross_weight=node.CROSS_WEIGHT,
            temperature=node.TEMPERATURE,
            warmup=node.WARMUP,
            max_samples=node.MAX_SAMPLES,
            max_views=node.MAX_VIEWS,
            min_pixels=node.MIN_PIXELS,
            balance=node.BALANCE,
        )

    @classmethod
    def within_process(cls, cfg) -> bool:
        return True

    def compute(self, inputs: TermInputs) -> tuple[dict, dict]:
        scales = [self._sample(scale, inputs) for scale in range(len(self.in_features))]
        within = [self._contrast(rows) for rows in scales]
        weighted = zip(self.scale_weights, within, strict=True)
        losses = [sum(weight * result.loss for weight, result in weighted)]
        if self.cross_features:
            by_name = dict(zip(self.in_features, scales, strict=True))
            across = (self._contrast(scales[0], by_name[name]) for name in self.cross_features)
            losses.append(self.cross_weight * sum(result.loss for result in across))
        scalars = {
            f"multi_scale/{key}/{name}": value
            for name, result in zip(self.in_features, within, strict=True)
            for key, value in result._asdict().items()
            if key != "loss"
        }
        losses = [self.loss_weight * loss for loss in losses]
        return dict(zip(self.loss_names, losses, strict=True)), detached(scalars)

    def _sample(self, scale: int, inputs: TermInputs) -> LabelledRows:
        """Embeddings of pixels of one scale, by (image, class)."""
        projector = self.projectors[scale]
        hidden = projector.hidden(inputs.features[self.in_features[scale]])
        size = hidden.shape[-2:]
        sample = sample_balanced(
            inputs.labels_at(size),
            inputs.random_keys(size.numel(), _STREAMS[2 * scale]),
            inputs.random_keys(self.num_classes, _STREAMS[2 * scale + 1]),
            ignore_value=inputs.ignore_value,
            max_samples=self.max_samples,
            max_views=self.max_views,
            min_pixels=self.min_pixels,
            equal=self.balance == "min",
        )
        rows = projector.rows(hidden, sample.index)
        return LabelledRows(rows, sample.labels, sample.mask / sample.views)

    def _contrast(self, anchors: LabelledRows, others: LabelledRows | None = None):
        return cross_contrast_loss(
            anchors, others, num_classes=self.num_classes, temperature=self.temperature
        )
