"""Matplotlib where it is installed, and pictures that are the same file every time."""

from pathlib import Path


def pyplot():
    """matplotlib.pyplot that draws into files.

    Raises:
        ImportError: matplotlib is not installed; the message says how to get it.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "d2_pixcontrast[vis]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure, path: Path) -> None:
    """Write a figure as PNG and close it."""
    # Without metadata (date, version) the same picture is the same file.
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot().close(figure)
