"""Terms beside any head that detectron2 knows."""

import contextlib
import inspect
from collections.abc import Iterator

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from ..config import inference_config
from .head_with_terms import HeadWithTerms
from .registry import lookup
from .terms import build_terms

PREDICTOR = "predictor"  # what detectron2's per-pixel heads call their classifier


@SEM_SEG_HEADS_REGISTRY.register()
class ContrastWrapperHead(HeadWithTerms):
    """Any registered per-pixel head, with training-only terms beside its own losses.

    Add pixel contrast to my model, whose head is a SemSegFPNHead (both lines below MODEL)::

        SEM_SEG_HEAD: {NAME: ContrastWrapperHead, WRAPPED: SemSegFPNHead, TERMS: [PixelContrast]}
        PIXEL_CONTRAST: {IN_FEATURES: [decoder]}

    The input of the head's classifier is what terms know as "decoder". In evaluation mode the
    wrapped head runs alone. :func:`d2_pixcontrast.engine.plain_state_dict` gives weights that load
    into the model without the wrapper, the one of :func:`d2_pixcontrast.inference_config`.
    """

    @configurable
    def __init__(
        self,
        *,
        wrapped: nn.Module,
        terms: nn.ModuleDict | None = None,
        scalars_period: int = 20,
    ):
        """
        Args:
            wrapped: the head. It has an ``ignore_value``, returns (result, losses), and calls one
                Conv2d named ``predictor``, its own or that of a head within it.
            terms: name to :class:`~d2_pixcontrast.modeling.Term`; training only.
            scalars_period: iterations between two records of the terms' scalars.

        Raises:
            ValueError: ``wrapped`` has no such convolution, or several.
        """
        super().__init__()
        self.wrapped = wrapped
        self._predictor_name = predictor_name(wrapped)
        self.set_terms(terms, ignore_value=wrapped.ignore_value, scalars_period=scalars_period)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        key = "MODEL.SEM_SEG_HEAD.WRAPPED"
        name = cfg.MODEL.SEM_SEG_HEAD.WRAPPED
        head = lookup(SEM_SEG_HEADS_REGISTRY, name, key)
        if inspect.isclass(head) and issubclass(head, HeadWithTerms):
            raise ValueError(f"{key} is {name!r}, which runs terms itself; make it the NAME")
        # The terms come last: with one seed the rest starts from the same weights.
        wrapped = head(inference_config(cfg), input_shape)
        owner, _, _ = predictor_name(wrapped).rpartition(".")
        decoded = ShapeSpec(
            channels=wrapped.get_submodule(predictor_name(wrapped)).in_channels,
            stride=getattr(wrapped.get_submodule(owner), "common_stride", None),
        )
        return dict(
            wrapped=wrapped,
            terms=build_terms(cfg, {**input_shape, "decoder": decoded}),
            scalars_period=cfg.MODEL.SEM_SEG_HEAD.SCALARS_PERIOD,
        )

    @property
    def predictor(self) -> nn.Module:
        """The wrapped head's classifier."""
        return self.wrapped.get_submodule(self._predictor_name)

    def forward(self, features: dict[str, torch.Tensor], targets=None, *args, **kwargs):
        """What the wrapped head returns; in training with the terms' losses among its losses.

        Raises:
            RuntimeError: the wrapped head did not call its classifier in training.
        """
        if not self.training or not len(self.terms):
            return self.wrapped(features, targets, *args, **kwargs)
        with _recorded_calls(self.predictor) as calls:
            result, losses = self.wrapped(features, targets, *args, **kwargs)
        if not calls:
            raise RuntimeError(
                f"{type(self.wrapped).__name__} did not call its {self._predictor_name} in "
                "training, so that terms cannot be attached to it"
            )
        decoded, logits = calls[-1]
        return result, {**losses, **self.term_losses(features, decoded, logits, targets)}


def predictor_name(head: nn.Module) -> str:
    """Path of the one Conv2d called ``predictor`` in a head.

    Raises:
        ValueError: there is none, or more than one.
    """
    names = [
        name
        for name, module in head.named_modules()
        if isinstance(module, nn.Conv2d) and name.rpartition(".")[2] == PREDICTOR
    ]
    if len(names) != 1:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.WRAPPED built a {type(head).__name__}; terms need the one Conv2d "
            f"called {PREDICTOR!r} in it, there are {names or 'none'}"
        )
    return names[0]


@contextlib.contextmanager
def _recorded_calls(module: nn.Module) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """A list that gets (input, output) of every call of ``module`` within the context."""
    calls = []
    handle = module.register_forward_hook(
        lambda _, inputs, output: calls.append((inputs[0], output))
    )
    try:
        yield calls
    finally:
        handle.remove()
