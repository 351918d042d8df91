"""Table and plot of an experiment's kept runs."""

import json
import math
import statistics
from pathlib import Path

CONFIDENCE = 0.95


def write_report(grid) -> str:
    """Write results.json, table.md and miou.svg into the grid's folder of results.

    Args:
        grid: a ``run_experiments.Grid``.

    Returns:
        The tables, in Markdown.

    Raises:
        ValueError: no run is kept yet.
    """
    runs = _all_runs(grid)
    methods = summaries(grid, runs, grid.baseline)
    (grid.results / "results.json").write_text(
        json.dumps({"baseline": grid.baseline, "methods": methods}, indent=2) + "\n"
    )
    text = tables(methods, grid.baseline)
    (grid.results / "table.md").write_text(text)
    plot(runs, grid.results / "miou.svg")
    return text


def compare(grid, against: str) -> str:
    """The tables of :func:`write_report` with another baseline; nothing is written.

    Args:
        grid: a ``run_experiments.Grid``.
        against: one of its methods.

    Raises:
        ValueError: no run is kept yet, of any method or of this one.
    """
    runs = _all_runs(grid)
    if against not in runs:
        raise ValueError(f"{grid.results} holds no finished run of {against}; of {list(runs)}")
    return tables(summaries(grid, runs, against), against)


def summaries(grid, runs: dict[str, dict[int, dict]], baseline: str) -> dict[str, dict]:
    """By method its :func:`summary` and, where it was measured, its cost."""
    cost_file = grid.results / "cost.json"
    cost = json.loads(cost_file.read_text()) if cost_file.exists() else {}
    methods = {}
    for name, by_seed in runs.items():
        other = {} if name == baseline else runs.get(baseline, {})
        cost_ratios = relative_cost(cost.get(name), cost.get(baseline))
        methods[name] = {**summary(by_seed, other), "cost": cost_ratios}
    differences = [row["difference"] for row in methods.values()]
    tested = [found for found in differences if found and found["p"] is not None]
    for found, p in zip(tested, holm([found["p"] for found in tested])):
        found["p_holm"] = p
    return methods


def summary(by_seed: dict[int, dict], baseline: dict[int, dict]) -> dict:
    """Numbers of one method, and its difference to the baseline on the seeds that both have."""
    miou = {seed: run["miou"] for seed, run in sorted(by_seed.items())}
    pairs = [value - baseline[seed]["miou"] for seed, value in miou.items() if seed in baseline]
    return {
        "seeds": list(miou),
        "miou": list(miou.values()),
        "mean": statistics.mean(miou.values()),
        "std": statistics.stdev(miou.values()) if len(miou) > 1 else None,
        "difference": paired_difference(pairs),
        "iou": _means([run["results"] for run in by_seed.values()]),
        "curve": _means([run["curve"] for run in by_seed.values()]),
        "commits": sorted({run["versions"]["commit"] for run in by_seed.values()}),
    }


def paired_difference(differences: list[float]) -> dict | None:
    """Mean of paired differences, the half width of its 95 % interval, and the p of no difference.

    The latter two by Student's t, two-sided; they need two pairs and are None without. ``p_holm``
    is for :func:`summaries` to fill, which knows of the other comparisons.
    """
    if not differences:
        return None
    n, mean = len(differences), statistics.mean(differences)
    half = p = None
    if n > 1:
        from scipy import stats  # of the report alone; training does without

        error = statistics.stdev(differences) / math.sqrt(n)
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * error
        p = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return {"pairs": n, "mean": mean, "half_width": half, "p": p, "p_holm": None}


