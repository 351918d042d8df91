"""Label maps on the grid of a feature map."""

import torch


def nearest_resize(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, H, W) integer maps to (B, h, w) by nearest neighbour, without a detour over floats.

    Target row i takes source row floor(i * H / h), as ``interpolate(mode="nearest")`` does. Where H
    is h times the stride, it is the pixel on which a strided convolution centres its i-th output.
    """
    height, width = labels.shape[-2:]
    if (height, width) == tuple(size):
        return labels
    rows = torch.arange(size[0], device=labels.device) * height // size[0]
    columns = torch.arange(size[1], device=labels.device) * width // size[1]
    return labels[:, rows[:, None], columns[None, :]]
