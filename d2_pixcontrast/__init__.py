# Licensed under the Apache License, Version 2.0.
"""Semantic segmentation with context from beyond the image, as a Detectron2 extension.

``d2_pixcontrast.contrast`` (losses, samplers) needs torch alone. Everything else needs detectron2
and registers its heads, backbones and datasets when it is first asked for::

    from detectron2.config import get_cfg
    from d2_pixcontrast import add_pixcontrast_config

    cfg = get_cfg()
    add_pixcontrast_config(cfg)
"""

import importlib

__version__ = "0.1.0"

__all__ = ["__version__", "add_pixcontrast_config", "inference_config"]

# Resolved on first use, so that `import d2_pixcontrast.contrast` does not import detectron2.
_LAZY = {"add_pixcontrast_config": "config", "inference_config": "config"}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    for package in ("modeling", "data"):  # importing these fills detectron2's registries
        importlib.import_module(f"{__name__}.{package}")
    return value
