"""Work on many files at once, with a progress bar."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

__all__ = ["available_cores", "parallel_map"]

Item, Result = TypeVar("Item"), TypeVar("Result")


def available_cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    description: str = "",
) -> Iterator[Result]:
    """Yield ``function`` of every item in their order; its first exception ends everything.

    Args:
        function, items: picklable where ``workers`` > 1.
        workers: processes; up to 1 = this one alone.
        description: in front of the progress bar, which goes to stderr.
    """
    bar = {"total": len(items), "desc": description, "unit": "file"}
    workers = min(workers, len(items))
    if workers <= 1:
        yield from tqdm(map(function, items), **bar)
        return
    with multiprocessing.Pool(workers) as pool:
        chunk = max(min(len(items) // (8 * workers), 32), 1)
        yield from tqdm(pool.imap(function, items, chunk), **bar)
