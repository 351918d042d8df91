"""What is known about another code base."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..compat import CfgNode
from .rules import Rule


@dataclass(frozen=True)
class Source:
    """A code base whose checkpoints can be converted.

    Attributes:
        name: for the command line.
        rules: of a config of ours that describes the same network.
        settings: keys of that config whose value decides what the network computes, and the values
            that it was trained with; a function of the config, since networks differ.
    """

    name: str
    rules: Callable[[CfgNode], list[Rule]]
    settings: Callable[[CfgNode], dict[str, object]] = field(default=lambda cfg: {})
