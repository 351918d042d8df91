#!/usr/bin/env python
"""Trains a grid of (method, seed), and reports the methods beside their baseline.

A run that has finished is kept at once as RESULTS/runs/<method>_<seed>.json and not trained again,
and one that was interrupted goes on from its last checkpoint: call it again until it says that
nothing is left. Several callers on one machine leave each other's runs alone. A run of another
recipe than the grid's is refused, not mixed with the rest. Examples::

    python tools/run_experiments.py configs/experiments/camvid_cpu.yaml --methods ce pixcontrast
    python tools/run_experiments.py configs/experiments/camvid_cpu.yaml --jobs 2
    python tools/run_experiments.py configs/experiments/camvid_cpu.yaml --cost 12
    python tools/run_experiments.py configs/experiments/camvid_cpu.yaml --report
    python tools/run_experiments.py configs/experiments/camvid_cpu.yaml --against contextrast
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from experiment_records import check_kept, lock, recipe, record_start, write_json
from experiment_report import compare, write_report

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "timm", "numpy", "fvcore")
METRIC = "sem_seg/"  # what the evaluator's numbers start with in metrics.json


@dataclass(frozen=True)
class Method:
    """One way of training.

    Attributes:
        config: file.
        opts: KEY VALUE pairs that follow those of all methods.
    """

    config: Path
    opts: list[str]

    @classmethod
    def parse(cls, node: str | dict) -> "Method":
        """A file below configs/, alone or as CONFIG beside OPTS.

        Raises:
            ValueError: neither of the two.
        """
        node = {"CONFIG": node, "OPTS": []} if isinstance(node, str) else node
        if not isinstance(node, dict) or set(node) != {"CONFIG", "OPTS"}:
            raise ValueError(f"METHODS: a config file or CONFIG and OPTS are needed, got {node}")
        return cls(ROOT / "configs" / node["CONFIG"], [str(part) for part in node["OPTS"]])


@dataclass(frozen=True)
class Grid:
    """An experiment: what is trained, and where its results are kept.

    Attributes:
        methods: by name.
        seeds: each method is trained once with each.
        baseline: the method that the others are compared with.
        opts: KEY VALUE pairs for every run.
        results: folder of the kept results.
        output: folder of checkpoints and logs.
    """

    methods: dict[str, Method]
    seeds: list[int]
    baseline: str
    opts: list[str]
    results: Path
    output: Path

    @classmethod
    def load(cls, path: Path) -> "Grid":
        """
        Raises:
            ValueError: it is no YAML, a key is missing, unknown or of another form, a config file
                does not exist or is not of this repository, or a seed is there twice.
        """
        try:
            node = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        keys = {"METHODS", "SEEDS", "BASELINE", "OPTS", "RESULTS", "OUTPUT"}
        if not isinstance(node, dict) or set(node) != keys:
            raise ValueError(f"{path} needs the keys {sorted(keys)}, it has {sorted(node or {})}")
        for key, kind, form in (
            ("METHODS", dict, "names and methods"),
            ("SEEDS", list, "a list"),
            ("OPTS", list, "a list"),
        ):
            if not isinstance(node[key], kind):
                raise ValueError(f"{path}: {key} has to be {form}, not {node[key]!r}")
        methods = {name: Method.parse(method) for name, method in node["METHODS"].items()}
        missing = [str(m.config) for m in methods.values() if not m.config.is_file()]
        if missing:
            raise ValueError(f"{path}: METHODS names {missing}, which do not exist")
        if not all(m.config.resolve().is_relative_to(ROOT) for m in methods.values()):
            raise ValueError(f"{path}: METHODS names files outside {ROOT}")
        if len(set(node["SEEDS"])) < len(node["SEEDS"]):
            raise ValueError(f"{path}: SEEDS has some twice: {node['SEEDS']}")
        if node["BASELINE"] not in methods:
            raise ValueError(f"{path}: BASELINE {node['BASELINE']!r} is not one of {list(methods)}")
        return cls(
            methods=methods,
            seeds=list(node["SEEDS"]),
            baseline=node["BASELINE"],
            opts=[str(part) for part in node["OPTS"]],
            results=ROOT / node["RESULTS"],
            output=ROOT / node["OUTPUT"],
        )

    def kept(self, method: str, seed: int) -> Path:
        """Where a finished run's numbers are."""
        return self.results / "runs" / f"{method}_{seed}.json"

    def runs(self, methods: list[str], seeds: list[int]) -> list[tuple[str, int]]:
        """All (method, seed), one seed after the other, so that early results compare methods."""
        return [(method, seed) for seed in seeds for method in methods]


def train(
    grid: Grid, method: str, seed: int, num_gpus: int, opts: list[str], jobs: int = 1
) -> bool:
    """One run in a process of its own, from its last checkpoint if there is one.

    Args:
        grid: of the run.
        method, seed: which.
        num_gpus: processes.
        opts: further KEY VALUE pairs.
        jobs: runs that share the machine's cores.

    Returns:
        False: another process trains it, or has just done so.

    Raises:
        RuntimeError: the training failed; the message names its log.
        ValueError: it has been begun with another recipe.
    """
    folder = grid.output / f"{method}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    config, opts = grid.methods[method].config, [*grid.opts, *grid.methods[method].opts, *opts]
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config)]
    command += ["--num-gpus", str(num_gpus), "--dist-url", "auto", "--resume", *opts]
    command += ["SEED", str(seed), "OUTPUT_DIR", str(folder)]
    environment = {**os.environ, **(threads(jobs) if jobs > 1 else {})}
    # Callers that srun has started side by side are guarded by the lock; a training would refuse.
    for mark in ("SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"):
        environment.pop(mark, None)
    log = folder / "console.log"
    with lock(folder) as held:
        if held is None or grid.kept(method, seed).exists():
            return False
        now = recipe(str(config), tuple(opts))
        made_with = record_start(folder, now, versions())
        with log.open("ab") as file:
            code = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                pass_fds=[held],
            ).returncode
        if code:
            raise RuntimeError(f"{method}, seed {seed} ended with {code}; see {log}")
        result = {
            "method": method,
            "seed": seed,
            "config": str(config.resolve().relative_to(ROOT)),
            "opts": opts,
            "versions": made_with[-1],
            "earlier_versions": made_with[:-1],
            **read_metrics(folder / "metrics.json", now["SOLVER.MAX_ITER"]),
        }
        write_json(grid.kept(method, seed), result)
        return True


