"""The parts of tools/install_detectron2.py, on small made-up source releases. Needs no network."""

import base64
import csv
import hashlib
import io
import logging
import tarfile
import types
import zipfile
from pathlib import Path

import pytest
from conftest import load_script

TOOL = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"

SOURCE = {
    "LICENSE": "licence text\n",
    "setup.py": "raise SystemExit('not to be run')\n",
    "detectron2/__init__.py": '__version__ = "0.5"\n',
    "detectron2/model_zoo/configs/a.yaml": "NUM: np.int\n",
    "detectron2/evaluation/coco_evaluation.py": (
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\nx = np.bool\n"
    ),
    "detectron2/data/transform.py": (
        "def f(interp=Image.LINEAR, dtype=np.int, other=np.int64, kind=np.integer):\n"
        "    return np.float(1), np.float32, np.bool_, np.str, np.strings, Image.BILINEAR\n"
    ),
    "detectron2/data/untouched.py": "np.interp, snp.int, Image.LINEARS\n",
    "projects/PointRend/point_rend/__init__.py": "",
    "projects/DeepLab/deeplab/__init__.py": "",
    "projects/DeepLab/deeplab/loss.py": "hard = True\n",
    "projects/DeepLab/train_net.py": "",
    "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
}


@pytest.fixture(scope="module")
def tool() -> types.ModuleType:
    """The tool as a module; tools/ is a folder of scripts, not a package."""
    return load_script(TOOL)


def make_sdist(folder: Path, files: dict[str, str], top: str = "detectron2_cdo-0.5") -> Path:
    path = folder / "detectron2_cdo-0.5.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def read_wheel(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


def as_bytes(files: dict[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in files.items()}


def test_mending_rewrites_exactly_the_dead_names(tool):
    package = tool.mend(as_bytes(SOURCE))
    text = package["detectron2/data/transform.py"].decode()
    assert (
        text
        == (
            "def f(interp=Image.BILINEAR, dtype=int, other=np.int64, kind=np.integer):\n"
            "    return float(1), np.float32, np.bool_, str, np.strings, Image.BILINEAR\n"
        )
        + tool.CHANGE_NOTICE
    )
    for name in ("detectron2/data/untouched.py", "detectron2/model_zoo/configs/a.yaml"):
        assert package[name] == SOURCE[name].encode()


def test_mending_takes_coco_evaluation_from_pycocotools(tool):
    text = tool.mend(as_bytes(SOURCE))["detectron2/evaluation/coco_evaluation.py"].decode()
    assert text.startswith("from pycocotools.cocoeval import COCOeval as COCOeval_opt\nx = bool\n")


@pytest.mark.parametrize("dead", ["Image.LINEAR", "np.int", "np.float", "np.str"])
def test_a_dead_name_that_is_not_there_is_an_error(tool, dead):
    name = "detectron2/data/transform.py"
    alive = SOURCE[name].replace(f"={dead},", "=x,").replace(f" {dead},", " x,")
    alive = alive.replace(f"{dead}(1)", "x")
    with pytest.raises(tool.InstallError, match=f"expected to find {dead}"):
        tool.mend(as_bytes(SOURCE | {name: alive}))


def test_a_line_that_is_not_there_is_an_error(tool):
    name = "detectron2/evaluation/coco_evaluation.py"
    with pytest.raises(tool.InstallError, match=f"once in {name}"):
        tool.mend(as_bytes(SOURCE | {name: "x = np.bool\n"}))


def test_a_dead_name_without_a_mend_is_an_error(tool):
    name = "detectron2/data/new.py"
    with pytest.raises(tool.InstallError, match=f"left in {name}"):
        tool.mend(as_bytes(SOURCE | {name: "x = np.object\n"}))


def test_placeholder_reports_versions_and_refuses_ops(tool):
    module = types.ModuleType("detectron2._C")
    exec(tool.COMPILED_OPS_PLACEHOLDER, module.__dict__)
    assert "pure-Python" in module.get_compiler_version()
    assert "pure-Python" in module.get_cuda_version()
    assert not hasattr(module, "__wrapped__")
    with pytest.raises(RuntimeError, match=r"_C\.nms_rotated.*without compiled ops"):
        _ = module.nms_rotated


def test_wheel_holds_the_package_and_its_projects(tool, tmp_path):
    path = tool.build_wheel(make_sdist(tmp_path, SOURCE), tmp_path / "wheels")
    names = set(read_wheel(path))
    info = "detectron2-0.5+pure.dist-info"
    assert path.name == "detectron2-0.5+pure-py3-none-any.whl"
    assert names == {
        "detectron2/__init__.py",
        "detectron2/_C.py",
        "detectron2/data/transform.py",
        "detectron2/data/untouched.py",
        "detectron2/evaluation/coco_evaluation.py",
        "detectron2/model_zoo/configs/a.yaml",
        "detectron2/projects/deeplab/__init__.py",
        "detectron2/projects/deeplab/loss.py",
        "detectron2/projects/panoptic_deeplab/__init__.py",
        "detectron2/projects/point_rend/__init__.py",
        *(f"{info}/{name}" for name in ("LICENSE", "METADATA", "RECORD", "WHEEL")),
    }


def test_wheel_record_has_hash_and_size_of_every_file(tool, tmp_path):
    files = read_wheel(tool.build_wheel(make_sdist(tmp_path, SOURCE), tmp_path))
    record = "detectron2-0.5+pure.dist-info/RECORD"
    rows = {
        name: (digest, size)
        for name, digest, size in csv.reader(io.StringIO(files[record].decode()))
    }
    assert rows.keys() == files.keys()
    assert rows.pop(record) == ("", "")
    for name, (digest, size) in rows.items():
        expected = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).decode()
        assert digest == "sha256=" + expected.rstrip("=")
        assert int(size) == len(files[name])


