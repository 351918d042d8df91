"""Modules outside of this package that fill its registries: terms, decoders, backbones."""

import importlib
import os

from .compat import CfgNode

VARIABLE = "PIXCONTRAST_PLUGINS"


def import_plugins(cfg: CfgNode | None = None) -> None:
    """Import the modules that the environment variable PIXCONTRAST_PLUGINS names.

    A config cannot name them: it would be a file that runs code.

    Args:
        cfg: what the modules' ``add_config(cfg)``, where they have one, adds their keys to.

    Raises:
        ValueError: there is no such module.
    """
    for name in filter(None, os.environ.get(VARIABLE, "").replace(",", " ").split()):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{VARIABLE}: module {name} cannot be imported ({error}); its folder has to be in "
                "PYTHONPATH"
            ) from error
        if cfg is not None and hasattr(module, "add_config"):
            module.add_config(cfg)
