"""What evaluation does to an image before the network sees it, which no exported graph does."""

from ..compat import CfgNode


def evaluated_at(cfg: CfgNode) -> str:
    """The size at which a config evaluates, and whether in windows, in words.

    Whoever runs the network without this package has to do the same for the same scores. (TEST.AUG
    is left out: its scores have a name of their own.)
    """
    size, sliding = cfg.INPUT, cfg.TEST.SLIDING
    if size.FIXED_SIZE_TEST:
        text = f"{_by(size.FIXED_SIZE_TEST)} (height x width)"
    elif size.MIN_SIZE_TEST:
        text = f"a short edge of {size.MIN_SIZE_TEST}"
        if size.MAX_SIZE_TEST:
            text += f", a long one of {size.MAX_SIZE_TEST} at most"
    else:
        text = "the image's own size"
    if sliding.ENABLED:
        text += (
            f", in windows of {_by(sliding.SIZE)} at steps of {_by(sliding.STRIDE)} (height x "
            f"width), averaging {sliding.AVERAGE}"
        )
    return text


def _by(size) -> str:
    return "x".join(map(str, size))
