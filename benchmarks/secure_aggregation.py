"""Cost of secure aggregation: ``python -m benchmarks.secure_aggregation``.

Three questions. How long does a round of the protocol take, phase by phase? How fast
are its masks beside those of Flower's SecAgg+ (one process each, alternated, the order
turning round from repeat to repeat)? What do the fidelities add to a round of W1 with
its MLP widened to 1e5 parameters (one process, the variants taking turns)?

With ``--json`` standard output is one JSON object, otherwise a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environments, machine, protocol

CLIENTS, SIZE = 100, 100_000
HIDDEN = (512, 130)
"""Widths of the MLP of W1 that give it 100,101 parameters."""

PROTOCOL_SECONDS = 3.0
FLOWER_RATIO = 5.0
OVERHEADS = {"ideal": 0.10, "view": 1.00}


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def protocol_rounds(repeats: int) -> dict[str, Any]:
    """Times rounds of the protocol and checks their sums."""
    from fedjax_health.secagg import run_protocol

    rng = np.random.default_rng(0)
    vectors = rng.integers(-(2**19), 2**19, (CLIENTS, SIZE)).astype(np.int32)
    late = rng.choice(CLIENTS, CLIENTS // 10, replace=False)
    cases: dict[str, dict[str, Any]] = {
        "complete": {},
        "complete, 10 % drop out": {"drop_out": {"masked_input": late}},
        "regular": {"degree": 21, "corrupt": 0.1, "dropout": 0.1},
    }
    made = {}
    for name, settings in cases.items():
        seconds: list[float] = []
        phases: dict[str, list[float]] = {}
        for repeat in range(repeats):
            start = time.perf_counter()
            done = run_protocol(vectors, repeat, modulus_bits=27, **settings)
            seconds.append(time.perf_counter() - start)
            for phase, spent in done.seconds.items():
                phases.setdefault(phase, []).append(spent)
        present = np.isin(np.arange(CLIENTS), done.survivors)
        if not np.array_equal(done.total, vectors[present].sum(axis=0)):
            raise SystemExit(f"{name}: the sum is wrong")
        made[name] = {
            "degree": done.degree,
            "threshold": done.threshold,
            "seconds": _spread(seconds),
            "phase_seconds": {k: statistics.median(v) for k, v in phases.items()},
            "messages": done.messages,
            "bytes_up": done.bytes_up,
            "bytes_down": done.bytes_down,
        }
    made["complete"]["target_seconds"] = PROTOCOL_SECONDS
    return made


def beside_flower(repeats: int, env_root: Path) -> dict[str, Any]:
    """Times the masks of both in turns; ratios are Flower's time over ours."""
    if not environments.is_ready("flower", env_root):
        return {
            "status": "environment missing or out of date",
            "make_it_with": environments.command_for("flower", env_root),
        }
    arguments = [str(CLIENTS), str(SIZE)]
    python = str(environments.python_of("flower", env_root.absolute()))
    running: list[protocol.Worker] = []
    made: dict[str, Any] = {"target_ratio": FLOWER_RATIO, "versions": {}}
    try:
        for name, command in {
            "ours": [sys.executable, "-m", "benchmarks.ours_secagg"],
            "flower": [python, "-m", "benchmarks.rivals.flower_secagg"],
        }.items():
            running.append(protocol.start(name, [*command, *arguments]))
        ours, theirs = running
        for what in ours.ready["names"]:
            for worker in running:
                if what != "round":
                    protocol.ask(worker, f"warm\t{what}")
            wall: dict[str, list[float]] = {"ours": [], "flower": []}
            cpu: dict[str, list[float]] = {"ours": [], "flower": []}
            for repeat in range(repeats):
                turns = (ours, theirs) if repeat % 2 == 0 else (theirs, ours)
                for worker in turns:
                    record = protocol.ask(worker, f"time\t{what}\t1")
                    wall[worker.name] += record["wall"]
                    cpu[worker.name] += record["cpu"]
            pairs = zip(wall["ours"], wall["flower"], strict=True)
            cpu_pairs = zip(cpu["ours"], cpu["flower"], strict=True)
            made[what] = {
                "ours_ms": _spread(wall["ours"]),
                "flower_ms": _spread(wall["flower"]),
                "ratio": _spread([b / a for a, b in pairs]),
                "cpu_ratio": _spread([b / a for a, b in cpu_pairs]),
            }
        for worker in list(running):
            running.remove(worker)
            made["versions"][worker.name] = protocol.stop(worker)["versions"]
    finally:
        for worker in running:
            protocol.kill(worker)
    return made


def wide_params(seed: int = 2) -> dict[str, np.ndarray]:
    """Returns the parameters of W1's MLP with wider layers."""
    rng = np.random.default_rng(seed)
    widths = (64, *HIDDEN, 1)
    made = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=1):
        for name, shape in {f"w{i}": (inputs, outputs), f"b{i}": (outputs,)}.items():
            drawn = rng.uniform(-1, 1, shape) / np.sqrt(inputs)
            made[name] = drawn.astype(np.float32)
    return made


