"""Which numbers a configuration can have: every key with one, and what it has to be.

Constructors check what they are given; they are also built without a config. This comes before
anything is read or built, names the key as the user wrote it, and knows detectron2's keys too.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from .compat import CfgNode


class Rule(NamedTuple):
    """What one number, or each of a list, has to be.

    Attributes:
        text: completes "it has to be ...".
        holds: whether a finite number is that.
        none: whether None is right, too.
    """

    text: str
    holds: Callable[[float], bool]
    none: bool = False


class ListRule(NamedTuple):
    """What a list of numbers has to be.

    Attributes:
        text: completes "it has to be ...".
        each: holds for each number.
        whole: whether the list as such is right, once each number is.
    """

    text: str
    each: Callable[[float], bool]
    whole: Callable[[list], bool] = lambda values: True


def _is_whole(value) -> bool:
    return value == int(value)


def _ascends(values: list) -> bool:
    return len(values) == 2 and values[0] <= values[1]


ABOVE_0 = Rule("above 0", lambda v: v > 0)
FROM_0 = Rule("0 or more", lambda v: v >= 0)
FROM_0_OR_NONE = Rule("None, or 0 or more", lambda v: v >= 0, none=True)
FROM_1 = Rule("1 or more", lambda v: v >= 1)
FRACTION = Rule("from 0 to 1", lambda v: 0 <= v <= 1)
SHARE = Rule("above 0 and at most 1", lambda v: 0 < v <= 1)
BELOW_1 = Rule("from 0 to below 1", lambda v: 0 <= v < 1)
PERCENT = Rule("above 0 and at most 100", lambda v: 0 < v <= 100)
ODD = Rule("1, 3, 5 or another odd number", lambda v: v >= 1 and v % 2 == 1)
SIZE = ListRule(
    "(height, width), each 1 or more", lambda v: v >= 1 and _is_whole(v), lambda vs: len(vs) == 2
)
SIZE_OR_NONE = ListRule(
    "empty or (height, width), each 1 or more",
    lambda v: v >= 1 and _is_whole(v),
    lambda vs: len(vs) in (0, 2),
)
FACTOR_RANGE = ListRule("(lowest, highest), both above 0", lambda v: v > 0, _ascends)
RANGE_FROM_0 = ListRule("(lowest, highest), both 0 or more", lambda v: v >= 0, _ascends)
WEIGHTS = ListRule("a list of numbers above 0", lambda v: v > 0)
SOME_WEIGHTS = ListRule("a list of numbers above 0, at least one", lambda v: v > 0, bool)
WEIGHT_PAIR = ListRule(
    "empty or two numbers that are 0 or more", lambda v: v >= 0, lambda vs: len(vs) in (0, 2)
)
COUNTS = ListRule(
    "a list of whole numbers from 1, at least one", lambda v: v >= 1 and _is_whole(v), bool
)
COLOR = ListRule("three numbers", lambda v: True, lambda vs: len(vs) == 3)
COLOR_SCALE = ListRule("three numbers above 0", lambda v: v > 0, lambda vs: len(vs) == 3)


def one_of(*values: int) -> Rule:
    """A number of a short list."""
    return Rule(f"one of {', '.join(map(str, values))}", lambda v: v in values)


_HEAD = "MODEL.SEM_SEG_HEAD."
_BANE = {"BANE.KEEP_PERCENT": PERCENT, "BANE.MAX_NEGATIVES": FROM_1}
_TERM = {
    "LOSS_WEIGHT": ABOVE_0,
    "PROJECTOR.DIM": FROM_1,
    "TEMPERATURE": ABOVE_0,
    "WARMUP": FRACTION,
}
_NODES = {
    "INPUT.": {
        "BASE_SHORT_EDGE": FROM_0,
        "SCALE_RANGE": FACTOR_RANGE,
        "ASPECT_RANGE": FACTOR_RANGE,
        "COLOR_JITTER.BRIGHTNESS": FROM_0,
        "COLOR_JITTER.CONTRAST": RANGE_FROM_0,
        "COLOR_JITTER.SATURATION": RANGE_FROM_0,
        "COLOR_JITTER.HUE": FROM_0,
        "COLOR_JITTER.PROB": FRACTION,
        "CROP.SINGLE_CATEGORY_MAX_AREA": SHARE,
        "MIN_SIZE_TEST": FROM_0,
        "FIXED_SIZE_TEST": SIZE_OR_NONE,
        "MAX_SIZE_TEST": FROM_0,
    },
    "DATALOADER.": {"NUM_WORKERS": FROM_0},
    "MODEL.": {
        "PIXEL_MEAN": COLOR,
        "PIXEL_STD": COLOR_SCALE,
        "TIMM.OUTPUT_STRIDE": one_of(8, 16, 32),
        "TIMM.IMAGE_SIZE": FROM_0,
        "TIMM.SIZE_DIVISIBILITY": FROM_0,
        "TIMM.DROP_PATH_RATE": BELOW_1,
    },
    _HEAD: {
        "NUM_CLASSES": FROM_1,
        "LOSS_WEIGHT": FROM_0,
        "CONVS_DIM": FROM_1,
        "ASPP_CHANNELS": FROM_1,
        "ASPP_PROJECT_KERNEL": ODD,
        "ASPP_DROPOUT": BELOW_1,
        "COMMON_STRIDE": FROM_1,
        "JOIN_STRIDE": one_of(0, 1, 2),
        "CLASS_WEIGHTS": WEIGHTS,
        "SCALARS_PERIOD": FROM_1,
        "FCN.CHANNELS": FROM_0,
        "FCN.KERNEL_SIZE": ODD,
        "FCN.DROPOUT": BELOW_1,
        "OCR.CHANNELS": FROM_1,
        "OCR.KEY_CHANNELS": FROM_1,
        "OCR.DROPOUT": BELOW_1,
        "OCR.REGION_KERNEL": ODD,
        "PSP.CHANNELS": FROM_1,
        "PSP.POOL_SCALES": COUNTS,
        "PSP.DROPOUT": BELOW_1,
        "UPER.CHANNELS": FROM_1,
        "UPER.POOL_SCALES": COUNTS,
        "UPER.DROPOUT": BELOW_1,
        "AUX.CHANNELS": FROM_1,
        "AUX.LOSS_WEIGHT": FROM_0,
    },
    "MODEL.PIXEL_CONTRAST.": {
        **_TERM,
        **_BANE,
        "BASE_TEMPERATURE": ABOVE_0,
        "MAX_SAMPLES": FROM_1,
        "MAX_VIEWS": FROM_1,
        "ANCHORS_PER_CLASS": FROM_1,
        "MEMORY.REGION_SIZE": FROM_0,
        "MEMORY.PIXEL_SIZE": FROM_0,
        "MEMORY.PIXELS_PER_GROUP": FROM_1,
        "MINING.NUM_POSITIVES": FROM_1,
        "MINING.NUM_NEGATIVES": FROM_1,
        "MINING.HARD_FRACTION": SHARE,
    },
    "MODEL.CONTEXTRAST.": {
        **_TERM,
        **_BANE,
        "LEVEL_WEIGHTS": WEIGHTS,
        "ANCHORS.LOW_WEIGHT": FRACTION,
        "MAX_POSITIVES": FROM_1,
    },
    "MODEL.MULTI_SCALE_CONTRAST.": {
        **_TERM,
        "SCALE_WEIGHTS": WEIGHTS,
        "CROSS_WEIGHT": ABOVE_0,
        "MAX_SAMPLES": FROM_1,
        "MAX_VIEWS": FROM_1,
        "MIN_PIXELS": FROM_1,
    },
    "MODEL.DATASET_MEMORY.": {
        "CHANNELS": FROM_1,
        "KEY_CHANNELS": FROM_1,
        "DROPOUT": BELOW_1,
        "ENTRIES_PER_CLASS": FROM_1,
        "MOMENTUM": SHARE,
        "STAGE1_LOSS_WEIGHT": ABOVE_0,
        "CONTEXT_LOSS_WEIGHT": FROM_0,
        "CONSISTENCY.LOSS_WEIGHT": FROM_0,
        "CONSISTENCY.START": FRACTION,
        "SECOND_PASS": WEIGHT_PAIR,
    },
    "SOLVER.": {
        "IMS_PER_BATCH": FROM_1,
        "MAX_ITER": FROM_1,
        "BASE_LR": FROM_0,
        "MOMENTUM": BELOW_1,
        "WEIGHT_DECAY": FROM_0,
        "WARMUP_ITERS": FROM_0,
        "WARMUP_FACTOR": FRACTION,
        "CHECKPOINT_PERIOD": FROM_1,
        "CLIP_GRADIENTS.CLIP_VALUE": ABOVE_0,
        "POLY_LR_POWER": FROM_0,
        "POLY_LR_END": FRACTION,
        "POLY_LR_CONSTANT_ENDING": FRACTION,
        "HEAD_LR_MULTIPLIER": FROM_0,
        "BACKBONE_LR_MULTIPLIER": FROM_0,
        "WEIGHT_DECAY_NORM": FROM_0_OR_NONE,
        "WEIGHT_DECAY_BIAS": FROM_0_OR_NONE,
        "WEIGHT_DECAY_EMBED": FROM_0,
        "CHECKPOINTS_TO_KEEP": FROM_0,
        "MAX_SKIPPED_STEPS": FROM_0,
        "LOSS_SPIKE_FACTOR": FROM_0,
    },
    "TEST.": {
        "EVAL_PERIOD": FROM_0,
        "AUG.SCALES": SOME_WEIGHTS,
        "SLIDING.SIZE": SIZE,
        "SLIDING.STRIDE": SIZE,
        "BOUNDARY_IOU.WIDTH": ABOVE_0,
    },
}
#: {key: its rule}, of all keys of this project that are numbers, and of detectron2's that matter.
RULES = {prefix + key: rule for prefix, node in _NODES.items() for key, rule in node.items()}


def check_numbers(cfg: CfgNode) -> None:
    """
    Args:
        cfg: with this project's keys.

    Raises:
        ValueError: a number is impossible; the message has its key, its value and what it can be.
    """
    rules = dict(RULES)
    if cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE == "absolute":
        rules["INPUT.CROP.SIZE"] = SIZE  # otherwise detectron2's default, shares of the image
    for key, rule in rules.items():
        value = look_up(cfg, key)
        if not _fulfils(value, rule):
            raise ValueError(f"{key} is {value}; it has to be {rule.text}")
    sliding = cfg.TEST.SLIDING
    if any(step > side for step, side in zip(sliding.STRIDE, sliding.SIZE)):
        raise ValueError(
            f"TEST.SLIDING.STRIDE is {sliding.STRIDE}; beyond TEST.SLIDING.SIZE {sliding.SIZE} "
            "windows would leave gaps"
        )


def look_up(cfg: CfgNode, key: str):
    """The value of a dotted key, as it is written on a command line."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _fulfils(value, rule: Rule | ListRule) -> bool:
    if isinstance(rule, Rule):
        return rule.none if value is None else _is_number(value) and rule.holds(value)
    if not isinstance(value, (list, tuple)):
        return False
    return all(_is_number(v) and rule.each(v) for v in value) and rule.whole(list(value))


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
