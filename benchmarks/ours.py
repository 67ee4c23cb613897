"""Worker: our engine, through ``build_algorithm`` and ``step`` alone.

One host device per core (at most 8), the packed store in memory, a plan, one ``step``
per round; the cohort is put together on the host inside the time that is measured. The
other benchmarks of the engine build on the same functions.
"""

from __future__ import annotations

import argparse
from importlib import metadata
from typing import Any

import numpy as np

import fedjax_health as fh
from benchmarks import protocol, workloads


def build_loss(workload: str):
    """Returns the workload's loss as a user of the library would write it."""
    import jax
    import jax.numpy as jnp

    logits_of = {"mlp": _mlp_logits, "gru": _gru_logits}[workload]

    def loss_fn(params, batch, key):
        del key
        logits = logits_of(params, batch["x"])
        losses = jax.nn.softplus(logits) - batch["label"] * logits
        weight = batch["weight"]
        loss = jnp.sum(weight * losses) / jnp.maximum(jnp.sum(weight), 1.0)
        return loss, {}

    return loss_fn


def _mlp_logits(params: Any, x):
    import jax

    hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
    hidden = jax.nn.relu(hidden @ params["w2"] + params["b2"])
    return (hidden @ params["w3"] + params["b3"])[:, 0]


def _gru_logits(params: Any, x):
    """W2's model on the library's recurrent kernel."""
    from fedjax_health.models.recurrent import gru

    states = gru(params, x, time_major=True)
    return (states[-1] @ params["wo"] + params["bo"])[:, 0]


def build_store(clients: list[tuple[np.ndarray, np.ndarray]]):
    """Packs a workload's clients into the library's store, in memory."""
    from fedjax_health.data.store import from_arrays

    offsets = np.concatenate([[0], np.cumsum(workloads.client_sizes(clients))])
    return from_arrays(
        {
            "x": np.concatenate([features for features, _ in clients]),
            "label": np.concatenate([label for _, label in clients]),
        },
        offsets,
    )


def build_plan(
    *,
    learning_rate: float = workloads.LEARNING_RATE,
    server_rate: float = 1.0,
    clip_norm: float | None = None,
):
    """Returns the plan of the workloads; with a clip norm, updates are clipped too."""
    import optax

    transforms = ()
    if clip_norm is not None:
        transforms = (fh.transforms.clip_l2(clip_norm),)
    return fh.RoundPlan(
        local=fh.LocalTraining(
            algorithm=fh.fedavg(),
            optimizer=fh.Optimizer(optax.sgd, {"learning_rate": learning_rate}),
            epochs=workloads.EPOCHS,
            batch_size=workloads.BATCH_SIZE,
        ),
        transforms=transforms,
        server_optimizer=fh.Optimizer(optax.sgd, {"learning_rate": server_rate}),
        weighting="examples",
    )


def build_algorithm(loss_fn, plan, params, *, population: int, cohort_size: int):
    """Returns the federated algorithm of a plan, its cohorts of a fixed size."""
    return fh.build_algorithm(
        loss_fn,
        plan,
        abstract_params=params,
        population=population,
        cohort_size=cohort_size,
        sampling=fh.Sampling("fixed", population=population, expected=cohort_size),
    )


def build_cohorts(store):
    """Returns ``client ids -> cohort`` over a store that stays on the devices."""
    from fedjax_health.data.sampling import cohort_of
    from fedjax_health.data.store import to_examples

    resident = to_examples(store)
    return lambda ids: cohort_of(store, ids, resident=resident)


def versions() -> dict[str, str]:
    """Returns the versions of what our engine's speed rests on."""
    names = ("jax", "jaxlib", "optax", "numpy")
    found = {name: metadata.version(name) for name in names}
    # What is measured is what is imported, installed or not.
    return {"fedjax-health": fh.__version__, **found}


def build(workload: str) -> protocol.Trainer:
    """Sets our engine up for one workload."""
    fh.use_cpu_devices()
    import jax
    import jax.numpy as jnp

    clients = workloads.client_data(workload)
    cohort_of = build_cohorts(build_store(clients))
    params = jax.tree.map(jnp.asarray, workloads.initial_params(workload))
    algorithm = build_algorithm(
        build_loss(workload),
        build_plan(),
        params,
        population=workloads.NUM_CLIENTS,
        cohort_size=workloads.COHORT_SIZE,
    )
    state = algorithm.init(fh.root_key(0), params)

    def reset():
        nonlocal state
        state = algorithm.init(fh.root_key(0), params)

    def train(rounds):
        nonlocal state
        cohorts = workloads.schedule(max(rounds) + 1)
        for number in rounds:
            state, _ = algorithm.step(state, cohort_of(cohorts[number]))
        jax.block_until_ready(state)
        return len(rounds)

    def loss_now():
        now = {key: np.asarray(value) for key, value in state.params.items()}
        return workloads.mean_loss(workload, now, clients)

    return protocol.Trainer(
        train=train,
        reset=reset,
        loss=loss_now,
        versions=versions(),
        details={
            "devices": len(jax.devices()),
            "parallelism": algorithm.parallelism,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workloads.NAMES)
    args = parser.parse_args()
    protocol.serve(
        lambda: build(args.workload),
        warm_rounds=list(range(workloads.WARM_ROUNDS)),
    )


if __name__ == "__main__":
    main()
