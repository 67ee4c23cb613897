"""How often our step compiles in ten runs that differ in numbers alone.

``python -m benchmarks.compilations`` builds ten federated runs on W1 whose seed, local
and server learning rate and clip norm all differ, trains two rounds of each, and counts
the programs that XLA compiles. The first run compiles the step; the nine others must
compile nothing at all. Prints one JSON object; exits 3 when they do.
"""

from __future__ import annotations

import argparse
import json
import os

import fedjax_health as fh
from benchmarks import ours, workloads

_COMPILED = "/jax/core/compile/backend_compile_duration"


def count(runs: int, *, clip: bool = True) -> dict:
    """Counts the compilations of several runs.

    Args:
      runs: how many runs, 2 or more.
      clip: whether updates are clipped to a norm, which then differs between runs.

    Returns:
      ``runs``, ``first_run`` and ``later_runs`` (programs compiled), ``step_compiled``
      (the step's programs over all runs), ``compiled_later`` (names of the programs
      that later runs compiled) and ``varied`` (the numbers that differed).
    """
    if runs < 2:
        raise ValueError(f"runs must be 2 or more, not {runs}")
    fh.use_cpu_devices()
    import jax
    import jax.numpy as jnp

    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **about) -> None:
        del duration_secs
        if event == _COMPILED:
            compiled.append(about.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    cohort_of = ours.build_cohorts(ours.build_store(workloads.client_data("mlp")))
    params = jax.tree.map(jnp.asarray, workloads.initial_params("mlp"))
    cohorts = [cohort_of(ids) for ids in workloads.schedule(2)]
    loss_fn = ours.build_loss("mlp")
    compiled.clear()
    per_run, in_step = [], 0
    for run in range(runs):
        before = len(compiled)
        algorithm = ours.build_algorithm(
            loss_fn,
            ours.build_plan(
                learning_rate=0.05 + 0.01 * run,
                server_rate=1.0 - 0.05 * run,
                clip_norm=1.0 + 0.1 * run if clip else None,
            ),
            params,
            population=workloads.NUM_CLIENTS,
            cohort_size=workloads.COHORT_SIZE,
        )
        state = algorithm.init(fh.root_key(run), params)
        for cohort in cohorts:
            entered = len(compiled)
            state, _ = algorithm.step(state, cohort)
            in_step += len(compiled) - entered
        jax.block_until_ready(state)
        per_run.append(compiled[before:])
    later = [name for names in per_run[1:] for name in names]
    varied = ["seed", "local learning rate", "server learning rate"]
    return {
        "runs": runs,
        "varied": [*varied, "clip norm"] if clip else varied,
        "first_run": len(per_run[0]),
        "later_runs": len(later),
        "step_compiled": in_step,
        "compiled_later": later,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument(
        "--no-clip", action="store_true", help="leave the clipping transform out"
    )
    args = parser.parse_args()
    # A program taken from a cache on disk would count as compiled all the same.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    record = count(args.runs, clip=not args.no_clip)
    print(json.dumps(record))
    return 3 if record["later_runs"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
