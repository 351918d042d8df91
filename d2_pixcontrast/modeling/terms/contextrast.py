"""Contextual contrast at several levels: Sung et al., "Contextrast: Contextual Contrastive Learning
for Semantic Segmentation", CVPR 2024."""

from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import nn

from ...contrast import (
    AnchorNegatives,
    Bane,
    ClassAnchors,
    NegativeSlots,
    PixelAnchorLoss,
    PixelEmbeddings,
    ProjectionHead,
    class_anchors,
    pixel_anchor_loss,
    sample_balanced,
    sample_boundary_negatives,
    update_anchors,
)
from .base import (
    TERM_REGISTRY,
    Term,
    detached,
    require_positive,
    require_same_length,
    select_shapes,
)
from .inputs import TermInputs
from .parts import build_bane, build_projector

_NODE = "MODEL.CONTEXTRAST"
# Each level draws from streams of its own, and no other term from these.
_STREAMS = range(100, 200)
_NO_CLASS = -1


class _Level(NamedTuple):
    """What the loss of one level needs: all (B, h, w), the keys (B, h * w)."""

    embeddings: PixelEmbeddings
    labels: torch.Tensor
    predictions: torch.Tensor
    pixel_keys: torch.Tensor
    tie_keys: torch.Tensor
    slot_keys: torch.Tensor


