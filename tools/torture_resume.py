#!/usr/bin/env python
"""Kills a training again and again, and compares how it ends with one that was left alone.

Each trial trains the drawn shapes for a few iterations with all terms and memories on, is killed
(SIGKILL) at random moments, resumed with another number of loader workers, and has to end with
bit-equal weights, memories, optimiser and metrics.json. The last line is ``N/N equal``. Example::

    python tools/torture_resume.py --kills 20
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "quick_schedules" / "shapes_mcibi_instant_test.yaml"
EVERYTHING = {
    "MODEL.SEM_SEG_HEAD.TERMS": ["PixelContrast", "Contextrast", "MultiScaleContrast"],
    "MODEL.TIMM.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.PIXEL_CONTRAST.NEGATIVES": "bane",
    "MODEL.PIXEL_CONTRAST.MINING.MODE": "random",
    "MODEL.PIXEL_CONTRAST.MEMORY.ENABLED": True,
    "MODEL.PIXEL_CONTRAST.MEMORY.REGION_SIZE": 64,
    "MODEL.PIXEL_CONTRAST.MEMORY.PIXEL_SIZE": 128,
    "MODEL.DATASET_MEMORY.DROPOUT": 0.1,
}
VOLATILE = {"time", "data_time", "eta_seconds", "rank_data_time"}  # how long things took


def command(output: Path, workers: int, args) -> list[str]:
    options = {
        "OUTPUT_DIR": output,
        "SOLVER.MAX_ITER": args.iterations,
        "SOLVER.CHECKPOINT_PERIOD": args.checkpoint_period,
        "TEST.EVAL_PERIOD": args.iterations // 2,
        "TEST.EXPECTED_RESULTS": "[]",
        "MODEL.SEM_SEG_HEAD.SCALARS_PERIOD": 5,
        "DATALOADER.NUM_WORKERS": workers,
    }
    if args.config_file == CONFIG:
        options.update(EVERYTHING)
    flat = [str(part) for pair in options.items() for part in pair]
    script = [sys.executable, str(ROOT / "train_net.py"), "--resume"]
    return [*script, "--config-file", str(args.config_file), *flat, *args.opts]


def start(output: Path, workers: int, args) -> subprocess.Popen:
    output.mkdir(parents=True, exist_ok=True)
    with (output / "console.log").open("ab") as log:
        return subprocess.Popen(
            command(output, workers, args),
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,  # so that its loader workers die with it
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def finish(output: Path, workers: int, args) -> float:
    """Train to the end; the seconds that it took.

    Raises:
        RuntimeError: it failed.
    """
    begin = time.monotonic()
    code = start(output, workers, args).wait()
    if code:
        raise RuntimeError(f"a run ended with {code}; see {output / 'console.log'}")
    return time.monotonic() - begin


def kill_once(output: Path, workers: int, delay: float, args) -> bool:
    """Train, and kill everything after ``delay`` seconds. False if it was done before that."""
    process = start(output, workers, args)
    try:
        process.wait(timeout=delay)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def differences(output: Path, reference: Path) -> list[str]:
    """What differs between the ends of two runs; empty = nothing."""
    found = []
    ends = [
        torch.load(folder / "model_final.pth", weights_only=True, map_location="cpu")
        for folder in (output, reference)
    ]
    for part in ("model", "trainer", "scheduler"):
        if part in ends[0] or part in ends[1]:
            found += _different(ends[0].get(part), ends[1].get(part), part)
    records = [read_records(folder / "metrics.json") for folder in (output, reference)]
    iterations = [r["iteration"] for r in records[0]]
    if len(set(iterations)) != len(iterations):
        found.append("metrics.json repeats an iteration")
    if records[0] != records[1]:
        found.append("metrics.json")
    return found


def read_records(path: Path) -> list[dict]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in VOLATILE} for record in records]


def _different(a, b, name: str) -> list[str]:
    if name.rpartition("/")[2] in VOLATILE:
        return []
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [name]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{name}: keys"]
        return [d for key in a for d in _different(a[key], b[key], f"{name}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{name}: length"]
        return [d for i, pair in enumerate(zip(a, b)) for d in _different(*pair, f"{name}/{i}")]
    return [] if a == b or (a != a and b != b) else [name]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="in all trials together")
    parser.add_argument("--kills-per-trial", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--checkpoint-period", type=int, default=7)
    parser.add_argument("--config-file", type=Path, default=CONFIG, help="default: everything")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--output", type=Path, help="keep the runs there")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs for all runs")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        whole = finish(folder / "reference", 0, args)
        trials = equal = kills = 0
        while kills < args.kills:
            output = folder / f"trial_{trials}"
            for _ in range(args.kills_per_trial):
                killed = kill_once(
                    output, draw.choice([0, 1, 2]), draw.uniform(0.2, 1) * whole, args
                )
                kills += killed
            finish(output, draw.choice([0, 1, 2]), args)
            found = differences(output, folder / "reference")
            trials += 1
            equal += not found
            what = "equal" if not found else f"DIFFERENT: {', '.join(found[:5])}"
            sys.stdout.write(f"trial {trials}, {kills} kills so far: {what}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{equal}/{trials} equal\n")
    sys.exit(equal != trials)


if __name__ == "__main__":
    main()