def test_wheel_is_the_same_each_time(tool, tmp_path):
    sdist = make_sdist(tmp_path, SOURCE)
    first, second = (tool.build_wheel(sdist, tmp_path / name).read_bytes() for name in "ab")
    assert first == second


def test_wheel_asks_for_pkg_resources_and_not_for_black(tool, tmp_path):
    files = read_wheel(tool.build_wheel(make_sdist(tmp_path, SOURCE), tmp_path))
    metadata = files["detectron2-0.5+pure.dist-info/METADATA"].decode()
    assert "Name: detectron2\nVersion: 0.5+pure\n" in metadata
    assert "Requires-Dist: setuptools<81\n" in metadata
    for dropped in ("black", "future", "pydot", "dataclasses"):
        assert f"Requires-Dist: {dropped}" not in metadata


@pytest.mark.parametrize("part", ["LICENSE", "projects/DeepLab/deeplab/__init__.py"])
def test_missing_part_of_the_release_is_an_error(tool, tmp_path, part):
    files = {name: text for name, text in SOURCE.items() if name != part}
    with pytest.raises(tool.InstallError, match=f"has no {part}"):
        tool.build_wheel(make_sdist(tmp_path, files), tmp_path)


@pytest.mark.parametrize("top", ["..", "/etc", "a/../.."])
def test_unsafe_paths_are_refused(tool, tmp_path, top):
    with pytest.raises(tool.InstallError, match="unsafe path"):
        tool.read_archive(make_sdist(tmp_path, SOURCE, top=top))


def test_truncated_archive_is_an_error(tool, tmp_path):
    sdist = make_sdist(tmp_path, SOURCE)
    sdist.write_bytes(sdist.read_bytes()[:100])
    with pytest.raises(tool.InstallError, match=r"cannot read detectron2_cdo-0\.5\.tar\.gz"):
        tool.read_archive(sdist)


def test_checksum_mismatch_names_both_sums(tool, tmp_path):
    path = tmp_path / "release.tar.gz"
    path.write_bytes(b"something else")
    actual = hashlib.sha256(b"something else").hexdigest()
    tool.check_sha256(path, actual)
    with pytest.raises(tool.InstallError) as error:
        tool.check_sha256(path, "0" * 64)
    assert f"expected {'0' * 64}, actual {actual}" in str(error.value)


@pytest.fixture
def pip_calls(tool, monkeypatch) -> list[tuple[str, ...]]:
    """Records what pip would have been asked, and lets every call succeed."""
    calls = []
    monkeypatch.setattr(tool, "run_pip", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(tool, "ensure_build_tools", lambda pip_args: None)
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tool, "installed_version", lambda: None)
    monkeypatch.delenv("DETECTRON2_SPEC", raising=False)
    return calls


def test_a_detectron2_that_imports_is_kept(tool, monkeypatch, pip_calls, caplog):
    monkeypatch.setenv("DETECTRON2_SPEC", "detectron2 @ somewhere")
    monkeypatch.setattr(tool, "probe_detectron2", lambda: (True, "0.6 at /site/detectron2"))
    with caplog.at_level(logging.INFO, logger="install_detectron2"):
        assert tool.main([]) == 0
    assert pip_calls == []
    assert caplog.messages == ["keeping detectron2 0.6 at /site/detectron2"]


