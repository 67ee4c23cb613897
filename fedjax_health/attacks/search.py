"""ALIE and IPM whose strength is searched against the defence itself."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_health.attacks import rows
from fedjax_health.attacks.line import Line, message_at
from fedjax_health.attacks.response import Response, response_of
from fedjax_health.core.types import (
    AttackContext,
    Params,
    State,
    UpdateAttack,
    Updates,
)

# Trials: doublings up to the limit, then twice four inside the best bracket.
_DOUBLINGS, _REFINED = 8, (4, 4)
TRIALS = _DOUBLINGS + sum(_REFINED)

# Distances this close, in parts of the largest, count as equal.
TIE = 1e-4


def strongest(response: Response, limit: jax.Array) -> jax.Array:
    """Returns the strength in ``(0, limit]`` that moves the aggregate farthest.

    16 trials: ``limit / 128`` up to ``limit`` by doublings; then twice the thirds of
    the two gaps beside the best so far. **Tie rule**: of all strengths whose distance
    lies within a part in 10,000 of the largest one, the smallest wins. Against a rule
    that bounds a message's pull, such as a clipped mean, the distance creeps up by
    rounding for ever, and without the rule the search would follow it to the limit. A
    distance that is not finite counts as none; where nothing moves the aggregate, the
    smallest strength that was tried is returned.

    Args:
      response: strength -> distance.
      limit: float32 ``[]``.
    """
    place = jnp.arange(TRIALS)

    def trial(tried, i):
        strengths, distances = tried
        first = _DOUBLINGS + jnp.where(i < _DOUBLINGS + _REFINED[0], 0, _REFINED[0])
        known = place < first
        best = _smallest_best(strengths, distances, known)
        below = jnp.max(jnp.where(known & (strengths < best), strengths, 0.0))
        above = jnp.min(jnp.where(known & (strengths > best), strengths, limit))
        step = i - first
        left = below + (best - below) * (step + 1) / 3.0
        right = best + (above - best) * (step - 1) / 3.0
        inside = jnp.where(step < 2, left, right)
        doubled = limit * 2.0 ** (i - (_DOUBLINGS - 1)).astype(jnp.float32)
        strength = jnp.where(i < _DOUBLINGS, doubled, inside)
        distance = response(strength)
        distance = jnp.where(jnp.isfinite(distance), distance, -1.0)
        tried = strengths.at[i].set(strength), distances.at[i].set(distance)
        return tried, None

    start = jnp.zeros(TRIALS), jnp.full(TRIALS, -1.0)
    (strengths, distances), _ = jax.lax.scan(trial, start, place)
    return _smallest_best(strengths, distances, place < TRIALS)


def _smallest_best(strengths, distances, known) -> jax.Array:
    """Returns the smallest known strength among those of the largest distance."""
    largest = jnp.max(jnp.where(known, distances, -1.0))
    equal = known & (distances >= largest - TIE * jnp.abs(largest))
    return jnp.min(jnp.where(equal, strengths, jnp.inf))


@functools.cache
def _forge(direction: str):
    def forge(
        stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
    ) -> tuple[Updates, State]:
        line = Line(direction == "alie", state["sign"])
        response = response_of(stacked, malicious, context, line)
        strength = strongest(response, state["limit"])
        honest = rows.visible("honest", malicious, context)
        message = message_at(stacked, honest, line, strength)
        forged = rows.put(stacked, malicious, message)
        return forged, {**state, "strength": strength}

    return forge


def optimized(
    *,
    direction: Literal["alie", "ipm"] = "alie",
    limit: float = 10.0,
    sign: float = 1.0,
) -> UpdateAttack:
    """ALIE or IPM with the strength that moves this round's aggregate farthest.

    Sends ``mu + tau dev`` with ``dev = sign sigma`` ("alie"; sigma over n - 1) or
    ``dev = -mu`` ("ipm", which is ``-(tau - 1) mu``), where ``tau`` in ``(0, limit]``
    maximises ``|defence(messages) - mu|`` (Shejwalkar and Houmansadr, 2021; Allouah et
    al., 2023, arXiv:2302.01772, and ByzFL's line search). 16 trials and the tie rule of
    ``strongest``; ``state["strength"]`` holds the last tau.

    The defence is the whole rule with its pre-aggregations, weights and state of this
    round; where it draws at random, the attacker draws with a key of its own. A rule
    that depends on inner products is tried in a space of as many dimensions as there
    are clients. A rule of single coordinates is tried on a random sample of 65,536 of
    them where there are more. Other rules are run 16 times.

    Threat model: omniscient; knows all honest messages and the defence, not its draws.

    Args:
      direction: "alie" or "ipm"; static.
      limit: the greatest strength, above 0; traced.
      sign: 1 or -1, of sigma; "alie" alone. Traced.

    Raises:
      ValueError: for another direction or a number out of range.
    """
    rows.check_choice("optimized: direction", direction, ("alie", "ipm"))
    if not 0 < limit < float("inf"):
        raise ValueError(f"optimized: limit must be above 0, not {limit}")
    if sign not in (1, -1):
        raise ValueError(f"optimized: sign must be 1 or -1, not {sign}")

    def init(params: Params) -> State:
        del params
        numbers = {"limit": limit, "sign": sign, "strength": 0.0}
        return {name: jnp.float32(value) for name, value in numbers.items()}

    return UpdateAttack(init, _forge(direction))
