"""Compressors: speed and bytes. ``python -m benchmarks.transforms``.

Top-k by bisection and through ``lax.top_k`` select the same coordinates of the same
messages one straight after the other, the order turning round from repeat to repeat;
one ratio comes out of each pair, and the median is reported with its range. They run as
clients do: one after the other ("scan") and side by side ("vmap"). Every transform is
timed over all clients one after the other, its byte count included. Bytes are those of
the coder for a real message.

With ``--json`` standard output is one JSON object, otherwise a table.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from fedjax_health import transforms
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import ClientContext, ClientTransform
from fedjax_health.transforms import coding
from fedjax_health.transforms.top_k import select_by_bisection, select_by_sorting

TARGETS = {0.1: 2.5}
"""How many times faster than ``lax.top_k`` the project wants top-k to be, by share."""


def compressors(keep: float) -> dict[str, ClientTransform]:
    """Returns what is timed; the first one is what every time has in common."""
    shared = transforms.random_k(keep)
    return {
        "identity": transforms.identity(),
        "clip_l2": transforms.clip_l2(1.0),
        f"top_k {keep:g}": transforms.top_k(keep),
        f"top_k {keep / 10:g}": transforms.top_k(keep / 10),
        f"random_k {keep:g}": shared,
        f"random_k {keep:g}, own sets": transforms.random_k(keep, shared=False),
        "threshold 1": transforms.threshold(1.0),
        "sign": transforms.sign(),
        "qsgd 127": transforms.qsgd(127),
        "terngrad": transforms.terngrad(),
        "drive": transforms.drive(),
        "eden 2": transforms.eden(2),
        "eden 4": transforms.eden(4),
        f"top_k {keep:g} + qsgd 127": transforms.chain(
            transforms.top_k(keep), transforms.qsgd(127)
        ),
        f"error_feedback(top_k {keep:g})": transforms.error_feedback(
            transforms.top_k(keep)
        ),
        f"error_feedback(random_k {keep:g})": transforms.error_feedback(shared),
        f"ef21(top_k {keep:g})": transforms.ef21(transforms.top_k(keep)),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def _time(run: Callable[[], Any]) -> tuple[float, float]:
    """Returns wall and processor milliseconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def measure_top_k(messages: jax.Array, keep: float, repeats: int) -> dict[str, Any]:
    """Measures both selections of one share; returns its part of the report."""
    count = max(round(keep * messages.shape[1]), 1)
    report: dict[str, Any] = {"keep": keep, "count": count}
    for mapping in ("scan", "vmap"):
        calls = {}
        for name, select in (
            ("bisection", select_by_bisection),
            ("lax.top_k", select_by_sorting),
        ):

            def one(x, select=select):
                return jnp.where(select(x, count), x, 0)

            mapped = jax.vmap(one) if mapping == "vmap" else _in_turn(one)
            calls[name] = jax.jit(mapped)
        made = [np.asarray(call(messages)) for call in calls.values()]
        if not np.array_equal(made[0], made[1]):
            raise SystemExit(f"top-k of {keep:g}: the selections differ")
        wall: dict[str, list[float]] = {name: [] for name in calls}
        cpu: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(repeats):
            names = list(calls)[:: 1 if repeat % 2 == 0 else -1]
            for name in names:
                spent = _time(functools.partial(calls[name], messages))
                wall[name].append(spent[0])
                cpu[name].append(spent[1])
        report[mapping] = {
            "wall_ms": {name: _spread(values) for name, values in wall.items()},
            "cpu_ms": {name: _spread(values) for name, values in cpu.items()},
            "ratio": _spread(_ratios(wall)),
            "cpu_ratio": _spread(_ratios(cpu)),
        }
    report["target_ratio"] = TARGETS.get(keep)
    return report


def _in_turn(function: Callable) -> Callable:
    return lambda stack: jax.lax.map(function, stack)


def _ratios(times: dict[str, list[float]]) -> list[float]:
    pairs = zip(times["bisection"], times["lax.top_k"], strict=True)
    return [theirs / ours for ours, theirs in pairs]


