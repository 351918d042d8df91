"""Outliers and cosines in a memory, and of what mining picks."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import INSTANT_TEST, ROOT, load_script
from torch.nn import functional as F

from d2_pixcontrast.contrast import ClassEntries
from d2_pixcontrast.engine import SemSegCheckpointer, Trainer, load_cfg

TOOL = ROOT / "tools" / "inspect_memory.py"
OPTS = ["MODEL.PIXEL_CONTRAST.MEMORY.ENABLED", "True"]
OPTS += ["MODEL.PIXEL_CONTRAST.MEMORY.PIXEL_SIZE", "20", "MODEL.WEIGHTS"]


@pytest.fixture(scope="module")
def tool():
    return load_script(TOOL)


def bank(seed=0):
    """Two stores of three classes, not all full, with rows around the means of their classes."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(3, 1, 4, generator=g)
    stores = []
    for size, fill in ((12, [12, 7, 0]), (9, [9, 0, 5])):
        rows = F.normalize(means + 1.2 * torch.randn(3, size, 4, generator=g), dim=2)
        stores.append(ClassEntries(rows, torch.tensor(fill)))
    return stores


@pytest.mark.parametrize("fraction", [0.1, 0.34, 1.0])
def test_shares_and_cosines_are_those_of_a_loop(tool, fraction):
    stores = bank()
    entries = [
        (rows[c, m], c) for rows, fill in stores for c in range(3) for m in range(int(fill[c]))
    ]
    means = [F.normalize(sum(r for r, c in entries if c == k), dim=0) for k in range(3)]
    outlier = [int(torch.stack([r @ m for m in means]).argmax()) != c for r, c in entries]
    found = tool.inspect(stores, fraction)
    assert found["entries"] == len(entries) == 33
    for k in range(3):
        own = [o for o, (_, c) in zip(outlier, entries, strict=True) if c == k]
        assert found["classes"][k] == pytest.approx(sum(own) / len(own))
    picked = {"positives": [], "hard_positives": [], "negatives": [], "hard_negatives": []}
    for i, (row, c) in enumerate(entries):
        if outlier[i]:
            continue
        cosines = [(float(row @ r), outlier[j], k) for j, (r, k) in enumerate(entries) if j != i]
        for name, sign, pairs in (
            ("positives", 1, [x for x in cosines if x[2] == c]),
            ("negatives", -1, [x for x in cosines if x[2] != c]),
        ):
            pairs.sort(key=lambda x: sign * x[0])
            count = -int(-(len(pairs) * fraction - 1e-9) // 1)
            picked[name] += pairs
            picked[f"hard_{name}"] += pairs[:count]
    for name, pairs in picked.items():
        cosines, flags, _ = zip(*pairs)
        assert found[name] == pytest.approx(sum(flags) / len(flags)), name
        assert found["cosine"][name] == pytest.approx(sum(cosines) / len(cosines), abs=1e-6), name
    assert 0 < found["positives"] < 1
    assert fraction == 1 or found["hard_positives"] > found["positives"]


def test_an_empty_memory_is_named(tool):
    rows = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="the memory is empty"):
        tool.inspect([ClassEntries(rows, torch.zeros(2, dtype=torch.int64))], 0.1)


def test_of_a_checkpoint(tmp_path):
    cfg = load_cfg(str(INSTANT_TEST), [*OPTS, ""])
    model = Trainer.build_model(cfg)
    memory = model.sem_seg_head.terms["PixelContrast"].bank
    memory.pixel.rows.copy_(F.normalize(torch.randn(memory.pixel.rows.shape), dim=2))
    memory.pixel.written.fill_(15)
    SemSegCheckpointer(model, str(tmp_path)).save("model_0000001")
    command = [sys.executable, str(TOOL), "--config-file", str(INSTANT_TEST)]
    command += ["--json", str(tmp_path / "x.json"), *OPTS]
    done = subprocess.run(
        [*command, str(tmp_path / "model_0000001.pth")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "120 entries" in done.stdout and "the hardest 10% of the positives" in done.stdout
    assert len(json.loads((tmp_path / "x.json").read_text())["classes"]) == 8
    done = subprocess.run(command[:-5], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("inspect_memory.py: the config has no")
