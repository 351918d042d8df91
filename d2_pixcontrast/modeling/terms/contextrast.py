"""Contextual contrast at several levels: Sung et al., "Contextrast: Contextual Contrastive Learning
for Semantic Segmentation", CVPR 2024."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, get_norm
from torch import nn

from ...contrast import (
    ClassAnchors,
    ExtraNegatives,
    NegativeSlots,
    PixelAnchorLoss,
    ProjectionHead,
    check_bane,
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

_NODE = "MODEL.CONTEXTRAST"
_NEGATIVES = ("bane", "random")
# Each level draws from streams of its own, and no other term from these.
_STREAMS = range(100, 200)
_PIXELS, _CLASSES, _TIES, _SLOTS = range(4)


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
        negatives: str = "bane",
        max_negatives: int = 2048,
        keep_percent: float = 50.0,
        target: str = "other",
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
                class' anchor.
            negatives: "bane" (boundary-aware) or "random" (the others' positives).
            max_negatives: boundary-aware negatives per level, at most.
            keep_percent: share of each error map that is taken, in percent.
            target: see :func:`~d2_pixcontrast.contrast.sample_boundary_negatives`.

        Raises:
            ValueError: a number out of its range, an unknown word, or not one weight per level.
        """
        super().__init__(warmup)
        require_positive(
            _NODE,
            LOSS_WEIGHT=loss_weight,
            TEMPERATURE=temperature,
            MAX_POSITIVES=max_positives,
            **{"BANE.MAX_NEGATIVES": max_negatives},
        )
        require_same_length(_NODE, IN_FEATURES=in_features, LEVEL_WEIGHTS=level_weights)
        for weight in level_weights:
            require_positive(_NODE, LEVEL_WEIGHTS=weight)
        if not 0 <= low_weight <= 1:
            raise ValueError(f"{_NODE}.ANCHORS.LOW_WEIGHT has to be in [0, 1], got {low_weight}")
        if negatives not in _NEGATIVES:
            raise ValueError(f"{_NODE}.NEGATIVES is {negatives!r}; known are {list(_NEGATIVES)}")
        check_bane(keep_percent, target)
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
        self.negatives = negatives
        self.max_negatives = max_negatives
        self.keep_percent = keep_percent
        self.target = target

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.CONTEXTRAST
        shapes = select_shapes(_NODE, node.IN_FEATURES, input_shape)
        return dict(
            projectors=[
                ProjectionHead(
                    shape.channels,
                    dim=node.PROJECTOR.DIM,
                    kind=node.PROJECTOR.TYPE,
                    norm=lambda channels: get_norm(node.PROJECTOR.NORM, channels),
                )
                for shape in shapes
            ],
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
            negatives=node.NEGATIVES,
            max_negatives=node.BANE.MAX_NEGATIVES,
            keep_percent=node.BANE.KEEP_PERCENT,
            target=node.BANE.TARGET,
        )

    def compute(self, inputs: TermInputs) -> tuple[dict, dict]:
        features = (inputs.features[name] for name in self.in_features)
        hidden = [p.hidden(x) for p, x in zip(self.projectors, features, strict=True)]
        anchors = self._anchors(hidden, inputs)
        slots = [self._boundary_slots(level, h, inputs) for level, h in enumerate(hidden)]
        results = [
            self._level_loss(level, h, rows, present, slots[level], inputs)
            for level, (h, rows, present) in enumerate(zip(hidden, *anchors, strict=True))
        ]
        loss = sum(w * r.loss for w, r in zip(self.level_weights, results, strict=True))
        return {"loss_contextrast": loss * self.loss_weight}, detached(
            self._scalars(results, slots)
        )

    def _anchors(self, hidden, inputs) -> ClassAnchors:
        """Updated anchors of all levels and classes."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            sums, counts = zip(
                *(
                    projector.class_sums(h, _known_labels(inputs, h), self.num_classes)
                    for projector, h in zip(self.projectors, hidden, strict=True)
                )
            )
            means = class_anchors(torch.stack(sums), torch.stack(counts), all_ranks=self.all_ranks)
            return update_anchors(means, low_weight=self.low_weight, normalize=self.normalize)

    def _boundary_slots(self, level, hidden, inputs) -> NegativeSlots | None:
        if self.negatives == "random":
            return None
        size = hidden.shape[-2:]
        negatives = sample_boundary_negatives(
            inputs.labels_at(size),
            inputs.predictions_at(size),
            self._keys(level, _TIES, size.numel(), inputs),
            num_classes=self.num_classes,
            ignore_value=inputs.ignore_value,
            keep_percent=self.keep_percent,
            target=self.target,
        )
        return negatives.slots(self.max_negatives, self._keys(level, _SLOTS, size.numel(), inputs))

    def _level_loss(self, level, hidden, anchors, present, slots, inputs) -> PixelAnchorLoss:
        sample = sample_balanced(
            _known_labels(inputs, hidden).flatten(0, 1)[None],  # groups over the batch
            self._keys(level, _PIXELS, hidden.shape[-2:].numel(), inputs),
            self._keys(level, _CLASSES, self.num_classes, inputs)[:1],
            ignore_value=inputs.ignore_value,
            max_samples=self.max_positives,
        )
        index = sample.index if slots is None else torch.cat([sample.index, slots.index])
        rows = self.projectors[level].rows(hidden, index)
        rows, extra = rows[: len(sample.index)], rows[len(sample.index) :]
        classes = torch.arange(self.num_classes, device=rows.device)
        return pixel_anchor_loss(
            anchors,
            present,
            rows,
            sample,
            negatives=None if slots is None else ExtraNegatives(extra, slots.serves(classes)),
            temperature=self.temperature,
        )

    def _keys(self, level: int, purpose: int, count: int, inputs: TermInputs) -> torch.Tensor:
        return inputs.random_keys(count, _STREAMS[4 * level + purpose])

    def _scalars(self, results, slots) -> dict:
        count = torch.stack([r.num_anchors for r in results])
        share = count / count.sum().clamp(min=1)
        scalars = {
            f"contextrast/num_anchors/{name}": r.num_anchors
            for name, r in zip(self.in_features, results, strict=True)
        }
        scalars["contextrast/pos_sim"] = share @ torch.stack([r.pos_sim for r in results]).float()
        scalars["contextrast/neg_sim"] = share @ torch.stack([r.neg_sim for r in results]).float()
        if self.negatives == "bane":
            scalars["contextrast/num_bane"] = sum(s.mask.sum() for s in slots)
            # Anchors that no error serves; they take the other classes' positives.
            scalars["contextrast/num_fallback"] = sum(r.num_unserved for r in results)
        return scalars


def _known_labels(inputs: TermInputs, hidden: torch.Tensor) -> torch.Tensor:
    """(B, h, w) labels on the level's grid, -1 where there is none."""
    labels = inputs.labels_at(hidden.shape[-2:])
    return labels.where(labels != inputs.ignore_value, -1)