def test_requirement_from_the_environment_is_installed(tool, monkeypatch, pip_calls):
    probes = iter([(False, "ModuleNotFoundError"), (True, "0.6 at /site/detectron2")])
    monkeypatch.setattr(tool, "probe_detectron2", lambda: next(probes))
    monkeypatch.setenv("DETECTRON2_SPEC", "detectron2 @ somewhere")
    assert tool.main(["--", "--constraint", "c.txt"]) == 0
    assert pip_calls == [
        ("install", "--no-build-isolation", "--constraint", "c.txt", "detectron2 @ somewhere")
    ]


def test_source_release_is_checked_repacked_and_installed(tool, monkeypatch, pip_calls, tmp_path):
    sdist = make_sdist(tmp_path, SOURCE)
    probes = iter([(False, "ModuleNotFoundError"), (True, "0.5 at /site/detectron2")])
    monkeypatch.setattr(tool, "probe_detectron2", lambda: next(probes))
    monkeypatch.setattr(tool, "download_source", lambda folder, pip_args: sdist)
    monkeypatch.setattr(tool, "SOURCE_SHA256", hashlib.sha256(sdist.read_bytes()).hexdigest())
    assert tool.main(["--wheel-dir", str(tmp_path)]) == 0
    wheel = str(tmp_path / "detectron2-0.5+pure-py3-none-any.whl")
    assert Path(wheel).exists()
    assert [call[-1] for call in pip_calls] == [wheel, wheel]


@pytest.mark.parametrize(
    ("installed", "fetched"), [("23.2.1", False), ("26.2.1", False), ("26.3", True)]
)
def test_a_pip_that_refuses_the_release_is_not_used_for_it(
    tool, monkeypatch, tmp_path, installed, fetched
):
    calls = []
    monkeypatch.setattr(
        tool, "run_pip", lambda *arguments, pip=None: calls.append((arguments, pip))
    )
    monkeypatch.setattr(tool.importlib.metadata, "version", lambda name: installed)
    (tmp_path / "release.tar.gz").touch()
    tool.download_source(tmp_path, ["--proxy", "p"])
    wheel = tmp_path / "pip-26.2.1-py3-none-any.whl"
    assert [pip for _, pip in calls] == ([None, wheel] if fetched else [None])
    assert all({"download", "--proxy"} <= set(arguments) for arguments, _ in calls)
    requirement = (tmp_path / "requirements.txt").read_text()
    assert requirement == f"detectron2-cdo==0.5 --hash=sha256:{tool.SOURCE_SHA256}\n"


def test_wrong_source_release_is_not_installed(tool, monkeypatch, pip_calls, tmp_path, caplog):
    monkeypatch.setattr(tool, "probe_detectron2", lambda: (False, "ModuleNotFoundError"))
    monkeypatch.setattr(tool, "download_source", lambda *_: make_sdist(tmp_path, SOURCE))
    assert tool.main([]) == 1
    assert pip_calls == []
    assert "is not the release that this tool knows" in caplog.messages[-1]


def test_an_installation_that_does_not_import_is_an_error(tool, monkeypatch, pip_calls, caplog):
    monkeypatch.setattr(tool, "probe_detectron2", lambda: (False, "ImportError: libGL.so.1"))
    monkeypatch.setenv("DETECTRON2_SPEC", "detectron2")
    assert tool.main([]) == 1
    assert caplog.messages[-1].endswith("does not import: ImportError: libGL.so.1")


@pytest.mark.parametrize("version", ["0.5+pure", "0.6"])
def test_a_broken_detectron2_is_replaced_only_if_it_is_ours(
    tool, monkeypatch, pip_calls, tmp_path, caplog, version
):
    ours = version == tool.WHEEL_VERSION
    probes = iter([(False, "ImportError: libGL.so.1"), (True, "0.5 at /site/detectron2")])
    monkeypatch.setattr(tool, "probe_detectron2", lambda: next(probes))
    monkeypatch.setattr(tool, "installed_version", lambda: version)
    monkeypatch.setattr(tool, "install_repacked", lambda *_: pip_calls.append(("repacked",)))
    assert tool.main([]) == (0 if ours else 1)
    assert pip_calls == ([("repacked",)] if ours else [])
    if not ours:
        assert "0.6 is installed but does not import: ImportError: libGL.so.1" in caplog.text


def test_missing_torch_is_one_message(tool, monkeypatch, pip_calls, caplog):
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: None)
    assert tool.main([]) == 1
    assert pip_calls == []
    assert caplog.messages[-1].startswith("error: install torch in ")


def test_failing_pip_is_an_error(tool, capfd):
    with pytest.raises(tool.InstallError, match="pip no-such-command failed with exit code"):
        tool.run_pip("no-such-command")
    assert "no-such-command" in capfd.readouterr().err
