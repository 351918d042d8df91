"""Nothing that comes from outside is executed: configs, tables, command lines, paths.

Weights files are tested in engine/test_safe_loading.py.
"""

import ast
import os
import re

import pytest
import yaml
from conftest import INSTANT_TEST, ROOT, save_image
from detectron2.config import get_cfg

from d2_pixcontrast import model_zoo
from d2_pixcontrast.engine import load_cfg
from d2_pixcontrast.model_zoo.table import TABLE_VARIABLE

SOURCES = [
    *(
        p
        for folder in ("d2_pixcontrast", "tools", "datasets")
        for p in (ROOT / folder).rglob("*.py")
    ),
    *ROOT.glob("*.py"),
]


def attacks(marker):
    """YAML documents that run a command where tags of Python are honoured."""
    command = f"touch '{marker}'"
    return {
        "os.system": f'SEED: !!python/object/apply:os.system ["{command}"]\n',
        "eval": f"SEED: !!python/object/apply:eval [\"open('{marker}', 'w')\"]\n",
        "new": f'SEED: !!python/object/new:os.system ["{command}"]\n',
        "module": "SEED: !!python/module:os\n",
        "tuple": "INPUT: {SCALE_RANGE: !!python/tuple [0.5, 2.0]}\n",
    }


@pytest.mark.parametrize("name", ["os.system", "eval", "new", "module", "tuple"])
@pytest.mark.parametrize("place", ["file", "base"])
def test_python_tags_in_configs_are_refused(tmp_path, name, place):
    marker = tmp_path / "ran"
    evil = tmp_path / "evil.yaml"
    evil.write_text(attacks(marker)[name])
    path = evil
    if place == "base":
        path = tmp_path / "child.yaml"
        path.write_text("_BASE_: evil.yaml\nSEED: 1\n")
    with pytest.raises(ValueError, match=r"could not determine a constructor.*evil\.yaml"):
        load_cfg(str(path))
    assert not marker.exists()


def test_these_attacks_work_on_what_detectron2_does_by_default(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "evil.yaml"
    path.write_text(attacks(marker)["os.system"])
    get_cfg().merge_from_file(str(path), allow_unsafe=True)
    assert marker.exists()


def test_python_tags_in_a_zoo_table_are_refused(tmp_path, monkeypatch):
    marker, path = tmp_path / "ran", tmp_path / "zoo.yaml"
    config = INSTANT_TEST.relative_to(ROOT / "configs").as_posix()
    path.write_text(f'{config}: !!python/object/apply:os.system ["touch {marker}"]\n')
    monkeypatch.setenv(TABLE_VARIABLE, str(path))
    with pytest.raises(ValueError, match=rf"{TABLE_VARIABLE}: cannot read .*zoo\.yaml"):
        model_zoo.get(config, trained=True)
    assert not marker.exists()


EXPRESSIONS = [
    "__import__('os').system('touch {marker}')",
    "eval(\"open('{marker}', 'w')\")",
    "[open('{marker}', 'w') for _ in (1,)]",
    "(lambda: open('{marker}', 'w'))()",
    "f\"{{open('{marker}', 'w')}}\"",
    "!!python/object/apply:os.system [touch {marker}]",
    "$(touch {marker})",
    "`touch {marker}`",
    "; touch {marker}",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_values_on_the_command_line_are_literals(tmp_path, expression):
    """They stay the text that they are, which a number's key refuses."""
    value = expression.format(marker=tmp_path / "ran")
    cfg = load_cfg(str(INSTANT_TEST), ["OUTPUT_DIR", value])
    assert value == cfg.OUTPUT_DIR
    with pytest.raises(ValueError, match="SOLVER.BASE_LR"):
        load_cfg(str(INSTANT_TEST), ["SOLVER.BASE_LR", value])
    with pytest.raises(ValueError):
        load_cfg(str(INSTANT_TEST), [f"SOLVER.{value}", "1"])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("key", ["IMAGES", "LABELS", "CLASSES", "IMAGE_SUFFIX"])
def test_paths_in_a_config_are_names_of_files(tmp_path, monkeypatch, key):
    """No shell, no variables, no patterns: what is not there is named as it was written."""
    from d2_pixcontrast.data import check_datasets

    monkeypatch.chdir(tmp_path)
    value = "$(touch ran)/`touch ran`; touch ran | touch ran"
    for folder in ("images", "labels"):
        save_image(tmp_path / folder / "a.png", (4, 4))
    node = {"IMAGES": "images", "LABELS": "labels", "CLASSES": ["a"], key: value}
    text = {
        "DATASETS": {"TRAIN": ["own_of_security"], "SEM_SEG_FOLDERS": {"own_of_security": node}}
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**text, "MODEL": {"SEM_SEG_HEAD": {"NUM_CLASSES": 1}}}))
    try:
        with pytest.raises(ValueError, match=re.escape(value)) as error:
            check_datasets(load_cfg(str(path)))
        assert "own_of_security" in str(error.value)
    finally:
        forget("own_of_security")
    assert sorted(os.listdir(tmp_path)) == ["images", "labels", "own.yaml"]


