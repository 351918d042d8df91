"""The gradient of each loss alone, beside that of the cross-entropy."""

import subprocess
import sys

import pytest
import torch
from conftest import INSTANT_TEST, ROOT, load_script

from d2_pixcontrast.engine import load_cfg

TOOL = ROOT / "tools" / "measure_gradients.py"
OPTS = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"]


@pytest.fixture(scope="module")
def tool():
    return load_script(TOOL)


def measured(tool, *opts):
    torch.manual_seed(0)
    return tool.measure(load_cfg(str(INSTANT_TEST), [*OPTS, *opts]), batches=1)


def test_the_weight_of_a_loss_scales_its_gradient_and_not_its_direction(tool):
    once = measured(tool, "MODEL.PIXEL_CONTRAST.LOSS_WEIGHT", "0.1")
    twice = measured(tool, "MODEL.PIXEL_CONTRAST.LOSS_WEIGHT", "0.2")
    assert set(once) == {"loss_sem_seg", "loss_pixel_contrast"}
    for part in tool.PARTS:
        reference, term = (once[loss][part] for loss in ("loss_sem_seg", "loss_pixel_contrast"))
        assert reference["ratio"] == 1 and reference["cosine"] == pytest.approx(1, abs=1e-5)
        assert term["norm"] > 0 and abs(term["cosine"]) < 1
        other = twice["loss_pixel_contrast"][part]
        assert other["norm"] == pytest.approx(2 * term["norm"], rel=1e-4)
        assert other["cosine"] == pytest.approx(term["cosine"], abs=1e-4)


def test_gradients_are_those_of_each_loss_alone(tool):
    model = torch.nn.ModuleDict(
        {
            "backbone": torch.nn.Linear(1, 1, bias=False),
            "sem_seg_head": torch.nn.ModuleDict({"decoder": torch.nn.Linear(1, 1, bias=False)}),
        }
    )
    first, second = model["backbone"].weight, model["sem_seg_head"]["decoder"].weight
    losses = {"loss_sem_seg": (3 * first + 5 * second).sum(), "loss_other": (-4 * first).sum()}
    found = tool.gradients(model, losses)
    assert found["loss_sem_seg"]["decoder"] == {"norm": 5, "ratio": 1, "cosine": 1}
    assert found["loss_other"]["backbone"] == {
        "norm": 4,
        "ratio": pytest.approx(4 / 3),
        "cosine": -1,
    }
    assert found["loss_other"]["decoder"] == {"norm": 0, "ratio": 0, "cosine": 0}


def test_a_missing_config_is_one_line():
    command = [sys.executable, str(TOOL), "--config-file", "no_such.yaml"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "no_such.yaml" in result.stderr.splitlines()[-1]
