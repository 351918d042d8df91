"""What somebody may have meant by a name that there is not."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], cutoff: float) -> str:
    """ "did you mean A or B? ", with the up to three names that are like it, or "" if none is.

    Args:
        name: that there is not.
        known: those that there are.
        cutoff: how like they have to be, 0 to 1; see :func:`difflib.get_close_matches`.
    """
    near = difflib.get_close_matches(str(name), list(known), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}? " if near else ""
