"""Attacks of clients that know their own message alone, or nothing at all."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_health.attacks import rows
from fedjax_health.core import trees
from fedjax_health.core.types import (
    AttackContext,
    Params,
    State,
    UpdateAttack,
    Updates,
)

_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _forge_nonfinite(
    stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
) -> tuple[Updates, State]:
    del context
    value = jnp.asarray(tuple(_NONFINITE.values()), jnp.float32)[state["value"]]
    message = jax.tree.map(lambda x: jnp.full(x.shape[1:], value, x.dtype), stacked)
    return rows.put(stacked, malicious, message), state


def nonfinite(*, value: Literal["nan", "inf", "-inf"] = "nan") -> UpdateAttack:
    """Sends a message in which every coordinate is NaN or infinite.

    It shows whether anything but a refusal of such messages stands between one client
    and the model.

    Threat model: knows nothing.

    Args:
      value: "nan", "inf" or "-inf"; traced.

    Raises:
      ValueError: for another value.
    """
    rows.check_choice("nonfinite: value", value, tuple(_NONFINITE))
    number = tuple(_NONFINITE).index(value)

    def init(params: Params) -> State:
        del params
        return {"value": jnp.int32(number)}

    return UpdateAttack(init, _forge_nonfinite)


def _forge_free_rider(
    stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
) -> tuple[Updates, State]:
    ids = rows.client_ids(malicious, context)
    passed = jnp.asarray(context.round).astype(jnp.float32) + 1.0
    std = state["noise"] * passed ** -state["decay"]

    def ride(row: Updates, i: jax.Array) -> Updates:
        drawn = rows.normal_like(jax.random.fold_in(context.key, ids[i]), row)
        return jax.tree.map(
            lambda previous, n: state["replay"] * previous + std * n,
            context.previous_aggregate,
            drawn,
        )

    return rows.change_rows(stacked, malicious, ride), state


def free_rider(
    *, replay: float = 1.0, noise: float = 0.0, decay: float = 0.0
) -> UpdateAttack:
    """Sends the last aggregate, noised, in place of training.

    The message of round t, from 0, is ``replay * previous + noise (t + 1)^-decay z``
    with ``z`` standard normal, a draw of its own for each client. ``replay=1, noise=0``
    replays ("delta weights", Lin et al., 2019, "Free-riders in Federated Learning:
    Attacks and Defenses", arXiv:1911.12560, which gain a noised form too);
    ``replay=0, noise=0`` is the plain and ``replay=0`` with noise the disguised
    free-rider of Fraboni et al., 2021, "Free-rider Attacks on Model Aggregation in
    Federated Learning" (arXiv:2006.11901).

    Threat model: knows the global models that it was sent, and has no data; what it
    would have trained is not looked at. In the first round the last aggregate is zero.

    Args:
      replay: factor on the last aggregate; traced.
      noise: standard deviation of the noise in the first round, 0 or more; traced.
      decay: the noise falls with the round to this power, 0 or more; traced.

    Raises:
      ValueError: for numbers out of range.
    """
    rows.check_number("free_rider: replay", replay)
    rows.check_number("free_rider: noise", noise, low=0)
    rows.check_number("free_rider: decay", decay, low=0)
    return UpdateAttack(
        functools.partial(_numbers, replay=replay, noise=noise, decay=decay),
        _forge_free_rider,
    )


def _forge_replacement(
    stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
) -> tuple[Updates, State]:
    weights = context.weights
    if weights is None:
        present = rows.delivered(malicious, context) | malicious
        weights = present.astype(jnp.float32)
    own = jnp.sum(jnp.where(malicious, weights, 0.0))
    needed = jnp.sum(weights) / jnp.where(own > 0, own, 1.0)
    needed = needed / state["server_learning_rate"]
    scale = jnp.where(state["given"], state["scale"], needed)

    def boost(row: Updates, i: jax.Array) -> Updates:
        del i
        return rows.clip_norm(trees.scale(row, scale), state["max_norm"])

    return rows.change_rows(stacked, malicious, boost), state


def model_replacement(
    *,
    scale: float | None = None,
    server_learning_rate: float = 1.0,
    max_norm: float | None = None,
) -> UpdateAttack:
    """Sends the own update, scaled so that it replaces the global model.

    Bagdasaryan et al., 2020, "How To Backdoor Federated Learning" (arXiv:1807.00459):
    the update is multiplied by ``n / server_learning_rate``. Here ``n`` is the sum of
    all weights over the weights of the attackers, so that under the weighted mean the
    attackers' mean update is applied in full although honest clients take part. It is
    of use beside an attack on the data, such as a backdoor. The second half of the
    paper, an anomaly term in the attacker's training loss, is not part of it.

    ``max_norm`` is the projection that keeps the message below a norm that the server
    would clip to (Sun et al., 2019, "Can You Really Backdoor Federated Learning?",
    arXiv:1911.07963).

    Threat model: own message, and an estimate of the cohort's total weight.

    Args:
      scale: factor on the update; None takes the one above. Traced.
      server_learning_rate: of the server's plain SGD, above 0; traced.
      max_norm: largest L2 norm of the message, above 0; None for no bound. Traced.

    Raises:
      ValueError: for numbers out of range.
    """
    if scale is not None:
        rows.check_number("model_replacement: scale", scale)
    rows.check_number(
        "model_replacement: server_learning_rate", server_learning_rate, low=1e-12
    )
    _check_max_norm("model_replacement", max_norm)
    return UpdateAttack(
        functools.partial(
            _numbers,
            scale=scale or 0.0,
            given=scale is not None,
            server_learning_rate=server_learning_rate,
            max_norm=math.inf if max_norm is None else max_norm,
        ),
        _forge_replacement,
    )


def _forge_neurotoxin(
    stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
) -> tuple[Updates, State]:
    magnitudes = jax.tree.map(
        lambda x: jnp.abs(x.astype(jnp.float32)), context.previous_aggregate
    )
    limit = _magnitude_exceeded_by(magnitudes, state["masked"])

    def hide(row: Updates, i: jax.Array) -> Updates:
        del i
        kept = jax.tree.map(
            lambda x, size: jnp.where(size <= limit, x, 0.0), row, magnitudes
        )
        return rows.clip_norm(trees.scale(kept, state["scale"]), state["max_norm"])

    return rows.change_rows(stacked, malicious, hide), state


def _magnitude_exceeded_by(magnitudes: Updates, share: jax.Array) -> jax.Array:
    """Returns the least magnitude that at most this share of coordinates exceeds.

    A binary search over the bits of non-negative floats, whose order is that of their
    values: a sort of millions of numbers takes many times as long.
    """
    leaves = [
        jax.lax.bitcast_convert_type(x.reshape(-1), jnp.int32)
        for x in jax.tree.leaves(magnitudes)
    ]
    allowed = jnp.floor(share * sum(x.size for x in leaves) + 1e-3).astype(jnp.int32)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        above = sum((jnp.sum(x > middle) for x in leaves), jnp.int32(0))
        few = above <= allowed
        return jnp.where(few, low, middle + 1), jnp.where(few, middle, high)

    largest = jnp.int32(0x7F800000)
    _, bits = jax.lax.fori_loop(0, 32, halve, (jnp.int32(0), largest))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def neurotoxin(
    *, masked: float = 0.05, scale: float = 1.0, max_norm: float | None = None
) -> UpdateAttack:
    """Sends the own update on coordinates alone that honest clients hardly move.

    Zhang et al., 2022, "Neurotoxin: Durable Backdoors in Federated Learning"
    (arXiv:2206.10341): the share ``masked`` of coordinates in which the last aggregate
    is largest *in magnitude*, over all leaves together, is set to zero. The paper
    projects every local step; this variant projects the finished update. It is of use
    beside a backdoor on the data. In the first round nothing is known and nothing is
    masked; of equal magnitudes at the limit all are kept.

    Threat model: own message, and the last aggregate, which any client works out from
    two global models.

    Args:
      masked: share of coordinates that are left out, in [0, 1]; traced.
      scale: factor on what is left; traced.
      max_norm: largest L2 norm of the message, above 0; None for no bound. Traced.

    Raises:
      ValueError: for numbers out of range.
    """
    rows.check_number("neurotoxin: masked", masked, low=0, high=1)
    rows.check_number("neurotoxin: scale", scale)
    _check_max_norm("neurotoxin", max_norm)
    return UpdateAttack(
        functools.partial(
            _numbers,
            masked=masked,
            scale=scale,
            max_norm=math.inf if max_norm is None else max_norm,
        ),
        _forge_neurotoxin,
    )


def _check_max_norm(attack: str, max_norm: float | None) -> None:
    if max_norm is not None and not 0 < max_norm < math.inf:
        raise ValueError(f"{attack}: max_norm must be above 0, not {max_norm}")


def _numbers(params: Params, **numbers: float) -> State:
    del params
    return {name: jnp.float32(value) for name, value in numbers.items()}
