"""Pixel contrast across images: Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic
Segmentation", ICCV 2021."""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, get_norm

from ...contrast import ProjectionHead, pixel_contrast_loss, sample_hard_anchors
from .base import TERM_REGISTRY, Term, detached, require_positive, select_shapes
from .inputs import TermInputs

_PIXEL_STREAM, _GROUP_STREAM = 0, 1


@TERM_REGISTRY.register()
class PixelContrast(Term):
    """Embeds pixels, samples hard anchors in the batch and contrasts them with one another."""

    loss_names = ("loss_pixel_contrast",)

    @configurable
    def __init__(
        self,
        *,
        projector: ProjectionHead,
        in_features: list[str],
        num_classes: int,
        loss_weight: float = 0.1,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        max_samples: int = 1024,
        max_views: int = 100,
        warmup: float = 0.125,
    ):
        """
        Args:
            projector: maps features to unit embeddings.
            in_features: features that are concatenated before the projector.
            num_classes: number of classes.
            loss_weight: factor of the loss.
            temperature, base_temperature: tau and tau0 of the loss.
            max_samples: anchors per step, at most.
            max_views: anchors per (image, class), at most.
            warmup: fraction of the training during which the term is off.

        Raises:
            ValueError: a number out of its range.
        """
        super().__init__(warmup)
        require_positive(
            "MODEL.PIXEL_CONTRAST",
            LOSS_WEIGHT=loss_weight,
            TEMPERATURE=temperature,
            BASE_TEMPERATURE=base_temperature,
            MAX_SAMPLES=max_samples,
            MAX_VIEWS=max_views,
        )
        self.projector = projector
        self.in_features = list(in_features)
        self.num_classes = num_classes
        self.loss_weight = loss_weight
        self.temperature = temperature
        self.base_temperature = base_temperature
        self.max_samples = max_samples
        self.max_views = max_views

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.PIXEL_CONTRAST
        shapes = select_shapes("MODEL.PIXEL_CONTRAST", node.IN_FEATURES, input_shape)
        return dict(
            projector=ProjectionHead(
                sum(shape.channels for shape in shapes),
                dim=node.PROJECTOR.DIM,
                kind=node.PROJECTOR.TYPE,
                norm=lambda channels: get_norm(node.PROJECTOR.NORM, channels),
            ),
            in_features=node.IN_FEATURES,
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            loss_weight=node.LOSS_WEIGHT,
            temperature=node.TEMPERATURE,
            base_temperature=node.BASE_TEMPERATURE,
            max_samples=node.MAX_SAMPLES,
            max_views=node.MAX_VIEWS,
            warmup=node.WARMUP,
        )

    def compute(self, inputs: TermInputs) -> tuple[dict, dict]:
        features = inputs.concatenated(self.in_features)
        size = features.shape[-2:]
        sample = sample_hard_anchors(
            inputs.labels_at(size),
            inputs.predictions_at(size),
            inputs.random_keys(size.numel(), _PIXEL_STREAM),
            inputs.random_keys(self.num_classes, _GROUP_STREAM),
            ignore_value=inputs.ignore_value,
            max_samples=self.max_samples,
            max_views=self.max_views,
        )
        result = pixel_contrast_loss(
            self.projector.at(features, sample.index),
            sample.labels,
            mask=sample.mask,
            temperature=self.temperature,
            base_temperature=self.base_temperature,
        )
        scalars = {
            "contrast/num_anchors": sample.mask.sum(),
            "contrast/pos_sim": result.pos_sim,
            "contrast/neg_sim": result.neg_sim,
            "contrast/hard_ratio": sample.hard.sum() / sample.mask.sum().clamp(min=1),
        }
        return {"loss_pixel_contrast": result.loss * self.loss_weight}, detached(scalars)
