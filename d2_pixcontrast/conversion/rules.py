"""From the tensors of another code base to ours: a table of rules, each tensor by one of them."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rule:
    """What becomes of the tensors whose name matches.

    Attributes:
        pattern: regular expression of the whole name.
        target: our name, with the pattern's groups as in ``re.sub``; None = the tensor is dropped.
        why: reason for dropping it, for the report.
        change: its value here from that there; None = the same.
        shift: the tensor is a convolution's bias before batch norm, which has none here: the norm
            subtracts it again, so that it comes off ``target``, the norm's running mean.
    """

    pattern: str
    target: str | None
    why: str = ""
    change: Callable[[torch.Tensor], torch.Tensor] | None = None
    shift: bool = False


@dataclass(frozen=True)
class Mapping:
    """A state dict after the rules.

    Attributes:
        state: tensors by our names.
        origin: our name to theirs.
        dropped: their name to the reason.
        left: their names that no rule matches.
    """

    state: dict[str, torch.Tensor]
    origin: dict[str, str]
    dropped: dict[str, str]
    left: list[str]


def apply_rules(rules: Iterable[Rule], state: dict[str, torch.Tensor]) -> Mapping:
    """Each tensor by the first rule that matches its name.

    Args:
        rules: in the order of their precedence.
        state: tensors by their names.

    Raises:
        ValueError: two tensors have one name here, a bias has no norm, or a tensor has not the
            shape that a rule takes.
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    mapping = Mapping({}, {}, {}, [])
    shifts: dict[str, str] = {}
    for name, value in state.items():
        match, rule = next(
            ((m, r) for p, r in compiled if (m := p.fullmatch(name)) is not None), (None, None)
        )
        if rule is None:
            mapping.left.append(name)
        elif rule.target is None:
            mapping.dropped[name] = rule.why
        else:
            target = match.expand(rule.target)
            taken = shifts if rule.shift else mapping.origin
            if target in taken:
                raise ValueError(f"{name} and {taken[target]} both become {target}")
            taken[target] = name
            if not rule.shift:
                mapping.state[target] = _changed(rule, name, value)
    for target, name in shifts.items():
        if target not in mapping.state:
            raise ValueError(f"{name} is the bias before a norm {target} that is not there")
        mapping.state[target] = mapping.state[target] - state[name]
    return mapping


def _changed(rule: Rule, name: str, value: torch.Tensor) -> torch.Tensor:
    if rule.change is None:
        return value
    try:
        return rule.change(value)
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(f"{name} has the shape {tuple(value.shape)}: {error}") from error


def norm_rules(theirs: str, ours: str) -> list[Rule]:
    """A norm layer's weight, bias and statistics. Both arguments as in :class:`Rule`."""
    return [Rule(rf"{theirs}\.(weight|bias|running_mean|running_var|num_batches_tracked)",
                 rf"{ours}.\g<{re.compile(theirs).groups + 1}>")]  # fmt: skip


def conv_norm_rules(theirs_conv: str, theirs_norm: str, ours: str) -> list[Rule]:
    """A convolution and its norm to detectron2's Conv2d, which holds both."""
    return [
        Rule(rf"{theirs_conv}\.weight", f"{ours}.weight"),
        *norm_rules(theirs_norm, f"{ours}.norm"),
    ]


def backbone_rules(theirs: str, ours: str) -> list[Rule]:
    """A ResNetV1c, ResNeSt or HRNet of the mmcv family to timm's, which has the same names but for
    the deep stem: three convolutions, of which timm has two in a sequence and the last norm apart.

    Args:
        theirs: prefix of its names, with a dot.
        ours: prefix of timm's, with a dot.
    """
    theirs = re.escape(theirs)
    return [
        Rule(theirs + r"stem\.([01346])\.(.+)", ours + r"conv1.\1.\2"),
        *norm_rules(theirs + r"stem\.7", ours + "bn1"),
        Rule(theirs + "(.+)", ours + r"\1"),
    ]


def pool_first_to_last(branches: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Input channels of what follows an ASPP whose pooling branch stands first; ours is the last.

    Args:
        branches: of the ASPP.
    """

    def change(weight: torch.Tensor) -> torch.Tensor:
        first, *others = weight.chunk(branches, dim=1)
        return torch.cat([*others, first], dim=1)

    return change
