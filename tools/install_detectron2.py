#!/usr/bin/env python3
"""Give the running Python a detectron2: keep one that imports, or install one.

PyPI has no ``detectron2``. In this order:

1. a detectron2 that imports is kept;
2. where ``DETECTRON2_SPEC`` is set, that pip requirement is installed (the way to upstream's own
   main branch);
3. else PyPI's ``detectron2-cdo`` 0.5 is fetched. It is upstream's v0.5 Python without the C++
   sources, so pip cannot build it: it is repacked as a pure-Python wheel, and the few names in it
   that today's numpy and Pillow no longer have are rewritten in the copy. Semantic segmentation
   needs none of the missing compiled ops.

torch and torchvision must be there already. Usage::

    python tools/install_detectron2.py [--wheel-dir DIR] [--force] [-- ARGUMENTS FOR PIP]
"""

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

logger = logging.getLogger("install_detectron2")

SOURCE_NAME = "detectron2-cdo"
SOURCE_VERSION = "0.5"
SOURCE_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"

# The last pip that takes the release. Later ones refuse it because one of its extras, which nobody
# asks for here, names a requirement by its address.
DOWNLOAD_PIP = "26.2.1"

# The local tag tells this build from an official one in `pip list`.
WHEEL_VERSION = "0.5+pure"
DIST_INFO = f"detectron2-{WHEEL_VERSION}.dist-info"
WHEEL_NAME = f"detectron2-{WHEEL_VERSION}-py3-none-any.whl"

# Where upstream's setup.py puts its small projects.
PROJECTS = {
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}

# detectron2.model_zoo imports pkg_resources, which later setuptools do not have.
SETUPTOOLS = "setuptools<81"

# What upstream's setup.py requires, without future and pydot (both for caffe2), dataclasses (in
# Python since 3.7) and black (pinned to a beta, used by one pretty-printer).
REQUIRES = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.6",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    SETUPTOOLS,
)

# Names that numpy and Pillow removed, each with what upstream's main branch writes today.
DEAD_NAMES = {
    "Image.LINEAR": "Image.BILINEAR",
    "np.int": "int",
    "np.float": "float",
    "np.bool": "bool",
    "np.str": "str",
}

# Wider than DEAD_NAMES: also the removed names that the pinned release does not use.
LEFT_OVER = re.compile(
    r"\b(?:np|numpy)\.(?:int|float|bool|str|object|complex|long|unicode)\b"
    r"|\bImage\.(?:LINEAR|CUBIC|ANTIALIAS)\b"
)

# COCO evaluation takes a compiled class by default; pycocotools' own gives the same numbers.
LINE_MENDS = {
    "detectron2/evaluation/coco_evaluation.py": (
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "from pycocotools.cocoeval import COCOeval as COCOeval_opt\n",
    ),
}

CHANGE_NOTICE = (
    "\n# Changed by d2_pixcontrast's tools/install_detectron2.py, which says what and why.\n"
)

COMPILED_OPS_PLACEHOLDER = '''\
"""Stands for detectron2's compiled ops, which this pure-Python build does not have."""


def get_compiler_version():
    return "none (pure-Python build)"


def get_cuda_version():
    return "none (pure-Python build)"


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise RuntimeError(
        f"detectron2._C.{name}: this detectron2 is a pure-Python build without compiled ops "
        "(deformable convolution, rotated boxes, fast COCO evaluation). "
        "Install detectron2 from source to use them."
    )
'''

METADATA = """\
Metadata-Version: 2.1
Name: detectron2
Version: {version}
Summary: Detectron2 {source_version} as a pure-Python wheel, without its compiled ops
Home-page: https://github.com/facebookresearch/detectron2
Author: FAIR
License: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.11
{requires}

Repacked from {source} {source_version} by d2_pixcontrast's tools/install_detectron2.py.
Changed files say so in their last line.
"""

WHEEL_TAGS = """\
Wheel-Version: 1.0
Generator: d2_pixcontrast install_detectron2
Root-Is-Purelib: true
Tag: py3-none-any
"""

# Importing the engine pulls in data, modeling and evaluation, where an old release fails.
PROBE = """
import detectron2, detectron2.engine
print(detectron2.__version__, "at", list(detectron2.__path__)[0])
"""


class InstallError(RuntimeError):
    """The installation cannot go on; the message says why in full."""


def probe_detectron2() -> tuple[bool, str]:
    """Import detectron2 in a new interpreter.

    Returns:
        Whether it imports, and its version and path, or the last line of what went wrong.
    """
    # -P keeps the working directory off sys.path: a checkout there is not an installation.
    result = subprocess.run([sys.executable, "-P", "-c", PROBE], capture_output=True, text=True)
    works = result.returncode == 0
    lines = (result.stdout if works else result.stderr).strip().splitlines()
    return works, lines[-1] if lines else f"exit code {result.returncode}"


def installed_version() -> str | None:
    """The version of the detectron2 that pip knows of here, whether it imports or not."""
    try:
        return importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return None