def round_overheads(repeats: int, rounds: int) -> dict[str, Any]:
    """Times rounds of W1 without and with secure aggregation, in turns."""
    import fedjax_health as fh

    fh.use_cpu_devices()
    import jax
    import jax.numpy as jnp

    from benchmarks import ours, workloads

    clients = workloads.client_data("mlp")
    cohort_of = ours.build_cohorts(ours.build_store(clients))
    params = jax.tree.map(jnp.asarray, wide_params())
    heaviest = float(workloads.client_sizes(clients).max())
    secure = fh.secagg.secure_mean
    known = {"value_range": 1.0, "max_weight": heaviest}
    variants: dict[str, Any] = {"plain": None} | {
        fidelity: secure(fidelity=fidelity, **known)
        for fidelity in ("ideal", "view", "protocol")
    }
    plan = ours.build_plan()
    cohorts = [cohort_of(ids) for ids in workloads.schedule(rounds + 2)]
    algorithms: dict[str, Any] = {}
    states: dict[str, Any] = {}
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for name, aggregator in variants.items():
        own = (
            plan
            if aggregator is None
            else dataclasses.replace(plan, aggregator=aggregator)
        )
        algorithms[name] = ours.build_algorithm(
            ours.build_loss("mlp"),
            own,
            params,
            population=workloads.NUM_CLIENTS,
            cohort_size=workloads.COHORT_SIZE,
        )
        states[name] = algorithms[name].init(fh.root_key(0), params)

    def run(name: str, which: list) -> tuple[float, float]:
        start = time.perf_counter(), time.process_time()
        state = states[name]
        for cohort in which:
            state, _ = algorithms[name].step(state, cohort)
        states[name] = jax.block_until_ready(state)
        return (
            (time.perf_counter() - start[0]) / len(which),
            (time.process_time() - start[1]) / len(which),
        )

    first = {name: 2 * run(name, cohorts[:2])[0] for name in variants}
    names = list(variants)
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else names[::-1]:
            some = cohorts[2:] if name != "protocol" else cohorts[2:3]
            spent = run(name, some)
            wall[name].append(spent[0])
            cpu[name].append(spent[1])
    made: dict[str, Any] = {
        "parameters": int(sum(x.size for x in params.values())),
        "devices": len(jax.devices()),
        "parallelism": algorithms["plain"].parallelism,
    }
    for name in names:
        made[name] = {
            "round_ms": _spread([1e3 * x for x in wall[name]]),
            "cpu_ms": _spread([1e3 * x for x in cpu[name]]),
            "first_two_seconds": first[name],
            "overhead": _spread(_added(wall["plain"], wall[name])),
            "cpu_overhead": _spread(_added(cpu["plain"], cpu[name])),
            "target": OVERHEADS.get(name),
        }
    return made


def _added(plain: list[float], other: list[float]) -> list[float]:
    """Returns what each pair's second figure has more than the first, as a share."""
    return [b / a - 1 for a, b in zip(plain, other, strict=True)]


def table(report: dict[str, Any]) -> str:
    """Returns the report as text."""
    lines = []
    for name, case in report.get("protocol", {}).items():
        phases = ", ".join(f"{k} {v:.2f}" for k, v in case["phase_seconds"].items())
        lines.append(
            f"{name:26} {case['seconds']['median']:6.2f} s  k={case['degree']} "
            f"t={case['threshold']}  {phases}"
        )
    for name, case in report.get("flower", {}).items():
        if isinstance(case, dict) and "ratio" in case:
            lines.append(
                f"masks of a {name:16} {case['ours_ms']['median']:8.1f} ms, Flower "
                f"{case['flower_ms']['median']:9.1f} ms, "
                f"{case['ratio']['median']:.1f} x, of CPU "
                f"{case['cpu_ratio']['median']:.1f} x"
            )
        elif name == "make_it_with":
            lines.append(f"Flower: {case}")
    for name, case in report.get("rounds", {}).items():
        if isinstance(case, dict):
            lines.append(
                f"W1, 1e5 parameters, {name:10} {case['round_ms']['median']:8.1f} ms "
                f"{case['overhead']['median']:+8.1%}, "
                f"{case['cpu_ms']['median']:8.1f} ms of CPU "
                f"{case['cpu_overhead']['median']:+8.1%}"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=6, help="W1 rounds of a repeat")
    parser.add_argument("--env-root", type=Path, default=environments.DEFAULT_ROOT)
    parser.add_argument(
        "--only", choices=("protocol", "flower", "rounds"), help="one question alone"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--out", type=Path, help="write the JSON object there too")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.rounds < 1:
        parser.error("--repeats and --rounds must be 1 or more")
    report: dict[str, Any] = {
        "benchmark": "secure_aggregation",
        "clients": CLIENTS,
        "size": SIZE,
        "machine": machine.describe(),
        "versions": {
            name: metadata.version(name)
            for name in ("jax", "jaxlib", "numpy", "cryptography")
        },
    }
    parts = {
        "protocol": lambda: protocol_rounds(options.repeats),
        "flower": lambda: beside_flower(options.repeats, options.env_root),
        "rounds": lambda: round_overheads(options.repeats, options.rounds),
    }
    try:
        for name, part in parts.items():
            if options.only in (None, name):
                report[name] = part()
    except protocol.WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    report["load_after"] = list(os.getloadavg())
    text = json.dumps(report, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