@TERM_REGISTRY.register()
class Contextrast(Term):
    """Pulls the pixels of every encoder level to the mean of their class, which has taken up some
    of the deepest level's, and away from those that are wrong near the boundary of an error."""

    loss_names = ("loss_contextrast",)

    @configurable
    def __init__(
        self,
        *,
        projectors: list[ProjectionHead],
        in_features: list[str],
        num_classes: int,
        loss_weight: float = 0.1,
        level_weights: list[float] = (0.1, 0.3, 0.7, 1.0),
        temperature: float = 0.1,
        warmup: float = 0.0,
        low_weight: float = 0.7,
        normalize: bool = True,
        detach: bool = False,
        all_ranks: bool = False,
        max_positives: int = 4096,
        bane: Bane | None = None,
    ):
        """
        Args:
            projectors: for each level, maps its features to unit embeddings.
            in_features: names of the levels, from shallow to deep.
            num_classes: number of classes.
            loss_weight: alpha, factor of the loss.
            level_weights: lambda, factor of each level.
            temperature: tau.
            warmup: fraction of the training during which the term is off.
            low_weight: w_l, share of a level's own anchor when the deepest level's is mixed in.
            normalize: bring the anchors to length 1 after that.
            detach: cut the anchors from the graph; gradients reach pixels only.
            all_ranks: anchors are means over the batch of all ranks.
            max_positives: pixels per level, evenly from the classes, that are positives of their
                class' anchor; at least one for each class.
            bane: chooses the boundary-aware negatives of each level; None = the negatives are the
                sampled positives of the other classes.

        Raises:
            ValueError: a number out of its range, or not one weight per level.
        """
        super().__init__(warmup)
        require_positive(_NODE, LOSS_WEIGHT=loss_weight, TEMPERATURE=temperature)
        require_same_length(_NODE, IN_FEATURES=in_features, LEVEL_WEIGHTS=level_weights)
        for weight in level_weights:
            require_positive(_NODE, LEVEL_WEIGHTS=weight)
        if not 0 <= low_weight <= 1:
            raise ValueError(f"{_NODE}.ANCHORS.LOW_WEIGHT has to be in [0, 1], got {low_weight}")
        if max_positives < num_classes:
            raise ValueError(
                f"{_NODE}.MAX_POSITIVES is {max_positives}; the {num_classes} classes of "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES need at least one each"
            )
        self.projectors = nn.ModuleList(projectors)
        self.in_features = list(in_features)
        self.num_classes = num_classes
        self.loss_weight = loss_weight
        self.level_weights = tuple(level_weights)
        self.temperature = temperature
        self.low_weight = low_weight
        self.normalize = normalize
        self.detach = detach
        self.all_ranks = all_ranks
        self.max_positives = max_positives
        self.bane = None if bane is None else bane.check()

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.CONTEXTRAST
        shapes = select_shapes(_NODE, node.IN_FEATURES, input_shape)
        return dict(
            projectors=[build_projector(node, shape.channels) for shape in shapes],
            in_features=node.IN_FEATURES,
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            loss_weight=node.LOSS_WEIGHT,
            level_weights=node.LEVEL_WEIGHTS,
            temperature=node.TEMPERATURE,
            warmup=node.WARMUP,
            low_weight=node.ANCHORS.LOW_WEIGHT,
            normalize=node.ANCHORS.NORMALIZE,
            detach=node.ANCHORS.DETACH,
            all_ranks=node.ANCHORS.ALL_RANKS,
            max_positives=node.MAX_POSITIVES,
            bane=build_bane(node, _NODE, "random"),
        )

    @classmethod
    def within_process(cls, cfg) -> bool:
        return not cfg.MODEL.CONTEXTRAST.ANCHORS.ALL_RANKS

    def compute(self, inputs: TermInputs) -> tuple[dict, dict]:
        levels = [self._level(i, inputs) for i in range(len(self.in_features))]
        anchors = self._anchors(levels)
        slots = [self._boundary_slots(level) for level in levels]
        results = [self._level_loss(*parts) for parts in zip(levels, *anchors, slots, strict=True)]
        loss = sum(w * r.loss for w, r in zip(self.level_weights, results, strict=True))
        scalars = self._scalars(results, slots)
        return {"loss_contextrast": loss * self.loss_weight}, detached(scalars)

    def _level(self, number: int, inputs: TermInputs) -> _Level:
        projector, features = self.projectors[number], inputs.features[self.in_features[number]]
        size = features.shape[-2:]
        labels = inputs.labels_at(size)
        return _Level(
            projector.pixels(projector.hidden(features)),
            labels.where(labels != inputs.ignore_value, _NO_CLASS),
            inputs.predictions_at(size),
            *(inputs.random_keys(size.numel(), _STREAMS[3 * number + i]) for i in range(3)),
        )

    def _anchors(self, levels: list[_Level]) -> ClassAnchors:
        """Updated anchors of all levels and classes."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            pairs = [lv.embeddings.class_sums(lv.labels, self.num_classes) for lv in levels]
            sums, counts = map(torch.stack, zip(*pairs))
            means = class_anchors(sums, counts, all_ranks=self.all_ranks)
            return update_anchors(means, low_weight=self.low_weight, normalize=self.normalize)

    def _boundary_slots(self, level: _Level) -> NegativeSlots | None:
        if self.bane is None:
            return None
        negatives = sample_boundary_negatives(
            level.labels,
            level.predictions,
            level.tie_keys,
            num_classes=self.num_classes,
            ignore_value=_NO_CLASS,
            keep_percent=self.bane.keep_percent,
            target=self.bane.target,
        )
        return negatives.slots(self.bane.max_negatives, level.slot_keys)

    def _level_loss(self, level: _Level, anchors, present, slots) -> PixelAnchorLoss:
        classes = torch.arange(self.num_classes, device=anchors.device)
        sample = sample_balanced(
            level.labels.flatten(0, 1)[None],  # groups over the batch
            level.pixel_keys,
            classes[None],  # in any order, since there is room for all of them
            ignore_value=_NO_CLASS,
            max_samples=self.max_positives,
        )
        index = sample.index if slots is None else torch.cat([sample.index, slots.index])
        cosines = level.embeddings.cosines(anchors, index)
        negatives = None
        if slots is not None:
            cosines, of_slots = cosines.split([len(sample.index), len(slots.index)], dim=1)
            negatives = AnchorNegatives(of_slots, slots.serves(classes))
        return pixel_anchor_loss(
            cosines, sample, present, negatives=negatives, temperature=self.temperature
        )

    def _scalars(self, results, slots) -> dict:
        count = torch.stack([r.num_anchors for r in results])
        share = count / count.sum().clamp(min=1)
        scalars = {
            f"contextrast/num_anchors/{name}": r.num_anchors
            for name, r in zip(self.in_features, results, strict=True)
        }
        scalars["contextrast/pos_sim"] = share @ torch.stack([r.pos_sim for r in results]).float()
        scalars["contextrast/neg_sim"] = share @ torch.stack([r.neg_sim for r in results]).float()
        if self.bane is not None:
            scalars["contextrast/num_bane"] = sum(s.mask.sum() for s in slots)
            # Anchors that no error serves; they take the other classes' positives.
            scalars["contextrast/num_fallback"] = sum(r.num_unserved for r in results)
        return scalars