def measure_transform(
    transform: ClientTransform, messages: jax.Array, repeats: int
) -> dict[str, Any]:
    """Measures one transform over all clients, one after the other."""
    like = messages[0]
    shared, memory = transform.init_server(like), transform.init(like)
    keys = jax.random.split(root_key(0), len(messages))

    def client(slot):
        x, key = slot
        context = ClientContext(key, jnp.int32(0), jnp.float32(1), like, shared)
        return transform.update(x, memory, context)

    run = jax.jit(lambda x, k: jax.lax.map(client, (x, k)))
    begun = time.perf_counter()
    _, _, report = jax.block_until_ready(run(messages, keys))
    first = time.perf_counter() - begun
    times = [_time(functools.partial(run, messages, keys)) for _ in range(repeats)]
    clients, size = messages.shape
    made: dict[str, Any] = {
        "wall_ms_per_client": _spread([wall / clients for wall, _ in times]),
        "cpu_ms_per_client": _spread([cpu / clients for _, cpu in times]),
        "first_seconds": first,
    }
    if transform.measure is not None:
        summed = jax.tree.map(lambda x: jnp.sum(x, axis=0), report)
        said = transform.measure(summed, shared, jnp.float32(clients))
        if "uplink_bytes" in said:
            made["bytes_per_client"] = float(said["uplink_bytes"]) / clients
            made["share_of_dense"] = made["bytes_per_client"] / (4 * size)
    return made


def measure_positions(size: int, keep: float) -> dict[str, float]:
    """Returns the bytes of each way to tell positions, as a share of dense float32."""
    values = np.random.default_rng(1).standard_normal(size, dtype=np.float32)
    kept = np.argsort(-np.abs(values), kind="stable")[: round(keep * size)]
    message = np.zeros(size, np.float32)
    message[kept] = values[kept]
    scheme = coding.Scheme(size)
    written = coding.encode(message, scheme)
    if not np.array_equal(coding.decode(written, scheme), message):
        raise SystemExit("the coder lost a message")
    places = np.sort(kept)
    parameter = sum(len(kept) <= limit for limit in coding.rice_limits(size))
    runs = np.diff(places, prepend=-1) - 1
    rice = int(np.sum((runs >> parameter) + 1 + parameter))
    sizes = coding.form_bytes(scheme, len(kept), rice)
    dense = 4 * size
    return {
        "values_alone": 4 * len(kept) / dense,
        "int32_indices": sizes[coding.INDICES] / dense,
        "bitmap": sizes[coding.BITMAP] / dense,
        "golomb_rice": sizes[coding.RICE] / dense,
        "written": len(written) / dense,
    }


def table(report: dict[str, Any]) -> str:
    """Returns the report as text."""
    host = report["machine"]
    lines = [
        f"{host['processor']}, {host['cores']} cores, {host['system']}, load "
        + "/".join(f"{x:.2f}" for x in host["load"]),
        "",
        f"top-k of {report['clients']} messages of {report['size']:,}, wall ms",
    ]
    for part in report["top_k"]:
        for mapping in ("scan", "vmap"):
            made = part[mapping]
            ratio = made["ratio"]
            lines.append(
                f"  keep {part['keep']:<6g}{mapping:6}"
                f"{made['wall_ms']['bisection']['median']:>9.1f}"
                f"{made['wall_ms']['lax.top_k']['median']:>9.1f}"
                f"{ratio['median']:>8.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})"
            )
    lines += ["", f"  {'ms a client':34}{'wall':>8}{'CPU':>8}{'of dense':>10}"]
    for name, made in report["transforms"].items():
        share = made.get("share_of_dense")
        lines.append(
            f"  {name:34}{made['wall_ms_per_client']['median']:>8.3f}"
            f"{made['cpu_ms_per_client']['median']:>8.3f}"
            + ("" if share is None else f"{share:>10.4f}")
        )
    lines += ["", f"  positions at keep {report['keep']:g}, of dense float32"]
    lines += [f"  {name:34}{x:>8.4f}" for name, x in report["positions"].items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--size", type=int, default=100_000, help="numbers a message")
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=7, help="pairs, and calls")
    parser.add_argument("--out", type=Path, help="write the JSON object there too")
    args = parser.parse_args()
    if min(args.repeats, args.clients, args.size) < 1 or not 0 < args.keep <= 1:
        parser.error("--repeats, --clients and --size of 1 or more, --keep in (0, 1]")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((args.clients, args.size), dtype=np.float32)
    messages = jnp.asarray(drawn)
    report: dict[str, Any] = {
        "benchmark": "transforms",
        "machine": machine.describe(),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
        "backend": jax.default_backend(),
        "clients": args.clients,
        "size": args.size,
        "keep": args.keep,
        "repeats": args.repeats,
        "top_k": [],
        "transforms": {},
    }
    for keep in (args.keep, args.keep / 10):
        say(f"top_k {keep:g}")
        report["top_k"].append(measure_top_k(messages, keep, args.repeats))
    for name, transform in compressors(args.keep).items():
        say(name)
        made = measure_transform(transform, messages, args.repeats)
        report["transforms"][name] = made
    report["positions"] = measure_positions(args.size, args.keep)
    report["load_after"] = list(os.getloadavg())
    text = json.dumps(report, indent=1)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text if args.json else table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
