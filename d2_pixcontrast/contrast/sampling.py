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
    group, is_easy, valid = _group_of_pixels(labels, predictions, num_classes, ignore_value)

    # One bin per (group, easy) and a last one for pixels of no group; hard pixels come first.
    bins = torch.where(valid, group * 2 + is_easy, 2 * num_groups)
    counts = torch.zeros(2 * num_groups + 1, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(0, bins, torch.ones_like(bins))
    starts = counts.cumsum(0) - counts
    order = torch.argsort((bins << 32) | pixel_keys.flatten())

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


def _group_of_pixels(labels, predictions, num_classes, ignore_value):
    """Flat group index, easy flag (0 or 1) and validity of every pixel."""
    valid = (labels != ignore_value) & (labels >= 0) & (labels < num_classes)
    image = torch.arange(labels.shape[0], device=labels.device)[:, None, None]
    group = image * num_classes + labels.where(valid, 0)
    is_easy = (labels == predictions).long()
    return group.flatten(), is_easy.flatten(), valid.flatten()


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
