"""A table of rules: which rule applies, what becomes of a value, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from d2_pixcontrast.conversion.rules import (
    Rule,
    apply_rules,
    conv_norm_rules,
    norm_rules,
    pool_first_to_last,
)


def values(*names):
    return {name: torch.full((2,), float(i)) for i, name in enumerate(names)}


def test_the_first_rule_that_matches_the_whole_name_wins():
    rules = [
        Rule(r"stem\.(.+)", r"first.\1"),
        Rule(r"(.+)\.weight", r"second.\1"),
        Rule(r"stem\.conv", "never"),
    ]
    state = values("stem.conv", "stem.weight", "head.weight", "my.stem.conv", "head.weight.x")
    found = apply_rules(rules, state)
    assert found.origin == {
        "first.conv": "stem.conv",
        "first.weight": "stem.weight",
        "second.head": "head.weight",
    }
    assert all(found.state[ours] is state[theirs] for ours, theirs in found.origin.items())
    assert found.left == ["my.stem.conv", "head.weight.x"] and found.dropped == {}


def test_dropped_tensors_have_their_reason():
    rules = [Rule("queue(_ptr)?", None, "a memory"), Rule("a", "b")]
    found = apply_rules(rules, values("queue", "queue_ptr", "a", "queue_2"))
    assert found.dropped == {"queue": "a memory", "queue_ptr": "a memory"}
    assert found.left == ["queue_2"] and list(found.state) == ["b"]


def test_two_tensors_for_one_name_are_refused():
    rules = [Rule(r"(?:old|new)\.(.+)", r"ours.\1")]
    with pytest.raises(ValueError, match=r"^new\.w and old\.w both become ours\.w$"):
        apply_rules(rules, values("old.w", "new.w"))


def test_two_biases_for_one_norm_are_refused():
    rules = [Rule("m", "mean"), Rule("a|b", "mean", shift=True)]
    with pytest.raises(ValueError, match=r"^b and a both become mean$"):
        apply_rules(rules, values("m", "a", "b"))


def test_a_value_that_a_change_does_not_take_is_named():
    rules = [Rule("w", "ours", change=pool_first_to_last(branches=2))]
    with pytest.raises(ValueError, match=r"^w has the shape \(3,\): "):
        apply_rules(rules, {"w": torch.zeros(3)})


def test_the_file_is_not_changed():
    mean, bias = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    rules = [Rule("m", "mean"), Rule("b", "mean", shift=True)]
    for state in ({"m": mean, "b": bias}, {"b": bias, "m": mean}):  # in any order
        assert apply_rules(rules, state).state["mean"].tolist() == [-2.0, -3.0]
    assert mean.tolist() == [1.0, 2.0]


# ---------------------------------------------------------------- a bias before batch norm


@pytest.fixture
def biased():
    """(theirs, ours): convolution with bias and batch norm, and the same after the rules."""
    torch.manual_seed(0)
    theirs = nn.ModuleDict({"conv": nn.Conv2d(3, 5, 3), "norm": nn.BatchNorm2d(5)})
    with torch.no_grad():
        for tensor in (theirs.conv.bias, theirs.norm.weight, theirs.norm.bias):
            tensor.normal_()
        theirs.norm.running_mean.normal_()
        theirs.norm.running_var.uniform_(0.5, 2)
    rules = [
        Rule(r"conv\.weight", "conv.weight"),
        Rule(r"conv\.bias", "norm.running_mean", shift=True),
        *norm_rules("norm", "norm"),
    ]
    found = apply_rules(rules, theirs.state_dict())
    assert not found.left and len(found.origin) == 6
    conv, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)
    ours = nn.ModuleDict({"conv": conv, "norm": norm})
    ours.load_state_dict(found.state)
    return theirs, ours


def outputs(modules, x):
    return modules.norm(modules.conv(x))


@torch.no_grad()
def test_a_bias_before_batch_norm_goes_into_its_mean(biased):
    theirs, ours = (module.eval() for module in biased)
    x = torch.randn(2, 3, 7, 6)
    torch.testing.assert_close(outputs(ours, x), outputs(theirs, x))
    without = F.batch_norm(
        ours.conv(x), theirs.norm.running_mean, theirs.norm.running_var, *theirs.norm.parameters()
    )
    assert (without - outputs(theirs, x)).abs().max() > 0.1  # the bias is not nothing


def test_training_goes_on_alike_after_that(biased):
    theirs, ours = (copy.deepcopy(module).train() for module in biased)
    x = torch.randn(2, 3, 7, 6)
    for _ in range(2):
        torch.testing.assert_close(outputs(ours, x), outputs(theirs, x), atol=1e-5, rtol=1e-5)
    mean = theirs.norm.running_mean - theirs.conv.bias
    torch.testing.assert_close(ours.norm.running_mean, mean)
    torch.testing.assert_close(ours.norm.running_var, theirs.norm.running_var)
    for module in (theirs, ours):
        outputs(module, x).square().mul(torch.arange(5.0).view(5, 1, 1)).sum().backward()
    torch.testing.assert_close(ours.conv.weight.grad, theirs.conv.weight.grad, atol=1e-3, rtol=1e-3)


def test_a_bias_without_its_norm_is_refused():
    rules = [Rule(r"conv\.(weight)", r"ours.\1"), Rule(r"conv\.bias", "ours.mean", shift=True)]
    with pytest.raises(ValueError, match=r"conv\.bias is the bias before a norm ours\.mean"):
        apply_rules(rules, values("conv.weight", "conv.bias"))


# ---------------------------------------------------------------- rules for whole layers

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(
    "theirs, ours, example, expected",
    [
        ("bn", "norm", "bn", "norm"),
        (r"branch([0-3])\.bn", r"convs.\1.norm", "branch2.bn", "convs.2.norm"),
        (r"(a|b)\.([01])", r"\2.\1", "b.1", "1.b"),
        (r"(?:x\.)?bn", "norm", "x.bn", "norm"),
    ],
)
def test_norm_rules_count_the_groups_of_the_pattern(theirs, ours, example, expected):
    found = apply_rules(norm_rules(theirs, ours), values(*(f"{example}.{part}" for part in NORM)))
    assert found.origin == {f"{expected}.{part}": f"{example}.{part}" for part in NORM}
    assert apply_rules(norm_rules(theirs, ours), values(f"{example}.other")).left


def test_conv_norm_rules_hold_both():
    rules = conv_norm_rules(r"b(\d)\.conv", r"b(\d)\.(?:bn)", r"ours.\1")
    names = ["b3.conv.weight", *(f"b3.bn.{part}" for part in NORM)]
    found = apply_rules(rules, values(*names, "b3.conv.bias"))
    assert list(found.origin) == ["ours.3.weight", *(f"ours.3.norm.{part}" for part in NORM)]
    assert found.left == ["b3.conv.bias"]


@torch.no_grad()
def test_the_pooling_branch_moves_to_the_end():
    """A convolution on [pool, a, b, c] is the changed one on [a, b, c, pool]."""
    torch.manual_seed(0)
    weight = torch.randn(6, 4 * 3, 3, 3)
    pool, *others = (torch.randn(2, 3, 8, 9) for _ in range(4))
    expected = F.conv2d(torch.cat([pool, *others], dim=1), weight, padding=1)
    changed = pool_first_to_last(branches=4)(weight)
    found = F.conv2d(torch.cat([*others, pool], dim=1), changed, padding=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
