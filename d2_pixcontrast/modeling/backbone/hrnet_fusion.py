"""How HRNet's branches meet: Wang et al., "Deep High-Resolution Representation Learning for Visual
Recognition", TPAMI 2020, section 3.2.

The published networks differ in one thing alone, how a coarse branch is brought to a finer one's
grid. ImageNet classifiers, and timm, take the nearest pixel; the segmentation networks of HRNet's
authors interpolate with aligned corners; mmsegmentation interpolates without, by a power of two
first and then, where the sizes are no multiples of it, to the finer branch's size.
"""

from collections.abc import Callable

import torch
from timm.models.hrnet import HighResolutionModule
from torch import nn
from torch.nn import functional as F


def _nearest(x: torch.Tensor, size: torch.Size, factor: int) -> torch.Tensor:
    return F.interpolate(x, size, mode="nearest")


def _bilinear(x: torch.Tensor, size: torch.Size, factor: int) -> torch.Tensor:
    scaled = [side * factor for side in x.shape[-2:]]
    x = F.interpolate(x, scaled, mode="bilinear", align_corners=False)
    # Nothing changes where that is the size; a condition would tie an exported graph to some sizes.
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _bilinear_aligned(x: torch.Tensor, size: torch.Size, factor: int) -> torch.Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


# (B, C, h, w), the size wanted, and the ratio of the strides to (B, C, *size).
FUSIONS: dict[str, Callable[[torch.Tensor, torch.Size, int], torch.Tensor]] = {
    "nearest": _nearest,
    "bilinear": _bilinear,
    "bilinear_aligned": _bilinear_aligned,
}


class BranchFusion(nn.Module):
    """timm's ``HighResolutionModule`` with any :data:`FUSIONS`, for images of any size.

    The parameters keep their names.
    """

    def __init__(self, module: HighResolutionModule, fusion: str):
        """
        Args:
            module: whose layers are taken over; it is not to be used any more.
            fusion: one of :data:`FUSIONS`.
        """
        super().__init__()
        self.branches = module.branches
        self.fuse_layers = module.fuse_layers
        self.fuse_act = module.fuse_act
        self.resize = FUSIONS[fusion]
        for i, j, layers in self._upward():
            # Convolution and norm; the third, timm's Upsample by a factor, is done by size here.
            self.fuse_layers[i][j] = layers[:2]

    def _upward(self):
        """(target, source, layers) where a coarser branch joins a finer one."""
        for i, row in enumerate(self.fuse_layers):
            for j in range(i + 1, len(row)):
                yield i, j, row[j]

    def forward(self, x: list[torch.Tensor]) -> list[torch.Tensor]:
        """(B, C_i, h_i, w_i) of each branch to the same of the fused ones."""
        x = [branch(feature) for branch, feature in zip(self.branches, x, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse_layers):
            total = None
            for j, layers in enumerate(row):
                part = layers(x[j])
                if j > i:
                    part = self.resize(part, x[i].shape[-2:], 2 ** (j - i))
                total = part if total is None else total + part
            fused.append(self.fuse_act(total))
        return fused


def fuse_branches(body: nn.Module, fusion: str) -> None:
    """Replace timm's modules of several branches in ``body``, in place.

    Raises:
        ValueError: unknown ``fusion``, or one that is not timm's for a network without branches.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"MODEL.TIMM.HRNET_FUSION is {fusion!r}; known are {list(FUSIONS)}")
    places = [
        (parent, name, child)
        for parent in body.modules()
        for name, child in parent.named_children()
        if isinstance(child, HighResolutionModule) and child.num_branches > 1
    ]
    if not places and fusion != "nearest":
        raise ValueError(
            f"MODEL.TIMM.HRNET_FUSION is {fusion!r}, but MODEL.TIMM.NAME is no HRNet; leave it at "
            "'nearest'"
        )
    for parent, name, child in places:
        setattr(parent, name, BranchFusion(child, fusion))
