"""Random numbers that are a function of where they are used, not of what was drawn before."""

import torch

_MASK = 0xFFFFFFFF


def _mix(x: torch.Tensor | int) -> torch.Tensor | int:
    """A 32-bit finaliser (two xor-shift-multiply rounds), in the low half of an integer."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _MASK
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _MASK
    return x ^ (x >> 15)


def random_keys(
    seed: int, iteration: int, images: torch.Tensor, count: int, stream: int = 0
) -> torch.Tensor:
    """Uniform 32-bit keys for ``count`` items of each image.

    The keys of an image depend on (seed, iteration, its index, stream) alone: the same image gets
    the same draw on any rank, any device and after a resume. Sorting items by their keys is a
    random permutation of them.

    Args:
        seed: any integer.
        iteration: training iteration.
        images: (B,) int64, indices of the images in the global batch.
        count: items per image.
        stream: separates draws for different purposes within an iteration.

    Returns:
        (B, count) int64 in [0, 2**32), on the device of ``images``.
    """
    base = 0
    for part in (seed, seed >> 32, iteration, iteration >> 32, stream):
        base = _mix((base + 0x9E3779B9 + (part & _MASK)) & _MASK)
    rows = _mix((images + base) & _MASK)
    items = torch.arange(count, device=images.device)
    # Two rounds with the row's own key in between, so that no two rows are shifts of each other.
    keys = _mix((items[None, :] + rows[:, None]) & _MASK)
    return _mix(keys ^ _mix((rows[:, None] + 0x9E3779B9) & _MASK))