def holm(p_values: list[float]) -> list[float]:
    """Each p adjusted for the number of comparisons (Holm, 1979, step down)."""
    n, largest = len(p_values), 0.0
    adjusted = [1.0] * n
    for rank, index in enumerate(sorted(range(n), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (n - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def relative_cost(own: dict | None, baseline: dict | None) -> dict | None:
    """Step time and peak memory over the baseline's, and what inference costs."""
    if own is None or baseline is None:
        return None
    return {
        "time_ratio": own["time_ratio"] / baseline["time_ratio"],
        "memory_ratio": own["peak_memory"] / baseline["peak_memory"],
        **own["inference"],
    }


def tables(methods: dict[str, dict], baseline: str) -> str:
    """Of the methods, and of their seeds."""
    return table(methods, baseline) + "\n" + seeds_table(methods, baseline)


def seeds_table(methods: dict[str, dict], baseline: str) -> str:
    """mIoU with each seed, and in brackets the difference to the baseline's with the same one."""
    seeds = sorted({seed for row in methods.values() for seed in row["seeds"]})
    lines = [
        f"| seed | {' | '.join(map(str, seeds))} |",
        f"|---|{'---|' * len(seeds)}",
    ]
    by_seed = {name: dict(zip(row["seeds"], row["miou"])) for name, row in methods.items()}
    base = by_seed.get(baseline, {})
    for name, miou in by_seed.items():
        cells = [name]
        for seed in seeds:
            cell = f"{miou[seed]:.2f}" if seed in miou else ""
            if seed in miou and seed in base and name != baseline:
                cell += f" ({miou[seed] - base[seed]:+.2f})"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def table(methods: dict[str, dict], baseline: str) -> str:
    """One row per method, in Markdown."""
    lines = [
        f"| method | seeds | mIoU | std | difference to {baseline} (95 % interval) "
        "| p; adjusted (Holm) | time / step | peak memory | parameters, GFLOPs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in methods.items():
        difference, cost = row["difference"], row["cost"]
        cells = [name, str(len(row["miou"])), f"{row['mean']:.2f}", _number(row["std"])]
        if difference is None:
            cells += ["", ""]
        else:
            pairs = difference["pairs"]
            of = "" if pairs == len(row["miou"]) else f" ({pairs} of the seeds)"
            cells.append(f"{difference['mean']:+.2f} ± {_number(difference['half_width'])}{of}")
            cells.append("" if difference["p"] is None else _p_value(difference))
        if cost is None:
            cells += ["", "", ""]
        else:
            cells += [f"{cost['time_ratio']:.2f}", f"{cost['memory_ratio']:.2f}"]
            cells.append(f"{cost['parameters']:,}, {cost['gflops']:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(runs: dict[str, dict[int, dict]], path: Path) -> None:
    """mIoU of every run as a dot, and the mean of each method as a line."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "d2_pixcontrast"  # the same file for the same numbers
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(1.2 * len(runs) + 2, 4))
    for position, by_seed in enumerate(runs.values()):
        values = [run["miou"] for run in by_seed.values()]
        axes.plot([position] * len(values), values, "o", color="#4878a8", alpha=0.7)
        axes.hlines(statistics.mean(values), position - 0.3, position + 0.3, color="black")
    axes.set_xticks(range(len(runs)), list(runs), rotation=20)
    axes.set_ylabel("mIoU")
    axes.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _all_runs(grid) -> dict[str, dict[int, dict]]:
    runs = {name: _runs(grid, name) for name in grid.methods}
    runs = {name: by_seed for name, by_seed in runs.items() if by_seed}
    if not runs:
        raise ValueError(f"{grid.results} holds no finished run yet")
    return runs


def _runs(grid, method: str) -> dict[int, dict]:
    files = {seed: grid.kept(method, seed) for seed in grid.seeds}
    return {seed: json.loads(f.read_text()) for seed, f in files.items() if f.exists()}


def _means(records: list[dict[str, float]]) -> dict[str, float]:
    """Of the numbers that all records have."""
    common = [key for key in records[0] if all(key in record for record in records)]
    return {key: statistics.mean(record[key] for record in records) for key in common}


def _p_value(difference: dict) -> str:
    return f"{difference['p']:.4f}; {difference['p_holm']:.4f}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"
