"""What the tool says about memories whose answer is known."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import CONFIGS, INSTANT_TEST, ROOT, load_script

from d2_pixcontrast.contrast import MemoryEntries
from d2_pixcontrast.engine import SemSegCheckpointer, Trainer, load_cfg
from d2_pixcontrast.modeling.aggregation.attention import GridAttention

TOOL = ROOT / "tools" / "inspect_dataset_memory.py"
MCIBI = CONFIGS / "quick_schedules" / "shapes_mcibi_instant_test.yaml"


@pytest.fixture(scope="module")
def tool():
    return load_script(TOOL)


def test_cosines_are_those_of_filled_entries_of_different_classes(tool):
    rows = torch.tensor([[2.0, 0], [1, 0.1], [3, 4], [0, 5], [9, 9]])
    labels = torch.tensor([0, 0, 1, 2, 2])
    entries = MemoryEntries(rows, labels, torch.tensor([True, False, True, True, False]))
    found = tool.cosines(entries)
    assert found == pytest.approx({"lowest": 0, "mean": (0.6 + 0.8) / 3, "highest": 0.8})
    with pytest.raises(ValueError, match="the memory is empty"):
        tool.cosines(entries._replace(mask=labels == 0))


@pytest.mark.parametrize("scale", [0.0, 3.0, 1e4])
def test_spread_is_that_of_a_loop(tool, scale):
    """From a uniform attention to one on the nearest position."""
    torch.manual_seed(0)
    attention = GridAttention(
        query_channels=6, source_channels=5, key_channels=4, out_channels=3, norm="BN"
    ).eval()
    asking, source = torch.randn(1, 6, 3, 4), torch.randn(1, 5, 5, 2)
    attention.query[1].norm.weight.data.mul_(scale)
    queries = attention.query(asking)[0].flatten(1).t()
    keys = attention.key(source)[0].flatten(1).t()
    covered = []
    for query in queries:
        weights = torch.stack([query @ key / 2 for key in keys]).softmax(0)
        covered.append(torch.exp(-torch.xlogy(weights, weights).sum()).item() / 10)
    found = tool.spread(attention, asking, source)
    assert found == pytest.approx(sum(covered) / len(covered), rel=1e-4)
    assert scale or found == pytest.approx(1)
    assert 0.1 - 1e-4 <= found <= 1 + 1e-4


@pytest.mark.parametrize("factor, share", [(0.0, 0.0), (1.0, 0.5), (3.0, 0.9)])
def test_the_share_is_that_of_the_variance(tool, factor, share):
    torch.manual_seed(0)
    fuse = torch.nn.Conv2d(8, 5, 3, padding=1)
    fuse.weight.data[:, 4:] = fuse.weight[:, :4]
    pixels = torch.randn(1, 4, 6, 7)
    found = tool.memory_share(fuse, torch.cat([pixels, pixels * factor], dim=1))
    assert found == pytest.approx(share, abs=1e-5)


def test_of_a_checkpoint(tmp_path):
    cfg = load_cfg(str(MCIBI))
    model = Trainer.build_model(cfg)
    memory = model.sem_seg_head.aggregation.memory
    memory.entries.normal_()
    memory.filled.fill_(True)
    SemSegCheckpointer(model, str(tmp_path)).save("model_0000001")
    command = [sys.executable, str(TOOL), "--config-file", str(MCIBI), "--images", "2"]
    command += ["--json", str(tmp_path / "x.json"), "MODEL.WEIGHTS"]
    done = subprocess.run(
        [*command, str(tmp_path / "model_0000001.pth")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| share of the memory |" in done.stdout
    found = json.loads((tmp_path / "x.json").read_text())
    assert 0 < found["memory_share"] < 1 and 0 < found["spread"] <= 1
    command[3] = str(INSTANT_TEST)
    done = subprocess.run([*command, "x.pth"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("inspect_dataset_memory.py: the config has no MODEL.DATASET_MEM")
