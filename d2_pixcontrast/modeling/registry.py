"""Look-ups that name what is known when a name is not."""

import difflib

from detectron2.utils.registry import Registry

from ..spelling import did_you_mean


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
    """ "did you mean" with the closest of ``known``, then all of them where they are few.

    Where they are many and none is close, those whose last parts (of a path) are the nearest.
    """
    name = str(name)
    hint = did_you_mean(name, known, 0.6)
    if len(known) <= most:
        return f"{hint}known are {', '.join(known)}"
    if not hint:
        by_last_part = {other.rsplit("/", 1)[-1]: other for other in known}
        last_part = name.rsplit("/", 1)[-1]
        near = difflib.get_close_matches(last_part, by_last_part, n=3, cutoff=0.0)
        hint = f"the nearest are {' and '.join(by_last_part[part] for part in near)}; "
    return f"{hint}{len(known)} are known"
