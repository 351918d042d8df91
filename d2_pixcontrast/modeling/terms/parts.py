"""Parts that several terms build from their config node."""

from detectron2.layers import get_norm

from ...contrast import Bane, ProjectionHead


def build_projector(node, in_channels: int, *, norm_last: bool = False) -> ProjectionHead:
    """The projection head of ``node.PROJECTOR``.

    Args:
        node: a term's config node.
        in_channels: of the features that are embedded.
        norm_last: see :class:`~d2_pixcontrast.contrast.ProjectionHead`.
    """
    return ProjectionHead(
        in_channels,
        dim=node.PROJECTOR.DIM,
        kind=node.PROJECTOR.TYPE,
        norm=lambda channels: get_norm(node.PROJECTOR.NORM, channels),
        norm_last=norm_last,
    )


def build_bane(node, key: str, without: str) -> Bane | None:
    """The boundary-aware negatives of ``node.BANE`` where ``node.NEGATIVES`` is "bane".

    Args:
        node: a term's config node.
        key: its name, for the message.
        without: the other value of NEGATIVES; it gives None.

    Raises:
        ValueError: another NEGATIVES.
    """
    if node.NEGATIVES not in ("bane", without):
        raise ValueError(f"{key}.NEGATIVES is {node.NEGATIVES!r}; known are {['bane', without]}")
    if node.NEGATIVES != "bane":
        return None
    return Bane(
        keep_percent=node.BANE.KEEP_PERCENT,
        target=node.BANE.TARGET,
        max_negatives=node.BANE.MAX_NEGATIVES,
    )
