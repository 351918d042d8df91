"""Boundary-aware negatives (BANE): Contextrast, CVPR 2024, as one sort without host syncs."""

from typing import NamedTuple

import torch

from .distance_transform import square_root, squared_distance_to_boundary, unreachable
from .sampling import sort_by_bin

BANE_TARGETS = ("other", "confused")
_KEY_BITS = 32
# Not a key of random_keys (they have 32 bits): comes after all of them.
_LAST = 1 << _KEY_BITS


class NegativeSlots(NamedTuple):
    """A fixed number Q of slots with one negative each, some of them empty.

    Attributes:
        index: (Q,) int64, position in the flattened (B, h, w) grid; arbitrary in empty slots.
        mask: (Q,) bool, False in empty slots.
        group: (Q,) int64, see :class:`BoundaryNegatives`; arbitrary in empty slots.
        target: "other" or "confused".
    """

    index: torch.Tensor
    mask: torch.Tensor
    group: torch.Tensor
    target: str

    def serves(self, anchor_labels: torch.Tensor) -> torch.Tensor:
        """(N, Q) bool: which slots are negatives of anchors of these classes (N,)."""
        return _serves(anchor_labels, self.group, self.mask, self.target)


class BoundaryNegatives(NamedTuple):
    """The pixels that BANE chooses in a batch.

    Attributes:
        mask: (B, h, w) bool, the chosen pixels.
        group: (B, h, w) int64, the error map a pixel belongs to: its label with target "other", its
            predicted class with "confused"; -1 for pixels of no error map.
        distance: (B, h, w) float32, to the nearest pixel outside the pixel's error map of its
            image; 0 for pixels of no error map, inf where a map covers its image.
        target: "other": a pixel is a negative of all classes but its label's; "confused": of the
            class it was taken for alone.
    """

    mask: torch.Tensor
    group: torch.Tensor
    distance: torch.Tensor
    target: str

    def serves(self, anchor_labels: torch.Tensor) -> torch.Tensor:
        """(N, B * h * w) bool: which pixels are negatives of anchors of these classes (N,)."""
        return _serves(anchor_labels, self.group.flatten(), self.mask.flatten(), self.target)

    def slots(self, limit: int, keys: torch.Tensor) -> NegativeSlots:
        """The chosen pixels as a list of fixed length, at random if they are more than that.

        Args:
            limit: slots; no more than there are pixels.
            keys: (B, h * w) int64 in [0, 2**32), random, independent of those of the ties.

        Raises:
            ValueError: ``limit`` below 1.
        """
        _check_limit(limit)
        order = keys.flatten().where(self.mask.flatten(), _LAST)
        drawn = order.topk(min(limit, len(order)), largest=False)
        group = self.group.flatten()[drawn.indices]
        return NegativeSlots(drawn.indices, drawn.values < _LAST, group, self.target)


class Bane(NamedTuple):
    """How boundary-aware negatives are chosen.

    Attributes:
        keep_percent, target: see :func:`sample_boundary_negatives`.
        max_negatives: per rank and step (and level, where there are several), at most.
    """

    keep_percent: float = 50.0
    target: str = "other"
    max_negatives: int = 2048

    def check(self) -> "Bane":
        """The same, if all is in range.

        Raises:
            ValueError: ``keep_percent`` outside (0, 100], an unknown ``target``, or
                ``max_negatives`` below 1.
        """
        check_bane(self.keep_percent, self.target)
        _check_limit(self.max_negatives)
        return self


def check_bane(keep_percent: float, target: str) -> None:
    """
    Raises:
        ValueError: ``keep_percent`` outside (0, 100], or an unknown ``target``.
    """
    if not 0 < keep_percent <= 100:
        raise ValueError(f"BANE.KEEP_PERCENT is a share in (0, 100], got {keep_percent}")
    if target not in BANE_TARGETS:
        raise ValueError(f"BANE.TARGET is {target!r}; known are {list(BANE_TARGETS)}")


def sample_boundary_negatives(
    labels: torch.Tensor,
    predictions: torch.Tensor,
    keys: torch.Tensor,
    *,
    num_classes: int,
    ignore_value: int,
    keep_percent: float = 50.0,
    target: str = "other",
) -> BoundaryNegatives:
    """Choose, in every error map of every image, the wrong pixels that are nearest its boundary.

    An error map is the wrongly predicted pixels of one label in one image (target "other"), or
    those of one predicted class ("confused"). Of its n pixels the ceil(keep_percent / 100 * n) with
    the smallest Euclidean distance to a pixel outside of it are chosen, ties at random. Pixels
    without a class are outside of every map; the border of the image is no boundary.

    Args:
        labels: (B, h, w) int64; ``ignore_value`` and ids outside 0..C-1 belong to no map.
        predictions: (B, h, w) int64, predicted classes on the same grid; ids outside 0..C-1 belong
            to no map.
        keys: (B, h * w) int64 in [0, 2**32), random, for the ties.
        num_classes: C.
        ignore_value: label of pixels without a class.
        keep_percent: share of each error map, K_s of the paper in percent.
        target: whose negatives they are: "other" or "confused", see :class:`BoundaryNegatives`.

    Raises:
        ValueError: ``keep_percent`` outside (0, 100], or an unknown ``target``.
    """
    check_bane(keep_percent, target)
    group = _error_maps(labels, predictions, num_classes, ignore_value, target)
    squared = squared_distance_to_boundary(group)
    num_maps = len(labels) * num_classes
    image = torch.arange(len(labels), device=labels.device)[:, None, None]
    bins = (image * num_classes + group).where(group >= 0, num_maps).flatten()

    # One number to sort by: bin, squared distance, and as much of the key as there is room for,
    # which is all of it but for the largest grids.
    reach = unreachable(labels.shape[1:])
    key_bits = min(_KEY_BITS, 63 - num_maps.bit_length() - reach.bit_length())
    nearness = (squared.flatten() << key_bits) | (keys.flatten() >> (_KEY_BITS - key_bits))
    bits = reach.bit_length() + key_bits
    order, starts, counts = sort_by_bin(bins, nearness, num_maps + 1, bits=bits)

    # 7 % of 100 is a little more than 7 in floating point.
    keep = (counts.double() * (keep_percent / 100) - 1e-9).ceil()
    keep = keep.where(torch.arange(num_maps + 1, device=keep.device) < num_maps, 0)
    bin_of = bins[order]
    rank = torch.arange(len(order), device=order.device) - starts[bin_of]
    mask = torch.zeros_like(order, dtype=torch.bool).scatter_(0, order, rank < keep[bin_of])
    return BoundaryNegatives(mask.view(labels.shape), group, square_root(squared), target)


def _check_limit(limit):
    if limit < 1:
        raise ValueError(f"BANE.MAX_NEGATIVES has to be at least 1, got {limit}")


def _error_maps(labels, predictions, num_classes, ignore_value, target):
    """(B, h, w) int64: all error maps of an image in one, since they are disjoint; -1 elsewhere."""
    has_class = (labels != ignore_value) & (labels >= 0) & (labels < num_classes)
    known = (predictions >= 0) & (predictions < num_classes)
    wrong = has_class & known & (labels != predictions)
    return (labels if target == "other" else predictions).where(wrong, -1)


def _serves(anchor_labels, group, mask, target):
    """(N, Q) bool, from the anchors' classes (N,) and the negatives' maps (Q,)."""
    same = anchor_labels[:, None] == group[None, :]
    return mask & (same if target == "confused" else ~same)
