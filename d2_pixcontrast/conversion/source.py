"""What is known about another code base."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..compat import CfgNode
from .rules import Rule

# Keys of pixel statistics, as torchvision and mmcv have them for RGB.
IMAGENET_STATISTICS = {
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """A code base whose checkpoints can be converted.

    Attributes:
        name: for the command line.
        rules: what becomes of each tensor, for a config of ours that describes the same network.
        settings: keys of that config whose value decides what the network computes, and the values
            that it was trained with.
        complete: tensors of ours that follow from the mapped ones; they are added.
    """

    name: str
    rules: Callable[[CfgNode], list[Rule]]
    settings: Callable[[CfgNode], dict[str, object]]
    complete: Callable[[State], State] = lambda state: {}