def threads(jobs: int) -> dict[str, str]:
    """Settings of one of ``jobs`` runs: more threads than cores, and threads that spin while they
    wait, slow all of them down."""
    count = max(1, (os.cpu_count() or 1) // jobs)
    return {"OMP_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def train_all(
    grid: Grid, runs: list[tuple[str, int]], jobs: int, num_gpus: int, opts: list[str]
) -> None:
    """Several runs, ``jobs`` at a time, which share the machine's cores.

    Raises:
        RuntimeError: a training failed; those that had begun are finished first.
    """

    def train_one(run: tuple[str, int]) -> None:
        method, seed = run
        if not train(grid, method, seed, num_gpus, opts, jobs):
            return say(f"{method}, seed {seed}: left to another process")
        miou = json.loads(grid.kept(method, seed).read_text())["miou"]
        say(f"{method}, seed {seed}: {miou:.2f}")

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train_one, run) for run in runs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_metrics(path: Path, max_iter: int) -> dict:
    """The evaluations of a run: the last one whole, and mIoU by iteration.

    Raises:
        RuntimeError: there is no evaluation at the end of the training.
    """
    records = [json.loads(line) for line in path.read_text().splitlines()]
    evaluations = [r for r in records if f"{METRIC}mIoU" in r]
    if not evaluations or evaluations[-1]["iteration"] < max_iter:
        raise RuntimeError(f"{path} holds no evaluation at iteration {max_iter}")
    last = evaluations[-1]
    steps = [r["time"] for r in records if "time" in r]
    return {
        "miou": last[f"{METRIC}mIoU"],
        "iterations": last["iteration"],
        "curve": {str(r["iteration"]): r[f"{METRIC}mIoU"] for r in evaluations},
        "results": {k.removeprefix(METRIC): v for k, v in last.items() if k.startswith(METRIC)},
        "seconds_per_iteration": statistics.median(steps) if steps else None,
    }


def versions() -> dict[str, str]:
    """Of this checkout and of what it runs on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"commit": commit or "unknown", **found}


def measure_cost(grid: Grid, iterations: int, opts: list[str]) -> None:
    """Step time, memory, parameters and FLOPs of all methods, in one run of the benchmark."""
    path = grid.results / "cost.json"
    order = [grid.baseline, *(name for name in grid.methods if name != grid.baseline)]
    command = [sys.executable, str(ROOT / "tools" / "benchmark_training.py")]
    with tempfile.TemporaryDirectory() as folder:
        # The benchmark takes config files: one for each method, with the options of its training.
        files = [write_config(grid, name, Path(folder) / f"{name}.yaml") for name in order]
        measured = Path(folder) / "cost.json"
        command += [str(file) for file in files]
        command += ["--iterations", str(iterations), "--json", str(measured), "--opts", *opts]
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
            raise ValueError("the methods' steps cannot be measured, see above")
        values = json.loads(measured.read_text()).values()
    write_json(path, dict(zip(order, values, strict=True)))


def write_config(grid: Grid, name: str, path: Path) -> Path:
    """A config file that is a method's with the grid's and its own options."""
    method = grid.methods[name]
    node: dict = {"_BASE_": str(method.config)}
    opts = [*grid.opts, *method.opts]
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        *parents, leaf = key.split(".")
        place = node
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump(node))
    return path


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", type=Path, help="a file of configs/experiments")
    parser.add_argument("--methods", nargs="+", help="of the grid; all if left out")
    parser.add_argument("--seeds", nargs="+", type=int, help="of the grid; all if left out")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of one run")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, on the CPU")
    parser.add_argument("--cost", type=int, metavar="N", help="measure N steps of each method")
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument("--report", action="store_true", help="write the tables and the plot")
    tables.add_argument("--against", metavar="METHOD", help="print the tables with this baseline")
    parser.add_argument("--opts", nargs="*", default=[], help="further KEY VALUE pairs")
    args = parser.parse_args()
    try:
        grid = Grid.load(args.grid)
        named = {"--methods": args.methods or [], "--against": [args.against or grid.baseline]}
        for flag, methods in named.items():
            if unknown := set(methods) - set(grid.methods):
                raise ValueError(f"{flag} {sorted(unknown)}: {args.grid} has {list(grid.methods)}")
        unknown = set(args.seeds or []) - set(grid.seeds)
        if unknown:
            raise ValueError(f"--seeds {sorted(unknown)}: {args.grid} has {grid.seeds}")
        if args.cost:
            return measure_cost(grid, args.cost, args.opts)
        check_kept(grid, ROOT, args.opts)
        if args.report:
            return say(write_report(grid))
        if args.against:
            return say(compare(grid, args.against))
        runs = grid.runs(args.methods or list(grid.methods), args.seeds or grid.seeds)
        left = [run for run in runs if not grid.kept(*run).exists()]
        say(f"{len(runs) - len(left)} of {len(runs)} runs are there")
        train_all(grid, left, args.jobs, args.num_gpus, args.opts)
        return say("nothing is left")
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"run_experiments.py: {error}")


if __name__ == "__main__":
    main()
