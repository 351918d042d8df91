"""The contract between the head and its terms."""

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

from ..registry import lookup
from .inputs import TermInputs

TERM_REGISTRY = Registry("PIXCONTRAST_TERM")
TERM_REGISTRY.__doc__ = """
Training-only terms, by the names in MODEL.SEM_SEG_HEAD.TERMS.

A registered class derives from :class:`Term` and is called as ``cls(cfg, input_shape)`` with the
ShapeSpecs of the encoder features and of "decoder", the decoder's output.
"""


class Term(nn.Module):
    """A loss beside the cross-entropy, with what it needs to compute it.

    A subclass sets ``loss_names`` and ``in_features``, the names of the features with a gradient,
    and implements :meth:`compute`. Every step on every rank returns exactly these losses
    (detectron2 gathers metrics by key) and leaves an edge to all parameters and features (DDP waits
    for their gradients, and no one else may read a feature).
    """

    loss_names: tuple[str, ...] = ()
    in_features: Sequence[str] = ()

    @classmethod
    def within_process(cls, cfg) -> bool:
        """Whether this config has pixels contrasted with those of their own process' images alone,
        that is with no other image where a process trains on one. A run's log says so then."""
        return False

    def __init__(self, warmup: float = 0.0):
        """
        Args:
            warmup: fraction of the training, in [0, 1], during which the term is off.

        Raises:
            ValueError: ``warmup`` outside [0, 1].
        """
        super().__init__()
        if not 0 <= warmup <= 1:
            raise ValueError(f"WARMUP is a fraction of the training in [0, 1], got {warmup}")
        self.warmup = warmup

    def forward(self, inputs: TermInputs) -> tuple[dict, dict]:
        """Losses by name, and scalars to record (0-d or (C,) tensors without gradient)."""
        if inputs.progress.fraction < self.warmup:
            # Off is skipped, not multiplied by 0: a NaN or inf in the features must not pass.
            features = (inputs.features[name] for name in self.in_features)
            zero = _Zero.apply(inputs.labels, *self.parameters(), *features)
            return dict.fromkeys(self.loss_names, zero), self.observe(inputs)
        return self.compute(inputs)

    def observe(self, inputs: TermInputs) -> dict:
        """What a term does in its warm-up, without gradient, such as filling a memory.

        Returns:
            Scalars to record.
        """
        return {}

    def compute(self, inputs: TermInputs) -> tuple[dict, dict]:
        """:meth:`forward` once the warm-up is over."""
        raise NotImplementedError


class _Zero(torch.autograd.Function):
    """0 with an edge to tensors, whose gradients are 0 whatever their values."""

    @staticmethod
    def forward(ctx, labels, *tensors):
        ctx.like = [(t.shape, t.dtype, t.device) for t in (labels, *tensors)]
        return labels.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, _):
        return tuple(
            torch.zeros(shape, dtype=dtype, device=device) if needed else None
            for (shape, dtype, device), needed in zip(ctx.like, ctx.needs_input_grad, strict=True)
        )


def require_positive(node: str, **values: float) -> None:
    """
    Raises:
        ValueError: a value is not above 0; the message names its key below ``node``.
    """
    for key, value in values.items():
        if not value > 0:
            raise ValueError(f"{node}.{key} has to be above 0, got {value}")


def require_same_length(node: str, **values: list) -> None:
    """
    Raises:
        ValueError: the lists differ in length; the message names their keys below ``node``.
    """
    if len({len(value) for value in values.values()}) > 1:
        found = " and ".join(f"{key} {list(value)}" for key, value in values.items())
        raise ValueError(f"{node}: {found} have to be of the same length")


def select_shapes(
    node: str, names: list[str], input_shape: dict[str, ShapeSpec]
) -> list[ShapeSpec]:
    """The shapes of the features that a term embeds.

    Raises:
        ValueError: no name, or one that neither the backbone nor the decoder gives.
    """
    if not names or any(name not in input_shape for name in names):
        raise ValueError(f"{node}.IN_FEATURES is {list(names)}; there are {sorted(input_shape)}")
    return [input_shape[name] for name in names]


def term_classes(cfg) -> dict[str, type[Term]]:
    """What MODEL.SEM_SEG_HEAD.TERMS names, in its order.

    Raises:
        ValueError: an unknown name, or one given twice.
    """
    key = "MODEL.SEM_SEG_HEAD.TERMS"
    names = list(cfg.MODEL.SEM_SEG_HEAD.TERMS)
    if len(set(names)) != len(names):
        raise ValueError(f"{key} names a term twice: {names}")
    return {name: lookup(TERM_REGISTRY, name, key) for name in names}


def build_terms(cfg, input_shape: dict[str, ShapeSpec]) -> nn.ModuleDict:
    """The terms of MODEL.SEM_SEG_HEAD.TERMS.

    Raises:
        ValueError: as :func:`term_classes`, or a term's settings do not fit.
    """
    return nn.ModuleDict({n: term(cfg, input_shape) for n, term in term_classes(cfg).items()})


def detached(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scalars for the record, cut from the graph."""
    return {name: value.detach().float() for name, value in values.items()}
