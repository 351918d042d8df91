"""The scripts of datasets/, as modules."""

from conftest import ROOT, load_script


def script(name):
    """Import datasets/<name>.py."""
    return load_script(ROOT / "datasets" / f"{name}.py")


def run(name, root, *arguments):
    """Run a preparation in this process; root None = $DETECTRON2_DATASETS."""
    from d2_pixcontrast.data import prepare

    module = script(f"prepare_{name}")
    where = [] if root is None else ["--root", str(root)]
    prepare.run(name, module.plan, module.convert, "", [*where, "--workers", "1", *arguments])
