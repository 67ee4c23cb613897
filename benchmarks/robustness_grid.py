"""The robustness grid by ByzFL and by us: ``python -m benchmarks.robustness_grid``.

4 attacks x 5 defences x 3 fractions of malicious clients x 2 seeds on scikit-learn's
digits: both train the same MLP from the same initial parameters on the same clients,
as many steps, and report the final test accuracy of every cell.

Ours is timed whole and cold: from the start of its process to the last accuracy, with
imports and compilation and without a cache on disk. ByzFL takes
many times as long; by default a random part of its cells is timed in each repeat, in
one process as its documentation trains and in one process per core, and its time for
the grid is extrapolated. With ``--full`` it trains the whole grid in both ways.

With ``--json`` standard output is one JSON object, otherwise a summary.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import digits, environments, machine, protocol

STEPS = 800
"""As many as in the figures that ByzFL's documentation prints, on MNIST."""

EXACT_STEPS = 10
TARGET = 20.0
TOLERANCE = 1e-3
"""Largest difference after the exact steps, in parts of how far training moved."""

# 97.5 % point of Student's t with 2 degrees of freedom: two seeds on either side.
_T = 4.303


def run_ours(data: Path, *, steps: int, cache: Path | None = None):
    """Trains the whole grid in a cold process; returns wall seconds and its report."""
    variables = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if cache is None:
        variables["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    else:
        variables["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "benchmarks.ours_grid", str(data)]
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, "--steps", str(steps)],
        capture_output=True,
        cwd=protocol.ROOT,
        env=variables,
        text=True,
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        words = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise protocol.WorkerError(f"our grid failed; its last words:\n{words}")
    return seconds, json.loads(done.stdout)


def _start_theirs(name: str, data: Path, env_root: Path) -> protocol.Worker:
    python = str(environments.python_of("byzfl", env_root.absolute()))
    command = [python, "-m", "benchmarks.rivals.byzfl_grid", str(data)]
    return protocol.start(name, command)


def _train(worker: protocol.Worker, cells: list[digits.Cell], steps: int):
    return {
        cell.name: protocol.ask(worker, f"cell {cell.name} {steps}", timeout=3600)
        for cell in cells
    }


def run_theirs(
    workers: list[protocol.Worker], cells: list[digits.Cell], *, steps: int
) -> tuple[float, dict[str, dict[str, Any]]]:
    """Trains cells in several processes at once, each taking the next that is left."""
    left = list(cells)

    def work(worker):
        records = {}
        while left:
            records |= _train(worker, [left.pop()], steps)
        return records

    begun = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        parts = list(pool.map(work, workers))
    seconds = time.perf_counter() - begun
    return seconds, {name: r for part in parts for name, r in part.items()}


def compare_exactly(data: Path, folder: Path, worker: protocol.Worker) -> dict:
    """Trains on whole clients, where nothing is drawn, and compares the parameters.

    Returns:
      Per defence the largest difference between the parameters after ``EXACT_STEPS``
      steps over its attacks and fractions, in parts of how far ByzFL's have moved.
    """
    path = folder / "exact.npz"
    command = [sys.executable, "-m", "benchmarks.ours_grid", str(data)]
    steps = ["--steps", str(EXACT_STEPS)]
    protocol.run_to_end([*command, *steps, "--exact", str(path)])
    start = digits.read(data).params
    worst: dict[str, float] = dict.fromkeys(digits.DEFENCES, 0.0)
    with np.load(path) as made:
        for cell in digits.cells():
            if cell.seed != digits.SEEDS[0]:
                continue
            request = f"exact {cell.name} {EXACT_STEPS}"
            theirs = protocol.ask(worker, request)["params"]
            apart = moved = 0.0
            for name, value in theirs.items():
                value = np.asarray(value)
                apart += np.sum((made[f"{cell.name}:{name}"] - value) ** 2)
                moved += np.sum((start[name][cell.seed] - value) ** 2)
            share = math.sqrt(apart / moved)
            worst[cell.defence] = max(worst[cell.defence], share)
    return worst


def _difference(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Returns the difference of the means and the half-width of its 95 % interval."""
    variance = statistics.variance(ours) + statistics.variance(theirs)
    width = _T * math.sqrt(variance / len(ours))
    return statistics.mean(ours) - statistics.mean(theirs), width


def agreement(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, Any]:
    """Compares final accuracies; an interval is that of two seeds on either side.

    Args:
      ours: cell's name -> accuracy.
      theirs: the same; a pair of seeds of which it lacks one is left out.

    Returns:
      ``cells``, one for each attack, defence and fraction: the accuracies by seed, the
      difference of their means, its ``half_width`` and whether it lies ``within``.
      Over these cells: ``mean_difference`` and its ``interval``, for which a seed's
      mean over all cells is one observation, since the cells of a seed share their
      batches; ``mean_absolute_difference``; ``within``, the share of cells; and
      ``largest``, the cell that is farthest apart.
    """
    rows = []
    for cell in digits.cells():
        seeds = [cell._replace(seed=seed).name for seed in digits.SEEDS]
        if cell.seed != digits.SEEDS[0] or not all(name in theirs for name in seeds):
            continue
        own, other = [ours[n] for n in seeds], [theirs[n] for n in seeds]
        difference, width = _difference(own, other)
        rows.append(
            {
                "attack": cell.attack,
                "defence": cell.defence,
                "malicious": cell.malicious,
                "ours": own,
                "byzfl": other,
                "difference": difference,
                "half_width": width,
                "within": abs(difference) <= width + 1e-12,
            }
        )
    if not rows:
        return {"cells": rows}

    def by_seed(side: str) -> list[float]:
        pairs = zip(*(row[side] for row in rows), strict=True)
        return [statistics.mean(values) for values in pairs]

    middle, width = _difference(by_seed("ours"), by_seed("byzfl"))
    return {
        "mean_difference": middle,
        "interval": [middle - width, middle + width],
        "mean_absolute_difference": statistics.mean(
            abs(row["difference"]) for row in rows
        ),
        "within": statistics.mean(row["within"] for row in rows),
        "largest": max(rows, key=lambda row: abs(row["difference"])),
        "cells": rows,
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": values,
    }


def measure(
    folder: Path,
    *,
    steps: int,
    hidden: int,
    repeats: int,
    full: bool,
    cached: bool,
    seed: int,
    env_root: Path,
    say,
) -> dict[str, Any]:
    """Measures both; returns the report without what it was measured on."""
    data = folder / "digits.npz"
    digits.write(data, hidden=hidden)
    grid = digits.cells()
    cores = machine.describe()["cores"]
    blocks = digits.blocks(seed)
    ready = environments.is_ready("byzfl", env_root)
    report: dict[str, Any] = {}
    times: dict[str, list[float]] = {"ours": [], "one": [], "per_core": []}
    cpu: dict[str, list[float]] = {"ours": [], "one": []}
    own: dict[str, float] = {}
    other: dict[str, float] = {}
    workers: list[protocol.Worker] = []

    def ours_once() -> None:
        seconds, made = run_ours(data, steps=steps)
        times["ours"].append(seconds)
        cpu["ours"].append(made["cpu_seconds"])
        own.update(made["accuracy"])
        report.setdefault("ours", {"runs": []})
        kept = ("phases", "cpu_seconds", "peak_rss_bytes")
        report["ours"]["runs"].append({name: made[name] for name in kept})
        report["versions"] = report.get("versions", {}) | made["versions"]
        say(f"ours: the grid in {seconds:.1f} s")

    def theirs_once(how: str, cells: list[digits.Cell]) -> None:
        team = workers[:1] if how == "one" else workers
        seconds, records = run_theirs(team, cells, steps=steps)
        other.update({name: record["accuracy"] for name, record in records.items()})
        setup = max(worker.ready["setup_seconds"] for worker in team)
        scale = len(grid) / len(cells)
        times[how].append(setup + scale * seconds)
        if how == "one":
            used = sum(record["cpu_seconds"] for record in records.values())
            cpu["one"].append(setup + scale * used)
        what = f"{len(cells)} cells" if len(cells) < len(grid) else "the grid"
        where = "one process" if how == "one" else f"{len(team)} processes"
        say(f"ByzFL: {what} in {where} in {seconds:.1f} s")

    try:
        if ready:
            for number in range(cores):
                worker = _start_theirs(f"byzfl {number}", data, env_root)
                workers.append(worker)
            worst = compare_exactly(data, folder, workers[0])
            report["exact"] = {
                "steps": EXACT_STEPS,
                "largest_difference": worst,
                "tolerance": TOLERANCE,
                "agree": max(worst.values()) <= TOLERANCE,
            }
            say(f"exact: {worst}")
        else:
            report["byzfl"] = {
                "status": "environment missing or out of date",
                "make_it_with": environments.command_for("byzfl", env_root),
            }
        for repeat in range(1 if full else repeats):
            one = grid if full else blocks[2 * repeat % len(blocks)]
            both = grid if full else blocks[(2 * repeat + 1) % len(blocks)]
            turns = [
                ours_once,
                *([lambda cells=one: theirs_once("one", cells)] if ready else []),
                *([lambda cells=both: theirs_once("per_core", cells)] if ready else []),
            ]
            for turn in turns if repeat % 2 == 0 else turns[::-1]:
                turn()
        for worker in list(workers):
            workers.remove(worker)
            report["versions"] |= protocol.stop(worker)["versions"]
    finally:
        for worker in workers:
            protocol.kill(worker)
    report["ours"]["grid_seconds"] = _spread(times["ours"])
    report["ours"]["grid_cpu_seconds"] = _spread(cpu["ours"])
    if cached:
        cache = folder / "cache"
        run_ours(data, steps=steps, cache=cache)
        seconds, _ = run_ours(data, steps=steps, cache=cache)
        report["ours"]["grid_seconds_with_cache_on_disk"] = seconds
        say(f"ours: with its programs in a cache on disk in {seconds:.1f} s")
    report["ours"]["accuracy"] = own
    if not ready:
        return report
    timed = len(grid) if full else len(blocks[0])
    report["byzfl"] = {
        "status": "measured" if full else "extrapolated",
        "how": (
            "the whole grid was trained"
            if full
            else f"each figure is {len(grid)}/{timed} of the time of {timed} random "
            "cells, every attack on every defence among them, and the start of the "
            "processes"
        ),
        "cells_timed": {
            "one": timed * len(times["one"]),
            "per_core": timed * len(times["per_core"]),
        },
        "grid_seconds": _spread(times["one"]),
        "grid_cpu_seconds": _spread(cpu["one"]),
        "grid_seconds_one_process_per_core": _spread(times["per_core"]),
        "accuracy": other,
    }

    def ratios(theirs: list[float], ours: list[float]) -> dict[str, Any]:
        return _spread([b / a for a, b in zip(ours, theirs, strict=True)])

    report["ratio"] = ratios(times["one"], times["ours"])
    report["ratio_one_process_per_core"] = ratios(times["per_core"], times["ours"])
    report["cpu_ratio"] = ratios(cpu["one"], cpu["ours"])
    report["target_ratio"] = TARGET
    report["agreement"] = agreement(own, other)
    return report


def summary(report: dict[str, Any]) -> str:
    """Returns the report as text."""
    host, ours = report["machine"], report["ours"]
    loads = "/".join(f"{x:.2f}" for x in host["load"])
    lines = [f"{host['processor']}, {host['cores']} cores, load {loads}"]

    def line(name: str, figure: dict[str, float], unit: str) -> str:
        value, low, high = (figure[k] for k in ("median", "min", "max"))
        return f"  {name:44}{value:>9.1f} {unit} ({low:.1f}-{high:.1f})"

    lines.append(line("ours, cold", ours["grid_seconds"], "s"))
    laps = ", ".join(
        f"{name} {lap['seconds']:.1f}"
        for name, lap in ours["runs"][-1]["phases"].items()
    )
    lines.append(f"    the last time: {laps}")
    theirs = report["byzfl"]
    if "ratio" not in report:
        return "\n".join([*lines, f"  {theirs['status']}: {theirs['make_it_with']}"])
    named = "" if theirs["status"] == "measured" else ", extrapolated"
    lines += [
        line(f"ByzFL, one process{named}", theirs["grid_seconds"], "s"),
        line(
            f"ByzFL, one process per core{named}",
            theirs["grid_seconds_one_process_per_core"],
            "s",
        ),
        line("ratio", report["ratio"], "x"),
        line("ratio, one process per core", report["ratio_one_process_per_core"], "x"),
        line("ratio of CPU time", report["cpu_ratio"], "x"),
    ]
    shares = report["exact"]["largest_difference"].items()
    lines.append(
        f"  after {report['exact']['steps']} exact steps apart by at most "
        + ", ".join(f"{name} {share:.1e}" for name, share in shares)
    )
    agreed = report["agreement"]
    if "mean_difference" in agreed:
        low, high = agreed["interval"]
        worst = agreed["largest"]
        lines += [
            f"  accuracy, ours - ByzFL: {agreed['mean_difference']:+.4f} "
            f"({low:+.4f} to {high:+.4f}); {100 * agreed['within']:.0f} % of "
            f"{len(agreed['cells'])} cells within their seeds' interval",
            f"  farthest apart: {worst['attack']} on {worst['defence']}, f = "
            f"{worst['malicious']}: {worst['ours']} against {worst['byzfl']}",
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--steps", type=int, default=STEPS, help="of every cell")
    parser.add_argument(
        "--hidden", type=int, default=digits.HIDDEN, help="hidden units of the MLP"
    )
    parser.add_argument("--repeats", type=int, default=3, help="pairs")
    parser.add_argument(
        "--full", action="store_true", help="ByzFL trains the whole grid, twice"
    )
    parser.add_argument(
        "--cached", action="store_true", help="time ours with a cache on disk too"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the cells drawn")
    parser.add_argument("--env-root", type=Path, default=environments.DEFAULT_ROOT)
    parser.add_argument("--out", type=Path, help="write the JSON object there too")
    args = parser.parse_args()
    if args.repeats < 1 or args.steps < 1 or args.hidden < 1:
        parser.error("--repeats, --steps and --hidden must be 1 or more")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    report: dict[str, Any] = {
        "benchmark": "robustness_grid",
        "machine": machine.describe(),
        "protocol": {
            "attacks": digits.ATTACKS,
            "defences": digits.DEFENCES,
            "honest": digits.HONEST,
            "malicious": digits.FRACTIONS,
            "seeds": digits.SEEDS,
            "cells": len(digits.cells()),
            "steps": args.steps,
            "batch_size": digits.BATCH_SIZE,
            "learning_rate": digits.LEARNING_RATE,
            "momentum": 0.0,
            "hidden": args.hidden,
            "similarity": digits.SIMILARITY,
            "repeats": 1 if args.full else args.repeats,
            "seed": args.seed,
            "ours": "cold: process started, program compiled, no cache on disk",
        },
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            report |= measure(
                Path(folder),
                steps=args.steps,
                hidden=args.hidden,
                repeats=args.repeats,
                full=args.full,
                cached=args.cached,
                seed=args.seed,
                env_root=args.env_root,
                say=say,
            )
    except protocol.WorkerError as error:
        say(str(error))
        return 1
    report["load_after"] = list(os.getloadavg())
    text = json.dumps(report, indent=1)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text if args.json else summary(report))
    return 0 if report.get("exact", {}).get("agree", True) else 1


if __name__ == "__main__":
    raise SystemExit(main())
