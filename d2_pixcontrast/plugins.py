"""Modules outside of this package that fill its registries: terms, decoders, backbones."""

import importlib
import os

from .compat import CfgNode

VARIABLE = "PIXCONTRAST_PLUGINS"


def plugin_names() -> list[str]:
    """The modules that the environment variable names, separated by commas or blanks."""
    return os.environ.get(VARIABLE, "").replace(",", " ").split()


def import_plugins(cfg: CfgNode | None = None) -> None:
    """Import the modules that the environment variable PIXCONTRAST_PLUGINS names.

    A config cannot name them: it would be a file that runs code.

    Args:
        cfg: what the modules' ``add_config(cfg)``, where they have one, adds their keys to.

    Raises:
        ValueError: there is no such module, or one that it imports is missing.
    """
    for name in plugin_names():
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"{VARIABLE}: {name!r} is no name of a module, such as my_terms")
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            itself = error.name and f"{name}.".startswith(f"{error.name}.")
            hint = "; the folder that it is in has to be in PYTHONPATH" if itself else ""
            raise ValueError(f"{VARIABLE}: {name} cannot be imported: {error}{hint}") from error
        if cfg is not None and hasattr(module, "add_config"):
            module.add_config(cfg)
