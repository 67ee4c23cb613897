"""When an attack runs, and which of the malicious clients take part in it."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fedjax_health.attacks import rows
from fedjax_health.core import trees
from fedjax_health.core.types import (
    AttackContext,
    Batch,
    DataAttack,
    DataAttackContext,
    Key,
    Params,
    State,
    UpdateAttack,
    Updates,
)

Attack = TypeVar("Attack", UpdateAttack, DataAttack)

# Keeps the draw of this module apart from others with the client's key.
_PURPOSE = 0xA77AC4

_FOREVER = 2**31 - 1


def _takes_part(key: Key, round: jax.Array, share: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(key, _PURPOSE), round)
    return jax.random.uniform(key) < share


def _now(numbers: State, round: jax.Array) -> jax.Array:
    return (numbers["start"] <= round) & (round < numbers["end"])


@functools.cache
def _forge(inner: Callable[..., Any]):
    def forge(
        stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
    ) -> tuple[Updates, State]:
        now = _now(state, context.round)
        chosen = jax.vmap(_takes_part, in_axes=(0, None, None))(
            rows.client_keys(malicious, context), context.round, state["share"]
        )
        active = malicious & chosen & now
        # For the others of the malicious clients this is an honest round.
        forged, held = inner(stacked, active, state["attack"], context)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(active.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        forged = jax.tree.map(choose, forged, stacked)
        return forged, {**state, "attack": trees.select(now, held, state["attack"])}

    return forge


@functools.cache
def _poison(inner: Callable[..., Batch]):
    def poison(batch: Batch, context: DataAttackContext) -> Batch:
        numbers = context.numbers
        key = context.key if context.client_key is None else context.client_key
        chosen = _takes_part(key, context.round, numbers["share"])
        active = chosen & _now(numbers, context.round)
        poisoned = inner(batch, context._replace(numbers=numbers["attack"]))
        return trees.select(active, poisoned, batch)

    return poison


def during(
    attack: Attack, *, start: int = 0, end: int | None = None, share: float = 1.0
) -> Attack:
    """Runs an attack in some rounds only, by all or by some of the malicious clients.

    In a round outside ``[start, end)``, or where it is not drawn, a malicious client
    does what an honest one does, and counts as one for what the attack sees. The
    attack's state stands still outside its rounds. The draw of a client in a round is
    the same for an attack on data and one on updates, so that two of them wrapped alike
    are carried out by the same clients.

    Args:
      attack: on updates or on data.
      start: first round of the attack, from 0; traced.
      end: the round after the last one; None for the run's end. Traced.
      share: probability that a malicious client attacks in a round, in [0, 1]: 1 for
        fixed, less for sampled attackers. Traced.

    Returns:
      An attack of the same kind.

    Raises:
      ValueError: for numbers out of range.
    """
    if start < 0 or (end is not None and end < start):
        raise ValueError(
            f"during: start={start}, end={end}: start must be 0 or more and end not "
            "before it"
        )
    rows.check_number("during: share", share, low=0, high=1)

    def numbers(inner: State) -> State:
        return {
            "start": jnp.int32(start),
            "end": jnp.int32(_FOREVER if end is None else end),
            "share": jnp.float32(share),
            "attack": inner,
        }

    if isinstance(attack, DataAttack):
        first = attack.init

        def init_numbers() -> State:
            return numbers(() if first is None else first())

        return DataAttack(_poison(attack.poison), init_numbers)
    begin = attack.init

    def init(params: Params) -> State:
        return numbers(begin(params))

    return UpdateAttack(init, _forge(attack.forge))