def run_pip(*arguments: str, pip: Path | None = None) -> None:
    """Run pip of this interpreter, or the one in a wheel; its output goes to the terminal.

    Raises:
        InstallError: pip failed.
    """
    command = ["-m", "pip"] if pip is None else [f"{pip}/pip"]
    result = subprocess.run([sys.executable, *command, *arguments])
    if result.returncode:
        # Not the whole command line: an index URL in it may hold a password.
        raise InstallError(
            f"pip {arguments[0]} failed with exit code {result.returncode}, "
            "its own message stands above"
        )


def ensure_build_tools(pip_args: list[str]) -> None:
    """Install setuptools and wheel where they are missing: builds below share this environment.

    Raises:
        InstallError: pip failed.
    """
    if not all(importlib.util.find_spec(name) for name in ("pkg_resources", "wheel")):
        run_pip("install", "--quiet", *pip_args, SETUPTOOLS, "wheel")


def release_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (26, 2, 1) for 26.2.1rc1."""
    return tuple(int(number) for number in re.match(r"[\d.]*\d", version).group().split("."))


def download_pip(folder: Path, pip_args: list[str]) -> Path | None:
    """Fetch DOWNLOAD_PIP as a wheel (pip runs from one), or None where the installed pip will do.

    Raises:
        InstallError: pip failed.
    """
    installed = importlib.metadata.version("pip")
    if release_numbers(installed) <= release_numbers(DOWNLOAD_PIP):
        return None
    logger.info("pip %s refuses the release, fetching it with pip %s", installed, DOWNLOAD_PIP)
    run_pip(
        *("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)),
        *pip_args,
        f"pip=={DOWNLOAD_PIP}",
    )
    return folder / f"pip-{DOWNLOAD_PIP}-py3-none-any.whl"


def download_source(folder: Path, pip_args: list[str]) -> Path:
    """Fetch the source release into ``folder``, and return its path.

    Raises:
        InstallError: pip failed, or left something else than one archive.
    """
    # pip runs the release's setup.py. With the hash in the requirement it checks the file before
    # that. That setup.py imports torch, hence no build isolation.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SOURCE_NAME}=={SOURCE_VERSION} --hash=sha256:{SOURCE_SHA256}\n")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", SOURCE_NAME]
    target = ["--dest", str(folder), "--requirement", str(requirements)]
    run_pip("download", *options, *target, *pip_args, pip=download_pip(folder, pip_args))
    archives = sorted(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise InstallError(f"pip download left {len(archives)} .tar.gz files, expected one")
    return archives[0]


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file with its pinned checksum.

    Raises:
        InstallError: they differ.
    """
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{path.name} is not the release that this tool knows: "
            f"sha256 expected {expected}, actual {actual}"
        )


def read_archive(path: Path) -> dict[str, bytes]:
    """Read the regular files of a source release, by their path below its top folder.

    Nothing is unpacked to the disk, so no member of the archive can write anywhere.

    Raises:
        InstallError: a path leads out of the archive, or the archive cannot be read.
    """
    files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise InstallError(f"{path.name} holds an unsafe path: {member.name}")
                if member.isfile():
                    files["/".join(name.parts[1:])] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InstallError(f"cannot read {path.name}: {error}") from error
    return files


def select_package(files: dict[str, bytes]) -> dict[str, bytes]:
    """Keep the package and its three projects, under the paths at which they are imported.

    Raises:
        InstallError: a part is missing.
    """
    moves = {"detectron2/": "detectron2/", **PROJECTS}
    package = {}
    for source, target in moves.items():
        if f"{source}__init__.py" not in files:
            raise InstallError(f"the source release has no {source}__init__.py")
        names = [name for name in files if name.startswith(source)]
        package |= {target + name.removeprefix(source): files[name] for name in names}
    return package


def replace_dead_names(texts: dict[str, str]) -> set[str]:
    """Rewrite DEAD_NAMES in place; returns the files that were changed.

    Raises:
        InstallError: a name is nowhere to be found.
    """
    changed = set()
    for old, new in DEAD_NAMES.items():
        pattern = re.compile(rf"\b{re.escape(old)}\b")
        found = {name for name in texts if pattern.search(texts[name])}
        if not found:
            raise InstallError(f"expected to find {old} in the source release, found none")
        for name in found:
            texts[name] = pattern.sub(new, texts[name])
        changed |= found
    return changed


def replace_lines(texts: dict[str, str]) -> set[str]:
    """Rewrite LINE_MENDS in place; returns the files that were changed.

    Raises:
        InstallError: a line does not stand in its file exactly once.
    """
    for name, (old, new) in LINE_MENDS.items():
        if texts.get(name, "").count(old) != 1:
            raise InstallError(f"expected to find this line once in {name}: {old.strip()}")
        texts[name] = texts[name].replace(old, new)
    return set(LINE_MENDS)


