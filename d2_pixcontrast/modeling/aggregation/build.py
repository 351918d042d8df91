"""The data-set memory's module from the config."""

from detectron2.layers import ShapeSpec
from torch import nn

from ...contrast import ClassMemory, DatasetMemory, StatisticsMemory
from ...contrast.dataset_memory import STRATEGIES
from ..decoder.base import select_features
from .dataset_memory import DatasetMemoryAggregation
from .options import NODE, NetworkOptions, TrainingOptions
from .pixels import JoinedFeatures, PixelRepresentations, finest_first

KINDS = ("features", "statistics")


def build_joined_features(cfg, input_shape: dict[str, ShapeSpec]) -> JoinedFeatures | None:
    """What stands between encoder and decoder by MODEL.SEM_SEG_HEAD.JOIN_STRIDE; None with 0."""
    head = cfg.MODEL.SEM_SEG_HEAD
    if not head.JOIN_STRIDE:
        return None
    shapes = select_features(input_shape, list(head.IN_FEATURES))
    return JoinedFeatures(
        shapes, stride=head.JOIN_STRIDE, norm=head.NORM, align_corners=head.ALIGN_CORNERS
    )


def without_dropout(cfg):
    """A copy of a config whose decoders have no dropout of their own.

    What they give is stored in the memory, or attended to, and has to be whole there.
    MODEL.DATASET_MEMORY.DROPOUT stands before the classifiers instead.
    """
    cfg = cfg.clone()
    cfg.defrost()
    head = cfg.MODEL.SEM_SEG_HEAD
    head.ASPP_DROPOUT = 0.0
    for decoder in (head.FCN, head.OCR, head.PSP, head.UPER):
        decoder.DROPOUT = 0.0
    return cfg


def build_aggregation(
    cfg, input_shape: dict[str, ShapeSpec], decoder: nn.Module
) -> DatasetMemoryAggregation | None:
    """The module of MODEL.DATASET_MEMORY; None where it is not enabled.

    Args:
        cfg: of the model.
        input_shape: of the features that the decoder reads.
        decoder: gives the context within the image. One with an attribute ``gives_context`` that is
            False gives the pixel representations themselves.

    Raises:
        ValueError: an option that is unknown, out of its range, or does not fit the others.
    """
    node, head = cfg.MODEL.DATASET_MEMORY, cfg.MODEL.SEM_SEG_HEAD
    if not node.ENABLED:
        return None
    with_context = getattr(decoder, "gives_context", True)
    network = NetworkOptions(
        channels=node.CHANNELS,
        key_channels=node.KEY_CHANNELS,
        norm=head.NORM,
        dropout=node.DROPOUT,
        fusion=node.CONTEXT_FUSION,
        context_head=with_context and node.CONTEXT_LOSS_WEIGHT > 0,
        read=node.READ,
        align_corners=head.ALIGN_CORNERS,
        second_pass=tuple(node.SECOND_PASS),
    )
    training = TrainingOptions(
        momentum=node.MOMENTUM,
        schedule=node.MOMENTUM_SCHEDULE,
        stage1_weight=node.STAGE1_LOSS_WEIGHT,
        context_weight=node.CONTEXT_LOSS_WEIGHT,
        consistency_weight=node.CONSISTENCY.LOSS_WEIGHT,
        consistency_start=node.CONSISTENCY.START,
    )
    memory = _build_memory(node, head.NUM_CLASSES)
    pixels = _build_pixels(cfg, input_shape) if with_context else None
    if not with_context and node.IN_FEATURES:
        raise ValueError(
            f"{NODE}.IN_FEATURES is {list(node.IN_FEATURES)}, but the memory stores the output of "
            f"{type(decoder).__name__} itself; leave it empty"
        )
    return DatasetMemoryAggregation(
        memory=memory,
        pixels=pixels,
        pixel_stride=pixels.stride if with_context else decoder.out_stride,
        context_channels=decoder.out_channels,
        context_stride=decoder.out_stride,
        num_classes=head.NUM_CLASSES,
        network=network,
        training=training,
    )


def _build_memory(node, num_classes: int) -> ClassMemory:
    _check_choice("KIND", node.KIND, KINDS)
    _check_choice("STRATEGY", node.STRATEGY, STRATEGIES)
    try:
        if node.KIND == "features":
            return DatasetMemory(
                num_classes,
                node.CHANNELS,
                entries_per_class=node.ENTRIES_PER_CLASS,
                strategy=node.STRATEGY,
                update_at=node.UPDATE_AT,
            )
        if node.ENTRIES_PER_CLASS != 1:
            raise ValueError(
                f"ENTRIES_PER_CLASS is {node.ENTRIES_PER_CLASS}; KIND 'statistics' has one"
            )
        return StatisticsMemory(num_classes, node.CHANNELS, update_at=node.UPDATE_AT)
    except ValueError as error:
        raise ValueError(f"{NODE}: {error}") from error


def _build_pixels(cfg, input_shape: dict[str, ShapeSpec]) -> PixelRepresentations:
    node = cfg.MODEL.DATASET_MEMORY
    names = list(node.IN_FEATURES) or finest_first(input_shape)[-1:]
    missing = [name for name in names if name not in input_shape]
    if missing:
        raise ValueError(f"{NODE}.IN_FEATURES is {names}; the decoder reads {sorted(input_shape)}")
    return PixelRepresentations(
        {name: input_shape[name] for name in names},
        channels=node.CHANNELS,
        norm=cfg.MODEL.SEM_SEG_HEAD.NORM,
        align_corners=cfg.MODEL.SEM_SEG_HEAD.ALIGN_CORNERS,
    )


def _check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{NODE}.{key} is {value!r}; known are {list(known)}")
