"""tools/benchmark_evaluator.py on a tiny problem; it compares the scores itself."""

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_evaluator.py"


def test_ratios(tmp_path):
    options = ["--size", "100", "150", "--iterations", "2", "--json", tmp_path / "out.json"]
    run = subprocess.run([sys.executable, TOOL, *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads((tmp_path / "out.json").read_text())
    assert json.loads(run.stdout) == result
    seconds, ratios = result["seconds per image"], result["detectron2 / ours"]
    assert ratios["ours"] == seconds["detectron2"] / seconds["ours"]
    assert set(seconds) == {"detectron2", "ours", "ours, boundary IoU"}
