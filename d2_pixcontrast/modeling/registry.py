"""Look-ups that name what is known when a name is not."""

import difflib

from detectron2.utils.registry import Registry


def lookup(registry: Registry, name: str, key: str):
    """The object registered as ``name``.

    Raises:
        ValueError: no such name; the message has the config ``key`` and all known names.
    """
    known = sorted(k for k, _ in registry)
    if name not in known:
        raise ValueError(f"{key} is {name!r}; {suggest(name, known)}")
    return registry.get(name)


def suggest(name: str, known: list[str], most: int = 12) -> str:
    """ "did you mean" with the closest of ``known``, then the list where it is short."""
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    listed = ", ".join(known[:most]) + (f", ... ({len(known)} in all)" if len(known) > most else "")
    return f"{hint}known are {listed}"
