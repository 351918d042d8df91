"""Pixel contrast across images: Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic
Segmentation", ICCV 2021."""

import logging

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec

from ...contrast import (
    AnchorSample,
    Bane,
    ExtraNegatives,
    MemoryBank,
    Mining,
    NegativeSlots,
    ProjectionHead,
    pixel_contrast_loss,
    sample_boundary_negatives,
    sample_class_anchors,
    sample_hard_anchors,
)
from .base import TERM_REGISTRY, Term, detached, require_positive, select_shapes
from .inputs import TermInputs
from .parts import build_bane, build_projector

_PIXEL_STREAM, _GROUP_STREAM, _BANK_STREAM, _MINING_STREAM, _HARD_STREAM = range(5)
_TIE_STREAM, _SLOT_STREAM = range(5, 7)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SAMPLERS = ("per_image", "per_class")
_NODE = "MODEL.PIXEL_CONTRAST"


@TERM_REGISTRY.register()
class PixelContrast(Term):
    """Embeds pixels, samples hard anchors in the batch, and contrasts them with one another or with
    a memory of earlier batches.

    With boundary-aware negatives (Contextrast, CVPR 2024) the batch's wrong pixels near the
    boundary of an error join the negatives, whatever these are; positives stay as they are. A batch
    without errors adds none; a pixel that is also an anchor of the contrast set counts twice.
    """

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
        sampler: str = "per_image",
        max_samples: int = 1024,
        max_views: int = 100,
        anchors_per_class: int = 50,
        warmup: float = 0.125,
        bank: MemoryBank | None = None,
        with_batch: bool = False,
        mining: Mining | None = None,
        bane: Bane | None = None,
    ):
        """
        Args:
            projector: maps features to unit embeddings.
            in_features: features that are concatenated before the projector.
            num_classes: number of classes.
            loss_weight: factor of the loss.
            temperature, base_temperature: tau and tau0 of the loss.
            sampler: "per_image" (the published code) or "per_class" (the paper's text).
            max_samples: anchors per step, at most; "per_image" only.
            max_views: anchors per (image, class), at most; "per_image" only.
            anchors_per_class: anchors per class and step, at most; "per_class" only.
            warmup: fraction of the training during which the term is off.
            bank: memory to contrast with; None = the batch.
            with_batch: contrast with the batch too, where there is a bank.
            mining: chooses positives and negatives; None = all.
            bane: boundary-aware negatives that join them, outside of the mining; None = none.

        Raises:
            ValueError: a number out of its range, an unknown sampler, mining mode or target.
        """
        super().__init__(warmup)
        require_positive(
            _NODE,
            LOSS_WEIGHT=loss_weight,
            TEMPERATURE=temperature,
            BASE_TEMPERATURE=base_temperature,
            MAX_SAMPLES=max_samples,
            MAX_VIEWS=max_views,
            ANCHORS_PER_CLASS=anchors_per_class,
        )
        if sampler not in _SAMPLERS:
            raise ValueError(f"{_NODE}.SAMPLER is {sampler!r}; known are {list(_SAMPLERS)}")
        self.projector = projector
        self.in_features = list(in_features)
        self.num_classes = num_classes
        self.loss_weight = loss_weight
        self.temperature = temperature
        self.base_temperature = base_temperature
        self.sampler = sampler
        self.max_samples = max_samples
        self.max_views = max_views
        self.anchors_per_class = anchors_per_class
        self.bank = bank
        self.with_batch = with_batch
        self.mining = (mining or Mining()).check()
        self.bane = None if bane is None else bane.check()
        if bank is not None:
            _log_memory_cost(bank)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.PIXEL_CONTRAST
        shapes = select_shapes(_NODE, node.IN_FEATURES, input_shape)
        return dict(
            projector=build_projector(node, sum(shape.channels for shape in shapes)),
            in_features=node.IN_FEATURES,
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            loss_weight=node.LOSS_WEIGHT,
            temperature=node.TEMPERATURE,
            base_temperature=node.BASE_TEMPERATURE,
            sampler=node.SAMPLER,
            max_samples=node.MAX_SAMPLES,
            max_views=node.MAX_VIEWS,
            anchors_per_class=node.ANCHORS_PER_CLASS,
            warmup=node.WARMUP,
            bank=_build_bank(node, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
            with_batch=node.MEMORY.WITH_BATCH,
            mining=Mining(
                mode=node.MINING.MODE,
                num_positives=node.MINING.NUM_POSITIVES,
                num_negatives=node.MINING.NUM_NEGATIVES,
                hard_fraction=node.MINING.HARD_FRACTION,
                positive_mode=node.MINING.POSITIVE_MODE,
            ),
            bane=build_bane(node, _NODE, "contrast_set"),
        )

    @classmethod
    def within_process(cls, cfg) -> bool:
        return not cfg.MODEL.PIXEL_CONTRAST.MEMORY.ENABLED

    def compute(self, inputs: TermInputs) -> tuple[dict, dict]:
        features = inputs.concatenated(self.in_features)
        size = features.shape[-2:]
        sample = self._sample(inputs, size)
        hidden = self.projector.hidden(features)
        extra, extra_scalars = self._extra_negatives(inputs, hidden, sample)
        result = pixel_contrast_loss(
            self.projector.rows(hidden, sample.index),
            sample.labels,
            mask=sample.mask,
            bank=None if self.bank is None else self.bank.entries(),
            with_batch=self.with_batch,
            extra=extra,
            mining=self.mining,
            row_keys=self._row_keys(inputs, size, sample.index),
            temperature=self.temperature,
            base_temperature=self.base_temperature,
        )
        scalars = {
            "contrast/num_anchors": sample.mask.sum(),
            "contrast/pos_sim": result.pos_sim,
            "contrast/neg_sim": result.neg_sim,
            "contrast/hard_ratio": sample.hard.sum() / sample.mask.sum().clamp(min=1),
            **extra_scalars,
            **self._remember(hidden, inputs),
        }
        return {"loss_pixel_contrast": result.loss * self.loss_weight}, detached(scalars)

    def observe(self, inputs: TermInputs) -> dict:
        """Fill the memory in the warm-up, from the first iteration on.

        Without one nothing reads the embeddings yet, and the projector does not run.
        """
        if self.bank is None or not torch.is_grad_enabled():
            return {}
        with torch.no_grad():
            hidden = self.projector.hidden(inputs.concatenated(self.in_features))
        return detached(self._remember(hidden, inputs))

    def _sample(self, inputs: TermInputs, size) -> AnchorSample:
        maps = inputs.labels_at(size), inputs.predictions_at(size)
        keys = inputs.random_keys(size.numel(), _PIXEL_STREAM)
        if self.sampler == "per_class":
            return sample_class_anchors(
                *maps,
                keys,
                inputs.random_keys(size.numel(), _HARD_STREAM),
                num_classes=self.num_classes,
                ignore_value=inputs.ignore_value,
                per_class=self.anchors_per_class,
            )
        return sample_hard_anchors(
            *maps,
            keys,
            inputs.random_keys(self.num_classes, _GROUP_STREAM),
            ignore_value=inputs.ignore_value,
            max_samples=self.max_samples,
            max_views=self.max_views,
        )

    def _extra_negatives(
        self, inputs: TermInputs, hidden: torch.Tensor, sample: AnchorSample
    ) -> tuple[ExtraNegatives | None, dict]:
        """Boundary-aware negatives, if there are to be any, and scalars to record."""
        if self.bane is None:
            return None, {}
        slots = self._boundary_negatives(inputs, hidden.shape[-2:])
        rows = self.projector.rows(hidden, slots.index)
        extra = ExtraNegatives(rows, slots.serves(sample.labels))
        return extra, {"contrast/num_bane": slots.mask.sum()}

    def _boundary_negatives(self, inputs: TermInputs, size) -> NegativeSlots:
        chosen = sample_boundary_negatives(
            inputs.labels_at(size),
            inputs.predictions_at(size),
            inputs.random_keys(size.numel(), _TIE_STREAM),
            num_classes=self.num_classes,
            ignore_value=inputs.ignore_value,
            keep_percent=self.bane.keep_percent,
            target=self.bane.target,
        )
        return chosen.slots(self.bane.max_negatives, inputs.random_keys(size.numel(), _SLOT_STREAM))

    def _row_keys(self, inputs: TermInputs, size, index) -> torch.Tensor | None:
        """Random keys of the anchors, by their pixels: the same on any rank."""
        if not self.mining.draws:
            return None
        return inputs.random_keys(size.numel(), _MINING_STREAM).flatten()[index]

    def _remember(self, hidden: torch.Tensor, inputs: TermInputs) -> dict:
        """Write the batch to the memory, after the loss has been computed with the old one.

        Not in training forwards without gradients, which are no training steps (PreciseBN).
        """
        if self.bank is None or not torch.is_grad_enabled():
            return {}
        with torch.no_grad():
            embeddings = self.projector.all_rows(hidden)
            size = embeddings.shape[-2:]
            self.bank.enqueue(
                embeddings,
                inputs.labels_at(size),
                inputs.random_keys(size.numel(), _BANK_STREAM),
                ignore_value=inputs.ignore_value,
            )
            return {"contrast/bank_fill": self.bank.fill_ratio()}


def _build_bank(node, num_classes: int) -> MemoryBank | None:
    memory = node.MEMORY
    if not memory.ENABLED:
        return None
    if memory.DTYPE not in _DTYPES:
        raise ValueError(f"{_NODE}.MEMORY.DTYPE is {memory.DTYPE!r}; known are {sorted(_DTYPES)}")
    return MemoryBank(
        num_classes,
        node.PROJECTOR.DIM,
        region_size=memory.REGION_SIZE,
        pixel_size=memory.PIXEL_SIZE,
        pixels_per_group=memory.PIXELS_PER_GROUP,
        dtype=_DTYPES[memory.DTYPE],
    )


def _log_memory_cost(bank: MemoryBank) -> None:
    stores = " + ".join(f"{s.rows.shape[1]} {name}s" for name, s in bank.stores.items())
    rows = next(iter(bank.stores.values())).rows
    logging.getLogger(__name__).info(
        f"Memory bank: {bank.num_classes} classes x ({stores}) x {rows.shape[2]} {rows.dtype}: "
        f"{bank.memory_bytes() / 2**20:.1f} MiB"
    )
