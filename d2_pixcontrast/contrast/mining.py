"""Which positives and negatives an anchor is contrasted with: Wang et al., ICCV 2021, section 3.4.

Positives and negatives are counted and chosen separately, and anchor by anchor, so that a loop over
chunks of anchors chooses exactly what one large matrix would.
"""

import math
from typing import NamedTuple

import torch

from .random_keys import random_keys

MINING_MODES = ("all", "random", "hardest", "semi_hard")
_DRAWING = ("random", "semi_hard")
# Not a key of random_keys (they have 32 bits): comes after all of them.
_LAST = 1 << 32


class Mining(NamedTuple):
    """How positives and negatives are chosen.

    Attributes:
        mode: "all"; "random" ones; the "hardest" (nearest negatives, farthest positives); or
            "semi_hard", random ones of the hardest ``hard_fraction``. ``positive_mode`` may set the
            positives' apart.
        num_positives: of each anchor, at most.
        num_negatives: of each anchor, at most.
        hard_fraction: share of an anchor's positives, and of its negatives, that "semi_hard" draws
            from.
        positive_mode: of the positives alone; "" = as ``mode``.
    """

    mode: str = "all"
    num_positives: int = 1024
    num_negatives: int = 2048
    hard_fraction: float = 0.1
    positive_mode: str = ""

    def of_positives(self) -> "Mining":
        """The same, with the positives' mode as the ``mode``."""
        return self._replace(mode=self.positive_mode or self.mode)

    @property
    def draws(self) -> bool:
        """Whether a mode needs random keys."""
        return self.mode in _DRAWING or self.positive_mode in _DRAWING

    def check(self) -> "Mining":
        """The same, if all is in range.

        Raises:
            ValueError: an unknown mode, a number below 1, or a fraction outside (0, 1].
        """
        if self.mode not in MINING_MODES:
            raise ValueError(f"MINING.MODE is {self.mode!r}; known are {list(MINING_MODES)}")
        if self.positive_mode not in ("", *MINING_MODES):
            raise ValueError(
                f"MINING.POSITIVE_MODE is {self.positive_mode!r}; known are '' (as MODE) and "
                f"{list(MINING_MODES)}"
            )
        if min(self.num_positives, self.num_negatives) < 1:
            raise ValueError(
                f"MINING.NUM_POSITIVES ({self.num_positives}) and NUM_NEGATIVES "
                f"({self.num_negatives}) have to be above 0"
            )
        if not 0 < self.hard_fraction <= 1:
            raise ValueError(f"MINING.HARD_FRACTION is in (0, 1], got {self.hard_fraction}")
        return self


def choose(
    hardness: torch.Tensor, mining: Mining, limit: int, row_keys: torch.Tensor, stream: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose up to ``limit`` candidates of every row, without replacement.

    Args:
        hardness: (n, K), the larger the harder; -inf where there is no candidate.
        mining: its mode is "random", "hardest" or "semi_hard".
        limit: candidates per row, at most.
        row_keys: (n,) int64 in [0, 2**32), the seeds of the rows' draws.
        stream: separates the draws of positives and negatives.

    Returns:
        (n, k) int64 distinct columns, and a (n, k) bool mask of those that are chosen.
    """
    columns = hardness.shape[1]
    count = (hardness > -torch.inf).sum(dim=1, keepdim=True)
    if mining.mode == "random":
        keys = _keys(row_keys, columns, stream)
        keys.masked_fill_(hardness == -torch.inf, _LAST)
        index = keys.topk(min(limit, columns), dim=1, largest=False).indices
        return index, _first(index, count)
    if mining.mode == "hardest":
        index = hardness.topk(min(limit, columns), dim=1).indices
        return index, _first(index, count)
    # The pool is a share of the candidates, of which there may be fewer than columns.
    ranked = hardness.topk(_share(columns, mining.hard_fraction), dim=1).indices
    pool = (count.double() * mining.hard_fraction - 1e-9).ceil().long()
    if ranked.shape[1] <= limit:
        return ranked, _first(ranked, pool)
    keys = _keys(row_keys, ranked.shape[1], stream)
    keys.masked_fill_(~_first(ranked, pool), _LAST)
    drawn = keys.topk(limit, dim=1, largest=False).indices
    return ranked.gather(1, drawn), _first(drawn, pool)


def chosen_pairs(
    similarity: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    mining: Mining,
    row_keys: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mine in a dense matrix: (N, K) bool masks of all pairs to those of the chosen ones."""
    of_positives = mining.of_positives()
    return (
        _chosen(-similarity, positive, of_positives, mining.num_positives, row_keys, 0),
        _chosen(similarity, negative, mining, mining.num_negatives, row_keys, 1),
    )


def _chosen(hardness, pairs, mining, limit, row_keys, stream):
    if mining.mode == "all":
        return pairs
    hardness = hardness.masked_fill(~pairs, -torch.inf)
    index, mask = choose(hardness, mining, limit, row_keys, stream)
    return torch.zeros_like(pairs).scatter_(1, index, mask)


def _keys(row_keys, columns, stream):
    """(n, columns) int64 in [0, 2**32): random keys of the columns, mixed with those of the rows.

    One round in place, where random_keys would make a dozen temporaries of this size.
    """
    column_keys = random_keys(0, 0, torch.zeros_like(row_keys[:1]), columns, stream)
    keys = column_keys ^ row_keys[:, None]
    keys.mul_(0x21F0AAAD).bitwise_and_(_LAST - 1)
    keys ^= keys >> 15
    return keys.mul_(0x735A2D97).bitwise_and_(_LAST - 1)


def _first(index, count):
    """Mask of the first ``count`` (n, 1) columns of ``index`` (n, k)."""
    return torch.arange(index.shape[1], device=index.device) < count


def _share(count: int, fraction: float) -> int:
    # 0.1 * 30 is a little more than 3 in floating point.
    return max(1, math.ceil(count * fraction - 1e-9))
