"""The two models in plain JAX, for FedJAX (jax 0.4.20) and the centralised limit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import workloads


def _mlp_logits(params: Any, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
    hidden = jax.nn.relu(hidden @ params["w2"] + params["b2"])
    return (hidden @ params["w3"] + params["b3"])[:, 0]


def _gru_logits(params: Any, x: jax.Array) -> jax.Array:
    from_input = jnp.swapaxes(x, 0, 1) @ params["wi"] + params["bi"]

    def step(state, step_input):
        reset_i, update_i, candidate_i = jnp.split(step_input, 3, axis=1)
        from_state = state @ params["wh"] + params["bh"]
        reset_s, update_s, candidate_s = jnp.split(from_state, 3, axis=1)
        reset = jax.nn.sigmoid(reset_i + reset_s)
        update = jax.nn.sigmoid(update_i + update_s)
        candidate = jnp.tanh(candidate_i + reset * candidate_s)
        return (1 - update) * candidate + update * state, None

    start = jnp.zeros((x.shape[0], workloads.HIDDEN), x.dtype)
    state, _ = jax.lax.scan(step, start, from_input)
    return (state @ params["wo"] + params["bo"])[:, 0]


LOGITS = {"mlp": _mlp_logits, "gru": _gru_logits}
"""Workload -> ``(params, x [examples, ...]) -> logits [examples]``."""


def example_losses(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Returns the logistic loss of each example."""
    return jnp.logaddexp(0.0, logits) - label * logits
