"""Mimic: over-represent the honest client that stands out along one direction."""

import functools
from typing import NamedTuple

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


class MimicState(NamedTuple):
    """What the attackers have learnt.

    Attributes:
      warmup: float32 ``[]``, rounds of learning.
      seen: int32 ``[]``, rounds with honest messages so far.
      mean: running mean of the honest messages.
      direction: unit vector along which honest messages differ most.
      target: int32 ``[]``, client that was copied last; -1 for none.
    """

    warmup: jax.Array
    seen: jax.Array
    mean: Updates
    direction: Updates
    target: jax.Array


def _learn(
    stacked: Updates, honest: jax.Array, state: MimicState, key: jax.Array
) -> MimicState:
    """One step of Oja's rule on the honest messages."""
    lost = trees.squared_norm(state.direction) == 0
    old = state.seen / (state.seen + 1.0)
    now = rows.mean_of(stacked, honest)
    mean = jax.tree.map(lambda m, x: old * m + (1 - old) * x, state.mean, now)
    start = trees.select(lost, rows.normal_like(key, mean), state.direction)
    # <x_i - mean, z> (x_i - mean), summed over the honest clients.
    away = rows.inner_products(stacked, start) - _inner(mean, start)
    pull = rows.weighted_sum(stacked, honest, jnp.where(honest, away, 0.0), mean)
    pull = _unit(pull)
    turned = jax.tree.map(lambda z, p: old * z + (1 - old) * p, state.direction, pull)
    return state._replace(mean=mean, direction=_unit(turned))


def _inner(a: Updates, b: Updates) -> jax.Array:
    return rows.inner_products(jax.tree.map(lambda x: x[None], a), b)[0]


def _unit(tree: Updates) -> Updates:
    norm = jnp.sqrt(trees.squared_norm(tree))
    return trees.scale(tree, jnp.where(norm > 0, 1.0 / norm, 0.0))


@functools.cache
def _forge(learns: bool):
    """Returns ``forge``; without learning the expensive half is not compiled."""

    def forge(
        stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
    ) -> tuple[Updates, State]:
        honest = rows.visible("honest", malicious, context)
        ids = rows.client_ids(malicious, context)
        anyone = jnp.any(honest)
        if learns:
            learning = anyone & (state.seen < state.warmup)
            state = jax.lax.cond(
                learning,
                lambda held: _learn(stacked, honest, held, context.key),
                lambda held: held,
                state,
            )
            away = rows.inner_products(stacked, state.direction)
        else:
            learning = jnp.bool_(False)
            away = jnp.zeros(honest.shape)
        along = jnp.where(honest, away, -jnp.inf)
        known = honest & (ids == state.target)
        fixed = ~learning & jnp.any(known)
        row = jnp.where(fixed, jnp.argmax(known), jnp.argmax(along))
        message = trees.take_row(stacked, row)
        # The choice of the warm-up stands; a stand-in for an absent target does not.
        settled = ~learning & (state.target >= 0)
        target = jnp.where(anyone & ~settled, ids[row], state.target)
        target = target.astype(jnp.int32)
        state = state._replace(seen=state.seen + anyone, target=target)
        return rows.put(stacked, malicious & anyone, message), state

    return forge


def mimic(*, warmup: int = 20) -> UpdateAttack:
    """Copies the honest client that over-represents one direction.

    Karimireddy, He and Jaggi, 2022, "Byzantine-Robust Learning on Heterogeneous
    Datasets via Bucketing" (arXiv:2006.09365), after the authors' code. For ``warmup``
    rounds a running mean and, by Oja's rule from a random start, the direction z of the
    greatest variance of the honest messages are learnt, and each round the message with
    the greatest ``<x_i, z>`` is copied. From then on the client chosen last is copied;
    where it does not take part in a round, the one with the greatest ``<x_i, z>`` is.
    ``warmup=0`` copies the first honest client for good.

    Threat model: knows all honest messages of this and of earlier rounds.

    State: ``MimicState``, two vectors of the model's size.

    Args:
      warmup: rounds of learning, 0 or more; traced, but whether it is 0 is static.

    Raises:
      ValueError: for a negative number.
    """
    rows.check_number("mimic: warmup", warmup, low=0)

    def init(params: Params) -> State:
        zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), params)
        return MimicState(
            warmup=jnp.float32(warmup),
            seen=jnp.int32(0),
            mean=zeros,
            direction=zeros,
            target=jnp.int32(-1),
        )

    return UpdateAttack(init, _forge(warmup > 0))
