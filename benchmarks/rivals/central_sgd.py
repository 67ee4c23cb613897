"""Worker: centralised SGD over the pooled examples, the practical limit.

Plain JAX without clients: one batch of 2,000 examples a step, all steps in one
compiled loop, XLA's threads on every core. It processes as many examples as the rounds
that it is asked for would have, to the nearest step; ``rounds`` in its replies is the
exact share. Runs in our own environment, on the same jax as we do.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import protocol, workloads
from benchmarks.rivals import plain_jax

BATCH_SIZE = 2_000


def build(workload: str) -> protocol.Trainer:
    """Sets centralised training up for one workload."""
    clients = workloads.client_data(workload)
    sizes = workloads.client_sizes(clients)
    num_batches = int(sizes.sum()) // BATCH_SIZE

    def batched(arrays):
        pooled = np.concatenate(arrays)[: num_batches * BATCH_SIZE]
        return jnp.asarray(pooled.reshape(num_batches, BATCH_SIZE, *pooled.shape[1:]))

    x = batched([features for features, _ in clients])
    y = batched([label for _, label in clients])

    def loss(params, features, label):
        logits = plain_jax.LOGITS[workload](params, features)
        return jnp.mean(plain_jax.example_losses(logits, label))

    @jax.jit
    def descend(params, steps, x, y):
        def step(number, params):
            batch = number % num_batches
            grads = jax.grad(loss)(params, x[batch], y[batch])
            return jax.tree.map(
                lambda p, g: p - workloads.LEARNING_RATE * g, params, grads
            )

        return jax.lax.fori_loop(0, steps, step, params)

    def start():
        return jax.tree.map(jnp.asarray, workloads.initial_params(workload))

    params = start()

    def reset():
        nonlocal params
        params = start()

    def train(rounds):
        nonlocal params
        cohorts = workloads.schedule(max(rounds) + 1)
        examples = int(sizes[cohorts[rounds]].sum())
        steps = max(1, round(examples / BATCH_SIZE))
        params = jax.block_until_ready(descend(params, jnp.int32(steps), x, y))
        return len(rounds) * steps * BATCH_SIZE / examples

    def loss_now():
        return workloads.mean_loss(
            workload, {key: np.asarray(value) for key, value in params.items()}, clients
        )

    return protocol.Trainer(
        train=train,
        reset=reset,
        loss=loss_now,
        versions={"jax": jax.__version__, "numpy": np.__version__},
        details={"batch_size": BATCH_SIZE, "devices": len(jax.devices())},
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
