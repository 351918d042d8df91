"""d2_pixcontrast.contrast stands on torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import d2_pixcontrast.contrast

FOLDER = Path(d2_pixcontrast.contrast.__file__).parent


def test_source_imports_torch_and_itself_only():
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path.name} imports from outside of contrast"
                roots = set() if node.level else {node.module.split(".")[0]}
            else:
                continue
            assert roots <= {"torch", *sys.stdlib_module_names}, (path.name, roots)


def test_importing_it_does_not_import_detectron2():
    code = "import sys, d2_pixcontrast.contrast; assert 'detectron2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_detectron2_gets_one_clear_message():
    code = (
        "import sys; sys.modules['detectron2'] = None; "
        "from d2_pixcontrast import add_pixcontrast_config"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: d2_pixcontrast needs detectron2")
    assert "install_detectron2.py" in last
