"""Optimiser and schedule from the config."""

import torch
from detectron2 import solver
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import LRMultiplier
from torch import nn

from .schedule import WarmupPolySchedule

_NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
# What timm calls a transformer's position embeddings, relative position biases and extra tokens.
_EMBEDDINGS = (
    "pos_embed",
    "absolute_pos_embed",
    "relative_position_bias_table",
    "cls_token",
    "dist_token",
    "reg_token",
)


def parameter_groups(cfg, model: nn.Module) -> list[dict]:
    """Trainable parameters by learning rate and weight decay.

    ``backbone.*`` learns at SOLVER.BACKBONE_LR_MULTIPLIER times the base rate, all else at
    SOLVER.HEAD_LR_MULTIPLIER times. Parameters of norm layers, biases and a transformer's
    embeddings can have weight decays of their own.
    """
    norm_decay, bias_decay = (
        cfg.SOLVER.WEIGHT_DECAY if decay is None else decay
        for decay in (cfg.SOLVER.WEIGHT_DECAY_NORM, cfg.SOLVER.WEIGHT_DECAY_BIAS)
    )
    groups: dict[tuple[float, float], list] = {}
    seen = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            in_backbone = f"{module_name}.".startswith("backbone.")
            head_lr, backbone_lr = cfg.SOLVER.HEAD_LR_MULTIPLIER, cfg.SOLVER.BACKBONE_LR_MULTIPLIER
            lr = cfg.SOLVER.BASE_LR * (backbone_lr if in_backbone else head_lr)
            if isinstance(module, _NORM_LAYERS):
                decay = norm_decay
            elif name == "bias":
                decay = bias_decay
            elif name in _EMBEDDINGS:
                decay = cfg.SOLVER.WEIGHT_DECAY_EMBED
            else:
                decay = cfg.SOLVER.WEIGHT_DECAY
            groups.setdefault((lr, decay), []).append(parameter)
    return [
        {"params": params, "lr": lr, "weight_decay": decay}
        for (lr, decay), params in groups.items()
    ]


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """SOLVER.OPTIMIZER over :func:`parameter_groups`, with SOLVER.CLIP_GRADIENTS.

    Raises:
        ValueError: unknown optimiser or way to clip gradients.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name == "SGD":
        kind = torch.optim.SGD
        options = {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV}
    elif name == "AdamW":
        kind, options = torch.optim.AdamW, {}
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is {name!r}; known are 'SGD' and 'AdamW'")
    groups = parameter_groups(cfg, model)
    try:
        kind = maybe_add_gradient_clipping(cfg, kind)
    except ValueError as error:
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE: {error}") from error
    return kind(groups, lr=cfg.SOLVER.BASE_LR, **options)


def build_lr_scheduler(cfg, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """ "WarmupPolyLR", or any of detectron2's own by SOLVER.LR_SCHEDULER_NAME.

    Raises:
        ValueError: detectron2 knows no such schedule, or not with these numbers.
    """
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupPolyLR":
        try:
            return solver.build_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise ValueError(
                f"SOLVER.LR_SCHEDULER_NAME {cfg.SOLVER.LR_SCHEDULER_NAME!r}: {error}"
            ) from error
    schedule = WarmupPolySchedule(
        cfg.SOLVER.POLY_LR_POWER,
        warmup_length=min(cfg.SOLVER.WARMUP_ITERS / cfg.SOLVER.MAX_ITER, 1.0),
        warmup_factor=cfg.SOLVER.WARMUP_FACTOR,
        warmup_method=cfg.SOLVER.WARMUP_METHOD,
        end=cfg.SOLVER.POLY_LR_END,
        constant_ending=cfg.SOLVER.POLY_LR_CONSTANT_ENDING,
    )
    return LRMultiplier(optimizer, schedule, max_iter=cfg.SOLVER.MAX_ITER)
