"""Published backbones that differ from timm's in a detail, by names for MODEL.TIMM.VARIANTS.

The parameters and their names are timm's. Each entry changes a network in place and raises
AttributeError, TypeError or KeyError where it has not the part in question.
"""

from collections.abc import Callable

import torch
from timm.models.hrnet import HighResolutionNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F


def _ceil_pool(body: nn.Module) -> None:
    """ResNet: the stem's max pooling keeps the last row and column of a map of even size."""
    _require(body.maxpool, nn.MaxPool2d).ceil_mode = True


def _first_relu_off(body: nn.Module) -> None:
    """HRNet: no ReLU between the two convolutions of the stem."""
    _require(body, HighResolutionNet)
    body.act1 = nn.Identity()


def _plain_dilated_shortcuts(body: nn.Module) -> None:
    """ResNeSt: a shortcut pools only where it halves the map, not where dilation replaces that."""
    for stage in (body.layer3, body.layer4):
        shortcut = stage[0].downsample
        if _require(shortcut[0], nn.AvgPool2d).stride in (1, (1, 1)):
            shortcut[0] = nn.Identity()


def _bilinear_positions(body: nn.Module) -> None:
    """Vision transformer: position embeddings are brought to another grid bilinearly, in their own
    precision; timm's way is bicubic with antialiasing, in float32."""
    model = _require(body.model, VisionTransformer)
    # Only where timm takes the embeddings from: the rest of its method stays.
    model.__class__ = type("BilinearVisionTransformer", (_BilinearPositions, type(model)), {})


class _BilinearPositions:
    """Before timm's class in the order of methods."""

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        position = self.pos_embed
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        tokens, grid = position[:, :prefix], position[:, prefix:]
        old = self.patch_embed.grid_size
        grid = grid.transpose(1, 2).unflatten(2, old)
        if (height, width) != tuple(old):
            grid = F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)
        x = x.flatten(1, 2) + grid.flatten(2).transpose(1, 2)
        first = [t for t in (self.cls_token, self.reg_token) if t is not None]
        if first:
            first = torch.cat(first, 1).expand(len(x), -1, -1)
            x = torch.cat([first + tokens if prefix else first, x], dim=1)
        return self.pos_drop(x)


VARIANTS: dict[str, Callable[[nn.Module], None]] = {
    "ceil_pool": _ceil_pool,
    "first_relu_off": _first_relu_off,
    "plain_dilated_shortcuts": _plain_dilated_shortcuts,
    "bilinear_positions": _bilinear_positions,
}


def change(body: nn.Module, names: list[str], model_name: str) -> None:
    """Change a timm feature extractor in place.

    Args:
        body: the network.
        names: of :data:`VARIANTS`.
        model_name: for the message.

    Raises:
        ValueError: an unknown name, or one of another kind of network.
    """
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"MODEL.TIMM.VARIANTS has {name!r}; known are {list(VARIANTS)}")
        try:
            VARIANTS[name](body)
        except (AttributeError, TypeError, KeyError, IndexError) as error:
            raise ValueError(
                f"MODEL.TIMM.VARIANTS has {name!r}, which MODEL.TIMM.NAME {model_name} has no part "
                f"for ({error})"
            ) from error


def _require(module: nn.Module, kind: type) -> nn.Module:
    if not isinstance(module, kind):
        raise TypeError(f"{kind.__name__} expected, found {type(module).__name__}")
    return module
