"""Robust rules beside ByzFL and beside a read: ``python -m benchmarks.aggregators``.

For every rule ours and ByzFL (PyTorch, one thread) aggregate the same messages one
straight after the other, the order turning round from repeat to repeat; one ratio of
process CPU time comes out of each such pair, and the median is reported. READ is one
pass over the messages, PyTorch's sum where the rival is there and a dot product of ours
where it is not, measured beside every rule: a machine's speed drifts.

With ``--json`` standard output is one JSON object, otherwise a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import environments, machine, protocol

SIZES = ((20, 1_000_000), (100, 1_000_000), (500, 10_000))

SLOW_SECONDS = 5.0
"""A call that takes longer is made once a repeat and in one repeat only."""

READ_TARGETS = {"Median": 3.0, "TrMean": 5.0, "NNM+TrMean": 12.0}
READ_TARGET = 8.0
"""CPU time in reads at (20, 1e6): of these rules, and of Gram rules and pipelines."""

GRAM = (
    "Krum",
    "MultiKrum",
    "MoNNA",
    "CAF",
    "GeometricMedian T=3",
    "GeometricMedian T=8",
    "GeometricMedian T=32",
    "CenteredClipping L=1",
    "CenteredClipping L=5",
    "NNM+GeometricMedian T=8",
    "ours: CGE",
    "ours: FoolsGold",
    "ours: FLAME",
    "ours: ARC+NNM+GeometricMedian",
)

MIXINGS = ("NNM", "Bucketing s=2", "Clipping", "ARC")
"""Measured alone too; the targets are for rules."""


def ratio_target(name: str, cohort: int) -> float | None:
    """Returns how many times faster than ByzFL the project wants a rule to be."""
    if name in MIXINGS:
        return None
    if cohort == 20:
        return 40.0 if name.startswith("NNM") else 20.0
    return 7.0 if cohort == 100 else 1.0


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def measure(
    cohort: int,
    size: int,
    *,
    only: list[str],
    repeats: int,
    env_root: Path,
    say,
) -> dict[str, Any]:
    """Measures every rule at one size; returns its part of the report."""
    arguments = [str(cohort), str(size)]
    running: list[protocol.Worker] = []
    report: dict[str, Any] = {"cohort": cohort, "size": size, "rules": {}}
    try:
        ours = protocol.start(
            "ours", [sys.executable, "-m", "benchmarks.ours_aggregators", *arguments]
        )
        running.append(ours)
        theirs = None
        if environments.is_ready("byzfl", env_root):
            python = str(environments.python_of("byzfl", env_root.absolute()))
            module = "benchmarks.rivals.byzfl_aggregators"
            theirs = protocol.start("byzfl", [python, "-m", module, *arguments])
            running.append(theirs)
        else:
            report["byzfl"] = {
                "status": "environment missing or out of date",
                "make_it_with": environments.command_for("byzfl", env_root),
            }
        for name in ours.ready["names"]:
            if name == "READ" or (only and name not in only):
                continue
            rival = theirs if theirs and name in theirs.ready["names"] else None
            rule = _measure_rule(
                name,
                ours,
                rival,
                theirs or ours,
                repeats=repeats,
                size=4 * cohort * size,
            )
            rule["target_ratio"] = ratio_target(name, cohort) if rival else None
            if cohort == 20:
                gram = READ_TARGET if name in GRAM else None
                rule["target_reads"] = READ_TARGETS.get(name, gram)
            report["rules"][name] = rule
            say(_line(name, rule))
        report["versions"] = {}
        for worker in list(running):
            running.remove(worker)
            report["versions"] |= protocol.stop(worker)["versions"]
    finally:
        for worker in running:
            protocol.kill(worker)
    return report


def _measure_rule(
    name: str,
    ours: protocol.Worker,
    theirs: protocol.Worker | None,
    reader: protocol.Worker,
    *,
    repeats: int,
    size: int,
) -> dict[str, Any]:
    def timed(worker: protocol.Worker, what: str, calls: int) -> dict[str, list[float]]:
        return protocol.ask(worker, f"time\t{what}\t{calls}")

    first = protocol.ask(ours, f"warm\t{name}")
    slow = False
    if theirs is not None:
        slow = protocol.ask(theirs, f"warm\t{name}")["seconds"] > SLOW_SECONDS
    cpu: dict[str, list[float]] = {"ours": [], "theirs": [], "read": []}
    wall: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(1 if slow else repeats):
        turns = [("ours", ours, 3), ("theirs", theirs, 1 if slow else 2)]
        for who, worker, calls in turns if repeat % 2 == 0 else turns[::-1]:
            if worker is None:
                continue
            record = timed(worker, name, calls)
            cpu[who].append(statistics.median(record["cpu"]))
            wall[who].append(statistics.median(record["wall"]))
        cpu["read"].append(statistics.median(timed(reader, "READ", 3)["cpu"]))
    pairs = zip(cpu["ours"], cpu["read"], strict=True)
    made: dict[str, Any] = {
        "cpu_ms": _spread(cpu["ours"]),
        "wall_ms": _spread(wall["ours"]),
        "read_cpu_ms": _spread(cpu["read"]),
        "reads": _spread([own / read for own, read in pairs]),
        "first_seconds": first["seconds"],
        "memory_of_messages": (
            None if first["memory"] is None else first["memory"] / size
        ),
    }
    if theirs is not None:
        ratios = [b / a for a, b in zip(cpu["ours"], cpu["theirs"], strict=True)]
        made["byzfl_cpu_ms"] = _spread(cpu["theirs"])
        made["byzfl_wall_ms"] = _spread(wall["theirs"])
        made["ratio"] = _spread(ratios)
        walls = [b / a for a, b in zip(wall["ours"], wall["theirs"], strict=True)]
        made["wall_ratio"] = _spread(walls)
    return made


def _line(name: str, rule: dict[str, Any]) -> str:
    text = f"  {name:32}{rule['cpu_ms']['median']:>10.1f}"
    text += f"{rule['reads']['median']:>8.1f}"
    target = rule.get("target_reads")
    text += f"{'' if target is None else f'<= {target:g}':>8}"
    if "ratio" in rule:
        text += f"{rule['byzfl_cpu_ms']['median']:>11.1f}"
        text += f"{rule['ratio']['median']:>8.1f}x"
        target = rule["target_ratio"]
        text += f"{'' if target is None else f'>= {target:g}':>8}"
    else:
        text += " " * 28
    memory = rule["memory_of_messages"]
    return text + f"{'' if memory is None else f'{memory:.2f}':>8}"


def table(report: dict[str, Any]) -> str:
    """Returns the report as text."""
    host = report["machine"]
    lines = [
        f"{host['processor']}, {host['cores']} cores, {host['system']}, load "
        + "/".join(f"{x:.2f}" for x in host["load"]),
    ]
    head = f"  {'CPU ms; memory in messages':32}{'ours':>10}{'reads':>8}{'target':>8}"
    head += f"{'ByzFL':>11}{'ratio':>9}{'target':>8}{'memory':>8}"
    for part in report["sizes"]:
        lines += ["", f"n={part['cohort']}, d={part['size']:,}", head]
        lines += [_line(name, rule) for name, rule in part["rules"].items()]
        if "byzfl" in part:
            lines.append(
                f"  {part['byzfl']['status']}: {part['byzfl']['make_it_with']}"
            )
    return "\n".join(lines)


def _sizes(text: str) -> list[tuple[int, int]]:
    sizes = []
    for part in text.split(","):
        cohort, cross, size = part.partition("x")
        if not cross or not cohort.isdigit() or not size.isdigit():
            raise SystemExit(f"--sizes: {part!r} is not of the form 20x1000000")
        sizes.append((int(cohort), int(size)))
    return sizes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    default = ",".join(f"{n}x{d}" for n, d in SIZES)
    parser.add_argument("--sizes", default=default, help="cohort x numbers a message")
    parser.add_argument(
        "--only", default="", help="rules, by their names in the report"
    )
    parser.add_argument("--repeats", type=int, default=5, help="pairs per rule")
    parser.add_argument("--env-root", type=Path, default=environments.DEFAULT_ROOT)
    parser.add_argument("--out", type=Path, help="write the JSON object there too")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats must be 1 or more")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    report: dict[str, Any] = {
        "benchmark": "aggregators",
        "machine": machine.describe(),
        "protocol": {"repeats": args.repeats, "slow_seconds": SLOW_SECONDS},
        "sizes": [],
    }
    try:
        for cohort, size in _sizes(args.sizes):
            say(f"n={cohort}, d={size:,}")
            part = measure(
                cohort,
                size,
                only=[name for name in args.only.split(",") if name],
                repeats=args.repeats,
                env_root=args.env_root,
                say=say,
            )
            report["sizes"].append(part)
    except protocol.WorkerError as error:
        say(str(error))
        return 1
    report["load_after"] = list(os.getloadavg())
    text = json.dumps(report, indent=1)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text if args.json else table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
