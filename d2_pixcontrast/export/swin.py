"""Swin transformers in a form that torch.export can trace for images of any size.

timm cuts padded features into windows by views. For sizes that are not known torch.export has to
prove at each of them that quotients of rounded quotients divide each other, which takes longer from
block to block, and did not end within minutes for four of the twelve of the smallest Swin. Taken by
indices, the same windows have nothing to be proven.
"""

import contextlib
from collections.abc import Iterator

import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import nn

_MASKED = -100.0  # timm's, added to scores across the image's border


def largest_window(network: nn.Module) -> int:
    """Side of the largest attention window of the Swin blocks in ``network``; 0 without any."""
    blocks = (module for module in network.modules() if isinstance(module, SwinTransformerBlock))
    return max((side for block in blocks for side in block.window_size), default=0)


@contextlib.contextmanager
def windows_by_index() -> Iterator[None]:
    """Let Swin blocks and patch merging of single images compute the same, to the bit, without
    views of windows. Features have to be larger than a window, or sizes of 1 are taken for fixed.
    """
    attention, merging = SwinTransformerBlock._attn, PatchMerging.forward
    SwinTransformerBlock._attn, PatchMerging.forward = _block_attention, _merge
    try:
        yield
    finally:
        SwinTransformerBlock._attn, PatchMerging.forward = attention, merging


def _windows(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, C) in windows of (h, w), with zeros beyond its end: (B, H/h, h, W/w, w, C)."""
    rows, inside_rows = _window_index(x.shape[1], size[0])
    columns, inside_columns = _window_index(x.shape[2], size[1])
    x = x[:, rows] * inside_rows[:, :, None, None].to(x.dtype)
    return x[:, :, :, columns] * inside_columns[:, :, None].to(x.dtype)


def _window_index(side: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, length) places of each window's elements, and whether there is one."""
    index = _places((side + length - 1) // length, length)
    return index.clamp(max=side - 1), index < side


def _places(count: int, length: int) -> torch.Tensor:
    return torch.arange(count)[:, None] * length + torch.arange(length)


def _block_attention(self: SwinTransformerBlock, x: torch.Tensor) -> torch.Tensor:
    """``SwinTransformerBlock._attn`` for (1, H, W, C)."""
    _, height, width, _ = x.shape
    (window_height, window_width), (shift_y, shift_x) = self.window_size, self.shift_size
    shifted = any(self.shift_size)
    if shifted:
        x = x.index_select(1, _rolled(height, shift_y)).index_select(2, _rolled(width, shift_x))
    windows = _windows(x, self.window_size)
    count = windows.shape[0], windows.shape[1], windows.shape[3]
    tokens = windows.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(0, 2)
    mask = None
    if shifted:
        rows = _regions(count[1], window_height, shift_y)
        columns = _regions(count[2], window_width, shift_x)
        regions = rows[:, None, :, None] * 3 + columns[None, :, None, :]
        regions = regions.flatten(2).flatten(0, 1)
        mask = (regions[:, None] != regions[:, :, None]).to(x.dtype) * _MASKED
    tokens = _window_attention(self.attn, tokens, mask)
    windows = tokens.unflatten(1, self.window_size).unflatten(0, count)
    windows = windows.permute(0, 1, 3, 2, 4, 5)
    rows, columns = torch.arange(height), torch.arange(width)
    if shifted:
        rows, columns = _rolled(height, -shift_y), _rolled(width, -shift_x)
    x = windows[:, rows // window_height, rows % window_height]
    return x[:, :, columns // window_width, columns % window_width]


def _rolled(side: int, shift: int) -> torch.Tensor:
    """(side,) places from ``shift`` on, once around. ONNX has no remainder of an unknown size."""
    places = torch.arange(side) + shift
    if shift < 0:
        return torch.where(places < 0, places + side, places)
    return torch.where(places >= side, places - side, places)


def _regions(count: int, length: int, shift: int) -> torch.Tensor:
    """(count, length): which places of shifted windows were neighbours before they were shifted."""
    places, end = _places(count, length), count * length
    return (places >= end - length).long() + (places >= end - shift)


def _window_attention(self: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """``WindowAttention.forward`` for (windows, N, C) and a (windows, N, N) mask."""
    qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    scores = (query * self.scale) @ key.transpose(-2, -1) + self._get_rel_pos_bias()
    if mask is not None:
        scores = scores + mask[:, None]
    return self.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


def _merge(self: PatchMerging, x: torch.Tensor) -> torch.Tensor:
    """``PatchMerging.forward``: the four pixels of each 2x2, column by column."""
    pixels = _windows(x, (2, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
    return self.reduction(self.norm(pixels))