def mend(package: dict[str, bytes]) -> dict[str, bytes]:
    """Mend a copy of the package, and add the placeholder for the compiled ops.

    Every changed file says so in its last line, as the licence asks.

    Raises:
        InstallError: something that should be changed is not there, or a dead name is left.
    """
    texts = {name: data.decode("utf-8") for name, data in package.items() if name.endswith(".py")}
    changed = replace_dead_names(texts) | replace_lines(texts)
    left = sorted(name for name in texts if LEFT_OVER.search(texts[name]))
    if left:
        raise InstallError(f"names that numpy or Pillow removed are left in {', '.join(left)}")
    for name in changed:
        texts[name] += CHANGE_NOTICE
    texts["detectron2/_C.py"] = COMPILED_OPS_PLACEHOLDER
    return package | {name: text.encode("utf-8") for name, text in texts.items()}


def record_line(name: str, data: bytes) -> str:
    """One line of a wheel's RECORD, as the binary distribution format (PEP 427) has it."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"


def wheel_files(archive: Path) -> dict[str, bytes]:
    """All files of the repacked wheel, in their order.

    Raises:
        InstallError: the release is not what this tool knows how to repack.
    """
    source = read_archive(archive)
    files = dict(sorted(mend(select_package(source)).items()))
    if "LICENSE" not in source:
        raise InstallError("the source release has no LICENSE")
    metadata = METADATA.format(
        version=WHEEL_VERSION,
        source=SOURCE_NAME,
        source_version=SOURCE_VERSION,
        requires="\n".join(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
    )
    files[f"{DIST_INFO}/LICENSE"] = source["LICENSE"]
    files[f"{DIST_INFO}/METADATA"] = metadata.encode()
    files[f"{DIST_INFO}/WHEEL"] = WHEEL_TAGS.encode()
    record = [record_line(name, data) for name, data in files.items()]
    files[f"{DIST_INFO}/RECORD"] = "".join([*record, f"{DIST_INFO}/RECORD,,\n"]).encode()
    return files


def build_wheel(archive: Path, folder: Path) -> Path:
    """Repack a source release as a wheel in ``folder``. The same input gives the same bytes.

    Raises:
        InstallError: the release is not what this tool knows how to repack.
    """
    files = wheel_files(archive)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WHEEL_NAME
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # Unix, so that the permissions in the next line count
            info.external_attr = 0o100644 << 16
            wheel.writestr(info, data)
    return path


def install_repacked(wheel_dir: Path | None, pip_args: list[str]) -> None:
    """Fetch, check, repack and install the source release.

    Raises:
        InstallError: one of these failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        archive = download_source(Path(temporary), pip_args)
        check_sha256(archive, SOURCE_SHA256)
        wheel = build_wheel(archive, wheel_dir or Path(temporary))
        logger.info("installing %s and its requirements", wheel if wheel_dir else wheel.name)
        # First the package itself, over whatever is there: pip would leave a broken one of the same
        # version alone. Then the rest of its requirements.
        run_pip("install", "--quiet", "--force-reinstall", "--no-deps", *pip_args, str(wheel))
        run_pip("install", "--quiet", *pip_args, str(wheel))


def install(force: bool, wheel_dir: Path | None, pip_args: list[str]) -> None:
    """Do what the head of this file says.

    Raises:
        InstallError: with the reason, where there is no working detectron2 in the end.
    """
    for requirement in ("torch", "torchvision"):
        if importlib.util.find_spec(requirement) is None:
            raise InstallError(f"install {requirement} in {sys.prefix} first, detectron2 needs it")
    works, what = probe_detectron2()
    if works and not force:
        logger.info("keeping detectron2 %s", what)
        return
    spec = os.environ.get("DETECTRON2_SPEC", "").strip()
    version = installed_version()
    if version not in (None, WHEEL_VERSION) and not spec and not force:
        # Somebody's own build: what keeps it from importing may be something else, e.g. a library.
        raise InstallError(
            f"detectron2 {version} is installed but does not import: {what}. "
            "Mend it, or replace it with --force or DETECTRON2_SPEC"
        )
    logger.info("replacing detectron2 %s" if works else "no detectron2 imports here (%s)", what)
    ensure_build_tools(pip_args)
    if spec:
        logger.info("installing DETECTRON2_SPEC: %s", spec)
        # No isolation, because upstream's setup.py imports torch.
        run_pip("install", "--no-build-isolation", *pip_args, spec)
    else:
        logger.info("repacking %s %s as a pure-Python wheel", SOURCE_NAME, SOURCE_VERSION)
        install_repacked(wheel_dir, pip_args)
    works, what = probe_detectron2()
    if not works:
        raise InstallError(f"detectron2 was installed, but does not import: {what}")
    logger.info("installed detectron2 %s", what)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and install; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheel-dir", type=Path, help="keep the repacked wheel in this folder")
    parser.add_argument("--force", action="store_true", help="replace a detectron2 that imports")
    parser.add_argument(
        "pip_args",
        nargs="*",
        metavar="PIP_ARG",
        help="after --: arguments of both `pip download` and `pip install`, e.g. --constraint FILE",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        install(args.force, args.wheel_dir, args.pip_args)
    except InstallError as error:
        logger.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
