"""What several tests share."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
INSTANT_TEST = CONFIGS / "quick_schedules" / "shapes_pixcontrast_instant_test.yaml"

# Two processes with two threads each on two cores spend most of their time waiting.
torch.set_num_threads(min(torch.get_num_threads(), 2))


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
