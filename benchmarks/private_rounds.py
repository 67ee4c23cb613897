"""What privacy, secure sums and compression add to a round of W1 and W2.

Every variant is trained beside plain FedAvg in one process, blocks of rounds
alternated, the same cohorts: the ratios are of wall times, median and range over pairs
of blocks. ``wide`` is W1 with its hidden layers widened to about 1e5 parameters.

    python -m benchmarks.private_rounds --out benchmarks/results/private_rounds.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fedjax_health as fh
from benchmarks import machine, ours, workloads

CLIP_NORM = 1.0
NOISE_MULTIPLIER = 1.0
KEEP = 0.1
WIDE = {"w1": (64, 500), "b1": (500,), "w2": (500, 128), "b2": (128,)}

# (workload, variant) -> largest ratio that is asked for; None where none is.
TARGETS = {
    ("mlp", "clip_noise"): None,
    ("mlp", "pipeline"): 3.0,
    ("gru", "pipeline"): 1.3,
    ("mlp", "dp_sgd"): 3.0,
    ("wide", "secure_ideal"): 1.1,
    ("wide", "secure_view"): 2.0,
}


def initial_params(workload: str) -> dict[str, np.ndarray]:
    """Returns the parameters of a workload; those of ``wide`` are drawn here."""
    if workload != "wide":
        return workloads.initial_params(workload)
    rng = np.random.default_rng(2)
    shapes = {**WIDE, "w3": (128, 1), "b3": (1,)}
    return {
        name: (rng.uniform(-1, 1, shape) / 16).astype(np.float32)
        for name, shape in shapes.items()
    }


def build_plan(variant: str) -> fh.RoundPlan:
    """Returns plain FedAvg, or a variant of it."""
    plain = dataclasses.replace(ours.build_plan(), weighting="uniform")
    transforms, secagg, privacy = fh.transforms, fh.secagg, fh.privacy
    clip = transforms.clip_l2(CLIP_NORM)
    noise = privacy.central_gaussian(NOISE_MULTIPLIER)
    match variant:
        case "plain":
            return plain
        case "clip_noise":
            return dataclasses.replace(plain, transforms=(clip,), mechanism=noise)
        case "secure_ideal" | "secure_view":
            secure = secagg.secure_mean(
                value_range=CLIP_NORM, fidelity=variant.removeprefix("secure_")
            )
            return dataclasses.replace(plain, aggregator=secure)
        case "pipeline":
            compressor = transforms.error_feedback(transforms.random_k(KEEP))
            return dataclasses.replace(
                plain,
                transforms=(compressor, clip),
                aggregator=secagg.secure_mean(fidelity="ideal"),
                mechanism=noise,
            )
        case "dp_sgd":
            private = fh.DpSgd(CLIP_NORM, NOISE_MULTIPLIER)
            local = dataclasses.replace(plain.local, example_privacy=private)
            return dataclasses.replace(plain, local=local)
    raise ValueError(f"unknown variant {variant!r}")


def build_rounds(workload: str, variant: str, rounds: int) -> Callable[[], None]:
    """Returns a call that trains that many further rounds and waits for them."""
    import jax
    import jax.numpy as jnp

    data = "gru" if workload == "gru" else "mlp"
    cohort_of = ours.build_cohorts(ours.build_store(workloads.client_data(data)))
    params = jax.tree.map(jnp.asarray, initial_params(workload))
    algorithm = ours.build_algorithm(
        ours.build_loss(data),
        build_plan(variant),
        params,
        population=workloads.NUM_CLIENTS,
        cohort_size=workloads.COHORT_SIZE,
    )
    state = algorithm.init(fh.root_key(0), params)
    cohorts = workloads.schedule(rounds)

    def train() -> None:
        nonlocal state
        for ids in cohorts:
            state, _ = algorithm.step(state, cohort_of(ids))
        jax.block_until_ready(state)

    return train


def measure(
    workload: str, variant: str, *, rounds: int, repeats: int
) -> dict[str, Any]:
    """Returns the times of plain FedAvg and of a variant, and their ratio."""
    calls = [build_rounds(workload, v, rounds) for v in ("plain", variant)]
    for call in calls:
        call()
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            start = time.perf_counter()
            calls[which]()
            seconds[which].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    found = {
        "workload": workload,
        "variant": variant,
        "plain_ms": 1e3 * statistics.median(seconds[0]) / rounds,
        "variant_ms": 1e3 * statistics.median(seconds[1]) / rounds,
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "target": TARGETS[workload, variant],
    }
    if found["target"] is not None:
        found["within_target"] = found["ratio"] <= found["target"]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="of one block")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of blocks")
    parser.add_argument("--only", help="one variant")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--out", type=Path, help="write the JSON object there too")
    options = parser.parse_args(arguments)
    fh.use_cpu_devices()
    report: dict[str, Any] = {
        "benchmark": "private_rounds",
        "machine": machine.describe(),
        "versions": ours.versions(),
        "rounds": options.rounds,
        "keep": KEEP,
        "variants": [],
    }
    for workload, variant in TARGETS:
        if options.only not in (None, variant):
            continue
        found = measure(
            workload, variant, rounds=options.rounds, repeats=options.repeats
        )
        report["variants"].append(found)
        if not options.json:
            print(
                f"{workload:5} {variant:13} {found['plain_ms']:7.2f} -> "
                f"{found['variant_ms']:7.2f} ms  {found['ratio']:.2f}x "
                f"({found['range'][0]:.2f}-{found['range'][1]:.2f})",
                flush=True,
            )
    text = json.dumps(report, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
