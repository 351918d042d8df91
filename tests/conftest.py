"""What several tests share."""

import hashlib
import importlib.util
import os
import sys
import uuid
from pathlib import Path
from types import ModuleType

# Where cores have other work, too, threads that spin while they wait for each other make some
# operators hundreds of times slower. OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
INSTANT_TEST = CONFIGS / "quick_schedules" / "shapes_pixcontrast_instant_test.yaml"

# The drawn data set of this code alone: what is in the home folder may be that of another version.
SHAPES = sorted((ROOT / "d2_pixcontrast" / "data" / "datasets").glob("shapes*.py"))
DRAWN_BY = hashlib.sha256(b"".join(path.read_bytes() for path in SHAPES)).hexdigest()[:12]
os.environ.setdefault("PIXCONTRAST_CACHE", str(ROOT / ".pytest_cache" / f"shapes-{DRAWN_BY}"))

# Two processes with two threads each on two cores spend most of their time waiting.
torch.set_num_threads(min(torch.get_num_threads(), 2))


def load_script(path: Path) -> ModuleType:
    """A file of a folder that is no package, anew; beside it are modules, as when it is run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def environment_folder(variable: str) -> Path:
    """The folder that an environment variable names; the test is skipped where it is unset."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


@pytest.fixture
def camvid_root() -> Path:
    root = environment_folder("DETECTRON2_DATASETS")
    if not (root / "camvid").is_dir():
        pytest.skip("DETECTRON2_DATASETS has no camvid")
    return root


@pytest.fixture
def weights_dir() -> Path:
    return environment_folder("PIXCONTRAST_WEIGHTS_DIR")


@pytest.fixture
def small_cfg(tmp_path):
    """The instant test's config, writing below the test's own folder."""
    from d2_pixcontrast.engine import load_cfg

    return load_cfg(str(INSTANT_TEST), ["OUTPUT_DIR", str(tmp_path / "output")])


def save_image(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Write a smooth image of (height, width) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def made_up_dataset(tmp_path_factory):
    """(name, folder) of a registered data set of 8 classes: folder/images/N.png, labels/N.png."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    folder, name, dicts = tmp_path_factory.mktemp("data"), f"made_up_{uuid.uuid4().hex}", []
    (folder / "labels").mkdir()
    for index, size in enumerate([(37, 53), (64, 40), (50, 96)]):
        image, label = (folder / kind / f"{index}.png" for kind in ("images", "labels"))
        save_image(image, size, index)
        ids = np.random.RandomState(index).randint(0, 8, size).astype(np.uint8)
        ids[:5] = 255
        Image.fromarray(ids).save(label)
        dicts.append({"file_name": str(image), "sem_seg_file_name": str(label)})
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(stuff_classes=[*"abcdefgh"], ignore_label=255)
    yield name, folder
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
