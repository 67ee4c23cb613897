"""Worker: FedJAX's federated averaging through its public interface.

Run in the environment ``fedjax``; the argument ``--backend`` chooses how FedJAX maps
over clients: ``jit`` one after another, ``pmap`` over one XLA host device per core.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os

import numpy as np

from benchmarks import protocol, workloads


def build(workload: str, backend: str) -> protocol.Trainer:
    """Sets FedJAX up for one workload."""
    if backend == "pmap":
        os.environ["XLA_FLAGS"] = (
            f"--xla_force_host_platform_device_count={os.cpu_count()}"
        )
    import fedjax
    import jax
    import jax.numpy as jnp
    from fedjax.algorithms import fed_avg

    from benchmarks.rivals import plain_jax

    clients = workloads.client_data(workload)
    data = fedjax.InMemoryFederatedData(
        {
            b"%04d" % number: {"x": features, "y": label}
            for number, (features, label) in enumerate(clients)
        }
    )
    names = list(data.client_ids())
    fedjax.set_for_each_client_backend(backend)

    def loss(params, batch, rng):
        del rng
        logits = plain_jax.LOGITS[workload](params, batch["x"])
        return jnp.mean(plain_jax.example_losses(logits, batch["y"]))

    algorithm = fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(workloads.LEARNING_RATE),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(
            batch_size=workloads.BATCH_SIZE,
            num_epochs=workloads.EPOCHS,
            drop_remainder=False,
            seed=0,
        ),
    )

    def start():
        params = workloads.initial_params(workload)
        return algorithm.init(jax.tree_util.tree_map(jnp.asarray, params))

    state = start()

    def reset():
        nonlocal state
        state = start()

    def train(rounds):
        nonlocal state
        cohorts = workloads.schedule(max(rounds) + 1)
        for number in rounds:
            keys = jax.random.split(jax.random.PRNGKey(number), workloads.COHORT_SIZE)
            cohort = [
                (names[client], data.get_client(names[client]), keys[row])
                for row, client in enumerate(cohorts[number])
            ]
            state, _ = algorithm.apply(state, cohort)
        jax.block_until_ready(state.params)
        return len(rounds)

    def loss_now():
        params = jax.tree_util.tree_map(np.asarray, state.params)
        return workloads.mean_loss(workload, params, clients)

    return protocol.Trainer(
        train=train,
        reset=reset,
        loss=loss_now,
        versions={
            "fedjax": importlib.metadata.version("fedjax"),
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
        details={"backend": backend, "devices": len(jax.devices())},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workloads.NAMES)
    parser.add_argument("--backend", choices=("jit", "pmap"), default="jit")
    args = parser.parse_args()
    protocol.serve(
        lambda: build(args.workload, args.backend),
        warm_rounds=list(range(workloads.WARM_ROUNDS)),
    )


if __name__ == "__main__":
    main()
