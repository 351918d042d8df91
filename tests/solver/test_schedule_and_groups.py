import math

import pytest
import torch
from detectron2.layers import get_norm
from torch import nn

from d2_pixcontrast.modeling import TimmBackbone
from d2_pixcontrast.solver import WarmupPolySchedule, build_lr_scheduler, build_optimizer


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), get_norm("BN", 4))
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
        self.tied = self.head[0]  # seen twice, learnt once


def group_of(optimizer, parameter):
    (group,) = [g for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
    return group["lr"], group["weight_decay"]


@pytest.mark.parametrize("name, kind", [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_parameter_groups(small_cfg, name, kind):
    small_cfg.SOLVER.merge_from_list(
        ["OPTIMIZER", name, "BASE_LR", 0.1, "HEAD_LR_MULTIPLIER", 10.0, "WEIGHT_DECAY", 0.3]
        + ["WEIGHT_DECAY_NORM", 0.1, "WEIGHT_DECAY_BIAS", 0.2]
    )
    model = TwoParts()
    optimizer = build_optimizer(small_cfg, model)
    assert isinstance(optimizer, kind)
    assert group_of(optimizer, model.backbone[0].weight) == (0.1, 0.3)
    assert group_of(optimizer, model.backbone[0].bias) == (0.1, 0.2)
    assert group_of(optimizer, model.backbone[1].weight) == (0.1, 0.1)
    assert group_of(optimizer, model.head[0].weight) == (1.0, 0.3)
    assert group_of(optimizer, model.head[0].bias) == (1.0, 0.2)
    assert group_of(optimizer, model.head[1].weight) == (1.0, 0.1)
    grouped = sum(len(g["params"]) for g in optimizer.param_groups)
    assert grouped == len(list(model.parameters()))


def test_norms_and_biases_decay_like_the_rest(small_cfg):
    """As in the published codes, whose optimisers get all parameters alike."""
    small_cfg.SOLVER.WEIGHT_DECAY = 0.3
    groups = build_optimizer(small_cfg, TwoParts()).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3]


def test_backbone_and_head_learn_at_rates_of_their_own(small_cfg):
    """As published for ViT-L: the backbone at a tenth of the rate that the rest has."""
    small_cfg.SOLVER.BASE_LR, small_cfg.SOLVER.BACKBONE_LR_MULTIPLIER = 0.01, 0.1
    model = TwoParts()
    optimizer = build_optimizer(small_cfg, model)
    assert group_of(optimizer, model.backbone[0].weight)[0] == pytest.approx(0.001)
    assert group_of(optimizer, model.head[0].weight)[0] == 0.01


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_vit"])
def test_embeddings_norms_and_biases_of_transformers_do_not_decay(small_cfg, name):
    """Swin's published recipe: only the weights of linear maps and convolutions decay."""
    small_cfg.SOLVER.merge_from_list(["OPTIMIZER", "AdamW", "WEIGHT_DECAY", 0.01])
    small_cfg.SOLVER.merge_from_list(["WEIGHT_DECAY_NORM", 0.0, "WEIGHT_DECAY_BIAS", 0.0])
    model = nn.Module()
    with torch.device("meta"):
        model.backbone = TimmBackbone(name, out_norm="LN")
    decays = {
        parameter: group["weight_decay"]
        for group in build_optimizer(small_cfg, model).param_groups
        for parameter in group["params"]
    }
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert {k for k, decay in decays.items() if decay} == set(linear)
    assert set(decays.values()) == {0.0, 0.01}
    small_cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.5
    groups = build_optimizer(small_cfg, model).param_groups
    (embeddings,) = [g["params"] for g in groups if g["weight_decay"] == 0.5]
    assert len(embeddings) == (12 if name.startswith("swin") else 2)  # tables; positions and token


def test_swins_schedule(small_cfg):
    """Power 1 after 1500 iterations of linear warm-up from a millionth."""
    small_cfg.SOLVER.merge_from_list(
        ["POLY_LR_POWER", 1.0, "WARMUP_ITERS", 1500, "WARMUP_FACTOR", 1e-6, "MAX_ITER", 80000]
    )
    optimizer = build_optimizer(small_cfg, TwoParts())
    schedule = build_lr_scheduler(small_cfg, optimizer)._multiplier
    assert schedule(0.0) == pytest.approx(1e-6)
    for iteration in (1, 750, 1499, 1500, 40000):
        warm = min(1e-6 + (1 - 1e-6) * iteration / 1500, 1.0)
        assert schedule(iteration / 80000) == pytest.approx((1 - iteration / 80000) * warm)


def test_unknown_optimizer(small_cfg):
    small_cfg.SOLVER.OPTIMIZER = "LARS"
    with pytest.raises(ValueError, match=r"SOLVER.OPTIMIZER is 'LARS'; known are 'SGD'"):
        build_optimizer(small_cfg, TwoParts())


def test_poly_with_linear_warmup_and_floor():
    schedule = WarmupPolySchedule(0.9, warmup_length=0.1, warmup_factor=0.01, constant_ending=0.05)
    for where in (0.0, 0.03, 0.0999, 0.1, 0.5, 0.99, 1.0):
        poly = max((1 - where) ** 0.9, 0.05)
        warm = 0.01 + 0.99 * where / 0.1 if where < 0.1 else 1.0
        assert schedule(where) == pytest.approx(poly * warm)


def test_poly_falls_to_its_end():
    """mmengine's polynomial decay to eta_min, and sssegmentation's to min_lr."""
    schedule = WarmupPolySchedule(0.9, end=0.1)
    for where in (0.0, 0.5, 0.9, 1.0):
        assert schedule(where) == pytest.approx((1 - where) ** 0.9 * (1 - 0.1) + 0.1)


def test_schedule_is_clamped_where_a_resumed_run_lies_outside():
    schedule = WarmupPolySchedule(0.9)
    assert schedule(1.5) == 0.0 and schedule(-0.1) == 1.0
    assert not isinstance(schedule(1.5), complex)


def test_training_follows_the_schedule_and_survives_a_new_max_iter(small_cfg):
    def rates(max_iter, start_state=None, steps=10):
        small_cfg.SOLVER.MAX_ITER = max_iter
        optimizer = build_optimizer(small_cfg, TwoParts())
        scheduler = build_lr_scheduler(small_cfg, optimizer)
        if start_state:
            scheduler.load_state_dict(start_state)
        seen = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            seen.append(optimizer.param_groups[0]["lr"])
        return seen, scheduler.state_dict()

    seen, state = rates(20)
    base = small_cfg.SOLVER.BASE_LR
    assert seen[-1] == pytest.approx(base * 0.5**0.9)
    longer, _ = rates(40, state)
    assert longer[-1] == pytest.approx(base * 0.5**0.9)
    shorter, _ = rates(15, state)
    assert shorter[-1] == 0.0 and not any(math.isnan(lr) for lr in shorter)


def test_unknown_warmup_method(small_cfg):
    small_cfg.SOLVER.WARMUP_METHOD = "burnin"
    with pytest.raises(ValueError, match="burnin"):
        build_lr_scheduler(small_cfg, build_optimizer(small_cfg, TwoParts()))


def test_gradients_are_clipped(small_cfg):
    small_cfg.SOLVER.merge_from_list(
        ["CLIP_GRADIENTS.ENABLED", True, "CLIP_GRADIENTS.CLIP_TYPE", "value", "BASE_LR", 1.0]
        + ["CLIP_GRADIENTS.CLIP_VALUE", 0.25, "MOMENTUM", 0.0, "WEIGHT_DECAY", 0.0]
    )
    model = TwoParts()
    weight = model.backbone[0].weight
    before = weight.detach().clone()
    optimizer = build_optimizer(small_cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    torch.testing.assert_close(before - weight, torch.full_like(weight, 0.25))
