"""What the documentation says is so: keys and defaults, links, commands."""

import ast
import re
import subprocess

import pytest
from conftest import ROOT
from detectron2.config import get_cfg

from d2_pixcontrast import add_pixcontrast_config
from d2_pixcontrast.engine import default_argument_parser
from d2_pixcontrast.modeling import TERM_REGISTRY

# The nodes below MODEL with a page each.
PAGES = {
    "PIXEL_CONTRAST": "pixel-contrast.md",
    "CONTEXTRAST": "contextrast.md",
    "MULTI_SCALE_CONTRAST": "multi-scale-contrast.md",
    "DATASET_MEMORY": "dataset-memory.md",
}
ROW = re.compile(r"^\| `([A-Z][A-Z0-9_.]*)` \| `(.*?)` \| .*\|$", re.MULTILINE)
FOLDERS = ("", "docs", "configs", "datasets", "results", "tools")
DOCUMENTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]
ids = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


@pytest.fixture(scope="module")
def cfg():
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    return cfg


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain(value):
    return list(value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("node", PAGES)
def test_pages_list_every_key_with_its_default(cfg, node):
    text = (ROOT / "docs" / PAGES[node]).read_text()
    assert f"## Keys of MODEL.{node}" in text
    rows = ROW.findall(text)
    documented = {key: plain(ast.literal_eval(default)) for key, default in rows}
    assert len(documented) == len(rows), "a key has two rows"
    assert documented == {key: plain(value) for key, value in flat(cfg.MODEL[node])}


def test_every_term_has_a_page():
    """A registered term is called in camel case what its node is called in capitals."""
    nodes = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper() for name, _ in TERM_REGISTRY}
    assert nodes <= set(PAGES)


def anchors(path):
    """GitHub's names of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file) if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_commands_and_keys_exist(cfg, path):
    text = path.read_text()
    for module in set(re.findall(r"python -m (d2_pixcontrast[\w.]*)", text)):
        file = ROOT / module.replace(".", "/")
        assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), module
    for script in set(re.findall(r"python ((?:\w+/)*\w+\.py)", text)):
        assert (ROOT / script).is_file(), script
    for config in set(re.findall(r"configs/[\w./-]+\.yaml", text)):
        assert (ROOT / config).is_file() or "..." in config, config
    for key in set(
        re.findall(r"\b(?:MODEL|SOLVER|TEST|INPUT|DATASETS)(?:\.[A-Z][A-Z0-9_]*)+", text)
    ):
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_the_readmes_table_of_configs_is_complete():
    folders = {
        "shapes (drawn)": "demo",
        "CamVid": "CamVid",
        "Cityscapes": "Cityscapes",
        "ADE20K": "ADE20K",
        "PASCAL-Context": "PascalContext",
        "COCO-Stuff 10k": "COCOStuff10K",
        "COCO-Stuff 164k": "COCOStuff164K",
        "COCO panoptic, stuff only": "COCOPanopticStuffOnly",
        "LIP": "LIP",
    }
    methods = ("ce", "pixcontrast", "pixcontrast_mem", "contextrast", "multiscale", "mcibi")
    methods += ("mcibi_pp",)
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| ([\w ,()-]+) ((?:\| (?:run |config )?)+)\|$", text, re.MULTILINE)
    assert {name for name, _ in rows} == set(folders)
    for name, cells in rows:
        cells = [cell.strip() for cell in cells.split("|")[1:]]
        folder = (
            folders[name] if name.startswith("shapes") else f"{folders[name]}-SemanticSegmentation"
        )
        for method, cell in zip(methods, cells, strict=True):
            found = list((ROOT / "configs" / folder).glob(f"*_{method}.yaml"))
            found += (ROOT / "configs" / folder).glob(f"*_{method}_[0-9c]*.yaml")
            assert bool(found) == bool(cell), (name, method)
            if cell == "run":
                assert any(
                    str(p.relative_to(ROOT)) in (ROOT / "MODEL_ZOO.md").read_text() for p in found
                )


def test_flags_exist():
    sources = [path.read_text() for path in (ROOT / "d2_pixcontrast").rglob("*.py")]
    sources += [p.read_text() for f in ("tools", "datasets") for p in (ROOT / f).glob("*.py")]
    sources.append(default_argument_parser().format_help())
    known = "\n".join(sources)
    for path in DOCUMENTS:
        text = re.sub(
            r"^.*\b(?:pip|git|apt|PIP_ARGS)\b.*$", "", path.read_text(), flags=re.MULTILINE
        )
        for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)):
            assert re.search(rf"{flag}(?![\w-])", known), f"{path.name}: {flag}"


COMMAND = re.compile(r"(?:python -m (d2_pixcontrast[\w.]*)|\b((?:\w+/)*\w+\.py)) ([^\n`|;#]*)")


def source_of(module, script):
    """What declares a command's flags: detectron2's parser, a script, or a module's package."""
    if script == "train_net.py":
        return default_argument_parser().format_help()
    if script:
        return (ROOT / script).read_text()
    path = ROOT / module.replace(".", "/")
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return "\n".join(file.read_text() for file in files)


def test_flags_are_those_of_the_command():
    found = 0
    for path in DOCUMENTS:
        text = re.sub(r"\\\n\s*", "", path.read_text())
        for module, script, arguments in COMMAND.findall(text):
            if script and not (ROOT / script).is_file():
                continue  # a bare file name
            source = source_of(module, script)
            for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", arguments):
                found += 1
                assert re.search(rf"{flag}(?![\w-])", source), (path.name, module or script, flag)
    assert found > 20


def test_python_examples_import_what_exists():
    """Every `from d2_pixcontrast... import ...` of the documents, in one process."""
    lines = {
        line
        for path in DOCUMENTS
        for line in re.findall(r"from d2_pixcontrast[\w.]* import \w[\w, ]*", path.read_text())
    }
    assert lines
    for line in lines:
        exec(line, {})


def test_nothing_of_this_machine_is_in_the_documents():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split()
    if not names:
        pytest.skip("this is no git checkout")
    for name in names:
        assert not re.search(r"(?<!\w)/(?:work|root|home|tmp)/\w", (ROOT / name).read_text()), name
