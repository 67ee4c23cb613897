"""What a large population costs: ``python -m benchmarks.population``.

Two memory-mapped stores, of a thousand and of a million clients with 1 to 20 examples
each, are trained in two processes with cohorts of 100. The processes alternate inside
one run; the ratio of the medians says what the population costs in time, the resident
memory beside the store's mapped pages what it costs in memory. Cohorts are drawn by
``build_cohort_fn`` inside the time that is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fedjax_health as fh
from benchmarks import machine, ours, protocol, workloads

COHORT_SIZE = 100
FEATURES = 16
LARGEST_CLIENT = 20
TARGET_RATIO = 1.3
"""The most that a round over the large population may cost, as a multiple."""


def write_population(folder: Path, clients: int, *, seed: int = 0) -> None:
    """Writes the store of one population; does nothing where one stands already.

    Args:
      folder: of the store.
      clients: its size.
      seed: of the data.
    """
    from fedjax_health.data.store import from_arrays, write_store

    if folder.exists():
        return
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, LARGEST_CLIENT + 1, clients)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x = rng.standard_normal((offsets[-1], FEATURES), dtype=np.float32)
    label = (x.sum(1) > 0).astype(np.float32)
    write_store(from_arrays({"x": x, "label": label}, offsets), folder)


def initial_params(seed: int = 2) -> dict[str, np.ndarray]:
    """Draws an MLP of 16-64-1 in the parameter names of W1."""
    rng = np.random.default_rng(seed)
    shapes = {
        "w1": (FEATURES, 64),
        "b1": (64,),
        "w2": (64, 64),
        "b2": (64,),
        "w3": (64, 1),
        "b3": (1,),
    }
    return {
        name: rng.uniform(-0.125, 0.125, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def mapped_bytes(folder: Path) -> int | None:
    """Returns how much of a folder's files this process holds in memory, mapped.

    Returns:
      Bytes, from Linux's ``/proc/self/smaps``; None on other systems.
    """
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return None
    prefix = str(folder.resolve()) + os.sep
    total, inside = 0, False
    for line in lines:
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            inside = prefix in rest
        elif inside and first == "Rss:":
            total += int(rest.split()[0]) * 1024
    return total


def build(folder: Path) -> protocol.Trainer:
    """Sets the engine up over one mapped population."""
    fh.use_cpu_devices()
    import jax
    import jax.numpy as jnp

    from fedjax_health.data.store import open_store

    store = open_store(folder)
    params = jax.tree.map(jnp.asarray, initial_params())
    sampling = fh.Sampling("fixed", population=store.num_clients, expected=COHORT_SIZE)
    cohort_fn = fh.build_cohort_fn(store, sampling, seed=0)
    algorithm = ours.build_algorithm(
        ours.build_loss("mlp"),
        ours.build_plan(),
        params,
        population=store.num_clients,
        cohort_size=COHORT_SIZE,
    )
    state = algorithm.init(fh.root_key(0), params)
    metrics: dict[str, Any] = {}
    details: dict[str, Any] = {
        "clients": store.num_clients,
        "examples": store.num_examples,
        "store_bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }

    def reset():
        nonlocal state
        state = algorithm.init(fh.root_key(0), params)

    def train(rounds):
        nonlocal state, metrics
        for number in rounds:
            state, metrics = algorithm.step(state, cohort_fn(number))
        jax.block_until_ready(state)
        mapped = mapped_bytes(folder)
        resident = protocol.memory_status().get("resident")
        if mapped is not None and resident is not None:
            details["mapped_bytes"] = mapped
            details["beyond_store_bytes"] = resident - mapped
        return len(rounds)

    return protocol.Trainer(
        train=train,
        reset=reset,
        loss=lambda: float(metrics["loss"]),
        versions=ours.versions(),
        details=details,
    )


def measure(
    small: int, large: int, *, rounds: int, repeats: int, folder: Path
) -> dict[str, Any]:
    """Alternates the two populations and compares them.

    Args:
      small: clients of the small population.
      large: clients of the large one.
      rounds: rounds of each repeat; every repeat trains new ones.
      repeats: how many repeats.
      folder: where the stores are, or are written to.
    """
    workers: dict[str, protocol.Worker] = {}
    seconds: dict[str, list[float]] = {"small": [], "large": []}
    sizes = {"small": small, "large": large}
    try:
        for name, clients in sizes.items():
            store = folder / f"{clients}-clients"
            module = [sys.executable, "-m", "benchmarks.population"]
            # In a process of its own, so that the drawing leaves no memory behind.
            protocol.run_to_end([*module, "--write", str(clients), "--at", str(store)])
            workers[name] = protocol.start(
                name, [*module, "--work", "--at", str(store)]
            )
        for repeat in range(repeats):
            first = workloads.WARM_ROUNDS + repeat * rounds
            numbers = " ".join(str(first + offset) for offset in range(rounds))
            order = list(workers) if repeat % 2 == 0 else list(workers)[::-1]
            for name in order:
                record = protocol.ask(workers[name], f"run {numbers}")
                seconds[name].append(record["seconds"] / rounds)
        report: dict[str, Any] = {
            name: {**worker.ready, **protocol.stop(worker)}
            for name, worker in workers.items()
        }
    finally:
        for worker in workers.values():
            protocol.kill(worker)
    for name, values in seconds.items():
        report[name]["seconds_per_round"] = {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "all": values,
        }
    report["ratio_of_medians"] = statistics.median(seconds["large"]) / (
        statistics.median(seconds["small"])
    )
    report["target_ratio"] = TARGET_RATIO
    beyond = [
        report[n]["details"].get("beyond_store_bytes") for n in ("small", "large")
    ]
    if None not in beyond:
        report["more_memory_beyond_store_bytes"] = beyond[1] - beyond[0]
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--small", type=int, default=1_000, help="clients")
    parser.add_argument("--large", type=int, default=1_000_000, help="clients")
    parser.add_argument("--rounds", type=int, default=50, help="of each repeat")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the JSON object there too")
    parser.add_argument("--folder", type=Path, help="keeps the stores; about 0.8 GB")
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write_population(args.at, args.write)
        return 0
    if args.work:
        warm = list(range(workloads.WARM_ROUNDS))
        protocol.serve(lambda: build(args.at), warm_rounds=warm)
        return 0
    host = machine.describe()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            result = measure(
                args.small,
                args.large,
                rounds=args.rounds,
                repeats=args.repeats,
                folder=folder.absolute(),
            )
        except protocol.WorkerError as error:
            print(error, file=sys.stderr)
            return 1
    report = {"benchmark": "population", "machine": host, **result}
    text = json.dumps(report, indent=1)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text if args.json else table(report))
    return 0


def table(report: dict[str, Any]) -> str:
    """Returns the report as text."""
    lines = [f"{'clients':>10}{'ms/round':>10}{'range':>14}{'beyond store MiB':>18}"]
    for name in ("small", "large"):
        part = report[name]
        time = part["seconds_per_round"]
        span = f"{time['min'] * 1e3:.2f}-{time['max'] * 1e3:.2f}"
        beyond = part["details"].get("beyond_store_bytes")
        memory = "unknown" if beyond is None else f"{beyond / 2**20:.0f}"
        lines.append(
            f"{part['details']['clients']:>10,}{time['median'] * 1e3:>10.2f}"
            f"{span:>14}{memory:>18}"
        )
    lines.append(
        f"a round costs {report['ratio_of_medians']:.2f} times as much "
        f"(target: {report['target_ratio']:g} at most)"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
