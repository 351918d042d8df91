"""Hard-anchor sampling: Wang et al., ICCV 2021, section 3.4, as one sort without host syncs."""

from typing import NamedTuple

import torch


class AnchorSample(NamedTuple):
    """A fixed number S of slots, some of them empty.

    Attributes:
        index: (S,) int64, position in the flattened (B, h, w) grid; arbitrary in empty slots.
        labels: (S,) int64, class of the slot.
        mask: (S,) bool, False in empty slots.
        hard: (S,) bool, the prediction there differs from the label.
    """

    index: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    hard: torch.Tensor


class PixelSample(NamedTuple):
    """A fixed number S of slots, some of them empty.

    Attributes:
        index: (S,) int64, position in the flattened (B, h, w) grid; arbitrary in empty slots.
        labels: (S,) int64, class of the slot, in 0..C-1 in empty slots too.
        mask: (S,) bool, False in empty slots.
        views: (S,) int64, how many slots its group has, at least 1.
    """

    index: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    views: torch.Tensor


def sample_hard_anchors(
    labels: torch.Tensor,
    predictions: torch.Tensor,
    pixel_keys: torch.Tensor,
    group_keys: torch.Tensor,
    *,
    ignore_value: int,
    max_samples: int = 1024,
    max_views: int = 100,
) -> AnchorSample:
    """Choose up to ``max_samples`` anchors, the same number in every group, half of them hard.

    A group is the pixels of one class in one image, if they are more than ``max_views``. With more
    than ``max_samples`` groups, that many are drawn. Every group gives
    ``max(1, min(max_samples // groups, max_views))`` views: half hard (wrongly predicted), half
    easy, the odd one easy, a single one hard; where one side has too few, all of it is taken and
    the other side fills up.

    Args:
        labels: (B, h, w) int64; ``ignore_value`` and ids outside 0..C-1 belong to no group.
        predictions: (B, h, w) int64, predicted classes on the same grid.
        pixel_keys: (B, h * w) int64 in [0, 2**32), random.
        group_keys: (B, C) int64 in [0, 2**32), random. C is the number of classes.
        ignore_value: label of pixels without a class.
        max_samples: S, slots of the result.
        max_views: views per group, at most.
    """
    batch, num_classes = group_keys.shape
    num_groups = batch * num_classes
    group, valid = group_of_pixels(labels, num_classes, ignore_value)
    is_easy = (labels == predictions).long().flatten()

    # One bin per (group, easy) and a last one for pixels of no group; hard pixels come first.
    bins = torch.where(valid, group * 2 + is_easy, 2 * num_groups)
    order, starts, counts = sort_by_bin(bins, pixel_keys, 2 * num_groups + 1)

    hard_count, easy_count = counts[:-1].view(num_groups, 2).unbind(1)
    eligible = hard_count + easy_count > max_views
    chosen = torch.argsort(torch.where(eligible, group_keys.flatten(), 1 << 32))
    num_chosen = eligible.sum().clamp(max=max_samples)
    views = (max_samples // num_chosen.clamp(min=1)).clamp(min=1, max=max_views)

    slot = torch.arange(max_samples, device=labels.device)
    rank, view = slot // views, slot % views
    mask = rank < num_chosen
    slot_group = chosen[rank.clamp(max=num_groups - 1)]
    keep_hard = _hard_views(views, hard_count, easy_count)[slot_group]
    hard = view < keep_hard
    position = torch.where(
        hard, starts[2 * slot_group] + view, starts[2 * slot_group + 1] + view - keep_hard
    )
    index = order[torch.where(mask, position, 0)]
    return AnchorSample(index, slot_group % num_classes, mask, hard & mask)


def sample_class_anchors(
    labels: torch.Tensor,
    predictions: torch.Tensor,
    pixel_keys: torch.Tensor,
    hard_keys: torch.Tensor,
    *,
    num_classes: int,
    ignore_value: int,
    per_class: int = 50,
) -> AnchorSample:
    """Choose up to ``per_class`` anchors of every class in the batch: the paper's own numbers.

    Half of them (a single one, too) are hard, wrongly predicted, as far as there are so many; the
    others are drawn from all the remaining pixels of the class, whatever their prediction.

    Args:
        labels: (B, h, w) int64; ``ignore_value`` and ids outside 0..C-1 are of no class.
        predictions: (B, h, w) int64, predicted classes on the same grid.
        pixel_keys: (B, h * w) int64 in [0, 2**32), random; order of the draw from all pixels.
        hard_keys: the same, independent of ``pixel_keys``; order of the draw from hard pixels.
        num_classes: C; the result has C * per_class slots, slot s is of class s // per_class.
        ignore_value: label of pixels without a class.
        per_class: anchors per class, at most.
    """
    valid = ((labels != ignore_value) & (labels >= 0) & (labels < num_classes)).flatten()
    bins = labels.flatten().where(valid, num_classes)
    hard = (labels != predictions).flatten()
    # Pass 1 marks the first hard pixels of each class, pass 2 fills up behind them.
    order, starts, _ = sort_by_bin(2 * bins + ~hard, hard_keys, 2 * num_classes + 2)
    view = torch.arange(per_class, device=labels.device)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    taken = hard & (rank - starts[2 * bins] < max(per_class // 2, 1))
    keys = pixel_keys.flatten() + torch.where(taken, 0, 1 << 32)
    order, starts, counts = sort_by_bin(bins, keys, num_classes + 1, bits=33)
    mask = view < counts[:-1, None]
    index = order[torch.where(mask, starts[:-1, None] + view, 0)]
    slot_labels = torch.arange(num_classes, device=labels.device).repeat_interleave(per_class)
    mask, index = mask.flatten(), index.flatten()
    return AnchorSample(index, slot_labels, mask, hard[index] & mask)


def sample_balanced(
    labels: torch.Tensor,
    pixel_keys: torch.Tensor,
    group_keys: torch.Tensor,
    *,
    ignore_value: int,
    max_samples: int,
    max_views: int | None = None,
    min_pixels: int = 1,
    equal: bool = False,
) -> PixelSample:
    """Choose up to ``max_samples`` pixels, evenly from all groups, without replacement.

    A group is the pixels of one class in one image, if they are at least ``min_pixels``. Every
    group gives min(its pixels, V), where V is the largest number with which all fit into
    ``max_samples``, or ``max_views`` if that is less. With more groups than ``max_samples``, that
    many are drawn and give one each.

    Args:
        labels: (B, h, w) int64; ``ignore_value`` and ids outside 0..C-1 belong to no group. For
            groups over the batch pass (1, B * h, w).
        pixel_keys: B * h * w int64 in [0, 2**32), random.
        group_keys: (B, C) int64 in [0, 2**32), random. C is the number of classes.
        ignore_value: label of pixels without a class.
        max_samples: pixels at most; S, the number of slots, is this or the number of pixels.
        max_views: of one group, at most; None = no limit.
        min_pixels: of a group.
        equal: all groups give the same number: V is the size of the smallest, or
            ``max_samples // groups`` if that is less (the rule of Pissas et al., ECCV 2022).
    """
    batch, num_classes = group_keys.shape
    num_groups = batch * num_classes
    group, valid = group_of_pixels(labels, num_classes, ignore_value)
    order, starts, counts = sort_by_bin(group.where(valid, num_groups), pixel_keys, num_groups + 1)
    num_slots = min(max_samples, len(order))
    counts = counts[:-1].where(counts[:-1] >= min_pixels, 0)

    views = _common_views(counts, num_slots, equal)
    given = torch.minimum(counts, views if max_views is None else views.clamp(max=max_views))
    # Groups in random order: should they be more than the slots, the last ones get none.
    chosen = torch.argsort(torch.where(given > 0, group_keys.flatten(), 1 << 32))
    ends = given[chosen].cumsum(0)

    slot = torch.arange(num_slots, device=labels.device)
    rank = torch.searchsorted(ends, slot, right=True).clamp(max=num_groups - 1)
    slot_group = chosen[rank]
    view = slot - (ends - given[chosen])[rank]
    mask = slot < ends[-1]
    index = order[torch.where(mask, starts[slot_group] + view, 0)]
    return PixelSample(index, slot_group % num_classes, mask, given[slot_group].clamp(min=1))


def _common_views(counts, num_slots, equal):
    """The largest V (at least 1) with sum(min(counts, V)) <= num_slots."""
    size = counts.sort().values
    if equal:
        groups = (size > 0).sum()
        smallest = size.where(size > 0, num_slots).min()
        return torch.minimum(smallest, num_slots // groups.clamp(min=1)).clamp(min=1)
    # If the k smallest groups give all they have, the others share what is left. That share grows
    # with k as long as the k-th group is below it, and then falls.
    before = size.cumsum(0) - size
    others = torch.arange(len(size), 0, -1, device=size.device)
    share = torch.div(num_slots - before, others, rounding_mode="floor")
    return share.max().clamp(min=1)


def sample_group_pixels(
    labels: torch.Tensor,
    pixel_keys: torch.Tensor,
    *,
    num_classes: int,
    ignore_value: int,
    per_group: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to ``per_group`` random pixels of every (image, class), without replacement.

    Args:
        labels: (B, h, w) int64; ``ignore_value`` and ids outside 0..C-1 are of no class.
        pixel_keys: (B, h * w) int64 in [0, 2**32), random.
        num_classes: C.
        ignore_value: label of pixels without a class.
        per_group: P, slots of each group.

    Returns:
        (B, C, P) int64 positions in the flattened (B, h, w) grid, arbitrary where there are too few
        pixels, and a (B, C, P) bool mask of the slots that hold one.
    """
    num_groups = labels.shape[0] * num_classes
    group, valid = group_of_pixels(labels, num_classes, ignore_value)
    bins = group.where(valid, num_groups)
    order, starts, counts = sort_by_bin(bins, pixel_keys.flatten(), num_groups + 1)
    view = torch.arange(per_group, device=labels.device)
    mask = view < counts[:-1, None]
    index = order[torch.where(mask, starts[:-1, None] + view, 0)]
    shape = (labels.shape[0], num_classes, per_group)
    return index.view(shape), mask.view(shape)


def group_of_pixels(
    labels: torch.Tensor, num_classes: int, ignore_value: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat (image, class) index (B * h * w,) of every pixel of (B, h, w), and its validity."""
    valid = (labels != ignore_value) & (labels >= 0) & (labels < num_classes)
    image = torch.arange(labels.shape[0], device=labels.device)[:, None, None]
    group = image * num_classes + labels.where(valid, 0)
    return group.flatten(), valid.flatten()


def sort_by_bin(
    bins: torch.Tensor, keys: torch.Tensor, num_bins: int, bits: int = 32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Order of items by (bin, key), and where each bin starts in it and how many items it has.

    Args:
        bins: (S,) int64 in [0, num_bins).
        keys: int64 in [0, 2**bits), S of them.
        num_bins: number of bins.
        bits: of a key.
    """
    counts = torch.zeros(num_bins, dtype=torch.int64, device=bins.device)
    counts.scatter_add_(0, bins, torch.ones_like(bins))
    order = torch.argsort((bins << bits) | keys.flatten())
    return order, counts.cumsum(0) - counts, counts


def _hard_views(views, hard_count, easy_count):
    """How many of a group's views are hard ones."""
    half_hard = torch.where(views > 1, views // 2, 1)
    enough_hard = 2 * hard_count >= views
    enough_easy = 2 * easy_count >= views
    return torch.where(
        enough_hard,
        torch.where(enough_easy, half_hard, views - easy_count),
        hard_count,
    )


def gather_pixels(embeddings: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows (S, D) of (B, D, h, w) embeddings at flat (B, h, w) positions ``index`` (S,)."""
    flat = embeddings.flatten(2)
    pixels = flat.shape[2]
    image = torch.div(index, pixels, rounding_mode="floor")
    return flat[image, :, index % pixels]