def forget(name):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile"),
    *(
        f"os.{kind}{way}"
        for kind in ("exec", "spawn")
        for way in ("l", "le", "lp", "v", "ve", "vp")
    ),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn", "runpy.run_path"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.UnsafeLoader"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open"),
    *(
        "joblib.load",
        "dill.load",
        "cloudpickle.load",
        "np.load",
        "numpy.load",
        "pandas.read_pickle",
    ),
}
# Where one of these is what the file is for, and how often; each has tests of its own.
ALLOWED = {
    # Builds tensors and plain containers; whatever else is named gets a stand-in.
    ("d2_pixcontrast/conversion/foreign_file.py", "pickle.Unpickler"): 1,
    ("d2_pixcontrast/conversion/foreign_file.py", "torch.load"): 1,
    ("d2_pixcontrast/engine/restricted_pickle.py", "pickle.Unpickler"): 1,
    ("d2_pixcontrast/engine/weights_file.py", "pickle.load"): 1,  # with the variable set alone
    ("d2_pixcontrast/engine/weights_file.py", "torch.load"): 1,
}


def uses(tree):
    """(name, line) of everything in a module that could run what it is given."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node) in FORBIDDEN:
            yield ast.unparse(node), node.lineno
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if f"{node.module}.{alias.name}" in FORBIDDEN:
                    yield f"{node.module}.{alias.name}", node.lineno
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if options.get("shell", "False") != "False":
            yield "shell", node.lineno
        if options.get("allow_unsafe", "False") != "False" or (
            called.endswith(".merge_from_file") and "allow_unsafe" not in options
        ):
            yield "allow_unsafe", node.lineno
        if called == "torch.load" and options.get("weights_only") != "True":
            yield "torch.load", node.lineno
        if called.startswith("subprocess.") and node.args and _is_text(node.args[0]):
            yield "a command as one text", node.lineno


def _is_text(node):
    return isinstance(node, (ast.JoinedStr, ast.BinOp)) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_no_source_runs_what_it_is_given():
    assert len(SOURCES) > 100
    found = {}
    for path in SOURCES:
        relative = path.relative_to(ROOT).as_posix()
        for name, _ in uses(ast.parse(path.read_text())):
            found[relative, name] = found.get((relative, name), 0) + 1
    assert found == ALLOWED


def test_the_package_starts_no_programs():
    for path in SOURCES:
        if "d2_pixcontrast" not in path.relative_to(ROOT).parts[0]:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {"subprocess", "pty", "commands"} & set(names), path


@pytest.mark.parametrize(
    "code, name",
    [
        ("eval(cfg.X)", "eval"),
        ("os.system(cfg.X)", "os.system"),
        ("subprocess.run(cfg.X, shell=True)", "shell"),
        ("subprocess.run(f'ls {cfg.X}')", "a command as one text"),
        ("torch.load(path)", "torch.load"),
        ("torch.load(path, weights_only=False)", "torch.load"),
        ("yaml.load(text, yaml.UnsafeLoader)", "yaml.load"),
        ("cfg.merge_from_file(path)", "allow_unsafe"),
        ("from os import system", "os.system"),
        ("from pickle import loads", "pickle.loads"),
    ],
)
def test_the_search_finds(code, name):
    assert name in [found for found, _ in uses(ast.parse(code))]


def test_ordinary_code_is_not_found():
    code = "model.eval(); re.compile('x'); subprocess.run([a, b]); torch.load(p, weights_only=True)"
    assert not list(uses(ast.parse(code)))
