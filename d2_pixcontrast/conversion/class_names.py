"""Whether the classes of a file are those of a dataset, which may spell some of them otherwise."""

from collections.abc import Sequence

# Share of the classes that may go by another name: none of fewer than ten. mmsegmentation's ADE20K
# has ten such of 150.
_OTHERWISE = 0.1


def spelled_otherwise(theirs: Sequence[str], ours: Sequence[str]) -> list[tuple[str, str]]:
    """Compare two lists of class names, in which a place stands for an id.

    Names agree if one of their synonyms, separated by commas, does; case, spaces and signs do not
    matter. A few may differ altogether ("tub", "bathtub"), if neither names a class elsewhere.

    Args:
        theirs: names in a checkpoint.
        ours: names of the dataset.

    Returns:
        the pairs (theirs, ours) of names that differ.

    Raises:
        ValueError: another number of classes, another order, or other classes.
    """
    if len(theirs) != len(ours):
        raise ValueError(f"it names {len(theirs)} classes, not {len(ours)}")
    pairs = list(zip(map(_synonyms, theirs), map(_synonyms, ours)))
    differ = [index for index, (a, b) in enumerate(pairs) if not a & b]
    known_theirs, known_ours = (set().union(*names) for names in zip(*pairs))
    moved = [i for i in differ if pairs[i][0] & known_ours or pairs[i][1] & known_theirs]
    if moved or len(differ) > _OTHERWISE * len(pairs):
        index = (moved or differ)[0]
        raise ValueError(f"class {index} is {theirs[index]!r} there and {ours[index]!r} here")
    return [(theirs[index], ours[index]) for index in differ]


def _synonyms(name: str) -> set[str]:
    plain = ("".join(c for c in part.lower() if c.isalnum()) for part in name.split(","))
    return {part for part in plain if part} or {name.strip()}
