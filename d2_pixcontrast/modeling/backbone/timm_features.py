"""timm's models as feature extractors: which arguments each family needs, and names of features."""

import math

import timm
from timm.layers import Format
from timm.models import is_model_in_modules
from torch import nn

from ..registry import suggest

_SWIN = {"swin_transformer", "swin_transformer_v2"}
_PLAIN = {"vision_transformer", "deit", "eva"}  # one stride throughout


def create_features(
    name: str,
    output_stride: int = 32,
    indices: tuple[int, ...] | None = None,
    *,
    image_size: int = 0,
    drop_path_rate: float = 0.0,
    **kwargs,
) -> nn.Module:
    """``timm.create_model(features_only=True)`` with errors that say what to change.

    Transformers take images of any size that their patches divide: Swin pads and shifts its windows
    as its published segmentation code does, whatever size it was pretrained at, and a plain
    transformer resamples its position embeddings.

    Args:
        name, output_stride, image_size, drop_path_rate: as for
            :class:`~d2_pixcontrast.modeling.TimmBackbone`.
        indices: timm's numbers of the features; None for timm's choice.
        kwargs: further arguments of ``timm.create_model``.

    Raises:
        ValueError: as for :class:`~d2_pixcontrast.modeling.TimmBackbone`.
    """
    base = name.split(".")[0]
    if not timm.is_model(base):
        raise ValueError(f"MODEL.TIMM.NAME is {name!r}; {suggest(base, timm.list_models())}")
    wanted = _of_family(base)
    if output_stride != 32:  # passing the default to models without the argument is an error
        wanted["output_stride"] = output_stride
    if indices is not None:
        wanted["out_indices"] = tuple(indices)
    if image_size:
        wanted["img_size"] = image_size
    if drop_path_rate:
        wanted["drop_path_rate"] = drop_path_rate
    try:
        return timm.create_model(name, features_only=True, **{**wanted, **kwargs})
    except (TypeError, NotImplementedError, AttributeError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"timm cannot build {name!r} as a feature extractor with MODEL.TIMM.OUTPUT_STRIDE "
            f"{output_stride}, IMAGE_SIZE {image_size}, DROP_PATH_RATE {drop_path_rate}: {error}"
        ) from error


def _of_family(base: str) -> dict:
    if base.startswith("hrnet"):
        return {"feature_location": ""}  # the branches themselves, without classification convs
    if is_model_in_modules(base, _SWIN):
        # timm's own default of the last is .1; ours is a key.
        return {"strict_img_size": False, "always_partition": True, "drop_path_rate": 0.0}
    if is_model_in_modules(base, _PLAIN):
        return {"dynamic_img_size": True}
    return {}


def pads_itself(name: str) -> bool:
    """Whether a network can be told to pad images to its patches, as plain transformers can."""
    return is_model_in_modules(name.split(".")[0], _PLAIN)


def patch_size(name: str) -> int:
    """What image sides have to be a multiple of; 1 for convolutional networks, and for those that
    :func:`pads_itself`."""
    return 4 if is_model_in_modules(name.split(".")[0], _SWIN) else 1


def image_side(name: str) -> int:
    """Side in pixels of the images of the pretraining, which any network takes."""
    return timm.get_pretrained_cfg(name).input_size[-1]


def feature_names(features: nn.Module) -> list[str]:
    """Names of all features that a network has, from that of its undilated form.

    "res" + log2 of the stride, or "block0", "block1", ... where all have the same stride.
    """
    strides = [info["reduction"] for info in features.feature_info.info]
    if len(strides) > 1 and len(set(strides)) == 1:
        return [f"block{i}" for i in range(len(strides))]
    first = int(math.log2(strides[0]))
    return [f"res{first + i}" for i in range(len(strides))]


def is_channels_last(features: nn.Module) -> bool:
    """Whether the network gives its features as (B, h, w, C)."""
    return getattr(features, "output_fmt", Format.NCHW) == Format.NHWC
