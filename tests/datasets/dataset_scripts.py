"""The scripts of datasets/, as modules."""

import importlib.util
import sys

from conftest import ROOT


def script(name):
    """Import datasets/<name>.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "datasets" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run(name, root, *arguments):
    """Run a preparation in this process; root None = $DETECTRON2_DATASETS."""
    from d2_pixcontrast.data import prepare

    module = script(f"prepare_{name}")
    where = [] if root is None else ["--root", str(root)]
    prepare.run(name, module.plan, module.convert, "", [*where, "--workers", "1", *arguments])
