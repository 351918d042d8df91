"""Any timm model with ``features_only`` as a detectron2 backbone."""

import math

import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone

from ..registry import suggest


class TimmBackbone(Backbone):
    """A timm feature extractor whose features carry detectron2's names.

    A feature is called "res" + log2 of its stride in the undilated network: "res1" (stride 2) to
    "res5" (stride 32), as in detectron2's ResNets. HRNet gives its four branches as "res2"
    (stride 4) to "res5". The weights keep timm's names below ``body.``.
    """

    def __init__(
        self, name: str, *, output_stride: int = 32, out_features: list[str] | None = None
    ):
        """
        Args:
            name: a timm model name, with or without a weights tag ("mobilenetv2_100.ra_in1k").
            output_stride: 8, 16 or 32; the network's strides beyond it become dilations.
            out_features: names to compute; empty or None for all. Parameters of deeper stages,
                where timm builds them nevertheless, are frozen.

        Raises:
            ValueError: timm knows no such model, it cannot give features or this stride, or it has
                no feature of a name in ``out_features``.
        """
        super().__init__()
        names = _feature_names(name)
        wanted = list(out_features or names)
        unknown = [f for f in wanted if f not in names]
        if unknown:
            raise ValueError(
                f"MODEL.TIMM.OUT_FEATURES: {name} has no feature {unknown}; it has {names}"
            )
        indices = [names.index(f) for f in names if f in wanted]
        self.name = name
        self.out_indices = tuple(indices)
        self.body = create_features(name, output_stride, indices)
        self._out_features = [names[i] for i in indices]
        if names[-1] not in wanted:
            self._freeze_unused(output_stride)
        channels = self.body.feature_info.channels()
        strides = self.body.feature_info.reduction()
        self._shapes = {
            f: ShapeSpec(channels=c, stride=s)
            for f, c, s in zip(self._out_features, channels, strides, strict=True)
        }

    def _freeze_unused(self, output_stride: int) -> None:
        """Freeze what no output depends on: DDP would wait for its gradients."""
        with torch.device("meta"):
            probe = create_features(self.name, output_stride, self.out_indices)
            total = sum(feature.sum() for feature in probe(torch.zeros(1, 3, 64, 64)))
        parameters = dict(probe.named_parameters())
        gradients = torch.autograd.grad(total, parameters.values(), allow_unused=True)
        for key, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                self.body.get_parameter(key).requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        return max(shape.stride for shape in self._shapes.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) normalised images to {name: (B, C, H / stride, W / stride)}."""
        return dict(zip(self._out_features, self.body(x), strict=True))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """MODEL.BACKBONE.NAME "build_timm_backbone": the timm model of MODEL.TIMM."""
    node = cfg.MODEL.TIMM
    return TimmBackbone(node.NAME, output_stride=node.OUTPUT_STRIDE, out_features=node.OUT_FEATURES)


def create_features(name: str, output_stride: int = 32, indices=None, **kwargs):
    """``timm.create_model(features_only=True)`` with errors that say what to change.

    Raises:
        ValueError: as for :class:`TimmBackbone`.
    """
    base = name.split(".")[0]
    if not timm.is_model(base):
        raise ValueError(f"MODEL.TIMM.NAME is {name!r}; {suggest(base, timm.list_models())}")
    if output_stride != 32:  # passing the default to models without the argument is an error
        kwargs["output_stride"] = output_stride
    if indices is not None:
        kwargs["out_indices"] = tuple(indices)
    if base.startswith("hrnet"):
        kwargs["feature_location"] = ""  # the branches themselves, without classification convs
    try:
        return timm.create_model(name, features_only=True, **kwargs)
    except (TypeError, NotImplementedError, AttributeError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"timm cannot build {name!r} as a feature extractor with MODEL.TIMM.OUTPUT_STRIDE "
            f"{output_stride}: {error}"
        ) from error


def _feature_names(name: str) -> list[str]:
    """Names of all features, from the strides of the undilated network."""
    with torch.device("meta"):
        strides = create_features(name).feature_info.reduction()
    # Equal or repeated strides (HRNet's stem, ViTs) still get one name each, counting up.
    first = int(math.log2(strides[0]))
    return [f"res{first + i}" for i in range(len(strides))]
