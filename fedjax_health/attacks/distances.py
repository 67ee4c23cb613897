"""Min-max and min-sum: as far along a direction as the honest messages stand apart."""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from fedjax_health.attacks import rows
from fedjax_health.attacks.rows import Knowledge
from fedjax_health.core import trees
from fedjax_health.core.types import (
    AttackContext,
    State,
    UpdateAttack,
    Updates,
)

Deviation = Literal["unit", "std", "sign"]

_HALVINGS = 40

# Room for the rounding of float32, in parts of the largest squared distance.
_MARGIN = 1e-5


def deviation_from(
    kind: Deviation, stacked: Updates, seen: jax.Array, mean: Updates
) -> Updates:
    """Returns the direction that is subtracted from the mean.

    Args:
      kind: "unit", the mean at unit length; "std", the standard deviation of each
        coordinate (divided by the number of messages less 1); "sign", the mean's sign.
      stacked: leaves ``[cohort, ...]``.
      seen: bool ``[cohort]``.
      mean: of the rows seen.
    """
    match kind:
        case "unit":
            norm = jnp.sqrt(trees.squared_norm(mean))
            return trees.scale(mean, jnp.where(norm > 0, 1.0 / norm, 0.0))
        case "std":
            return rows.deviation_of(stacked, seen, mean, 1.0)
        case "sign":
            return jax.tree.map(jnp.sign, mean)


def largest_strength(gram: jax.Array, seen: jax.Array, *, summed: bool) -> jax.Array:
    """Returns the greatest gamma at which the forged message still fits in.

    The message is ``mu - gamma dev``. Its squared distance to message i is
    ``|x_i - mu|^2 + 2 gamma <dev, x_i - mu> + gamma^2 |dev|^2``, so that no pass over
    the messages is needed for a trial; and gamma is the lower end of the last bracket,
    which was tried and fits: the middle of a bracket may not.

    Args:
      gram: float32 ``[cohort + 1, cohort + 1]``, inner products of ``x_i - mu`` and, in
        the last place, of the direction.
      seen: bool ``[cohort]``.
      summed: whether the sums of squared distances are compared, or the largest one.
    """
    n = gram.shape[0] - 1
    both = seen[:, None] & seen[None, :]
    apart = jnp.where(both, rows.squared_distances(gram[:n, :n]), 0.0)
    reduce = jnp.sum if summed else jnp.max
    limit = (1.0 - _MARGIN) * jnp.max(reduce(apart, axis=1))
    away, slope, length = jnp.diagonal(gram)[:n], gram[:n, n], gram[n, n]

    def fits(gamma: jax.Array) -> jax.Array:
        squares = away + 2.0 * gamma * slope + gamma**2 * length
        return reduce(jnp.where(seen, squares, 0.0)) <= limit

    # Beyond twice the largest distance the message is out of reach of any message.
    reach = 2.0 * jnp.sqrt(jnp.max(reduce(apart, axis=1)))
    high = jnp.where(length > 0, reach / jnp.sqrt(jnp.maximum(length, 1e-30)), 0.0)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        good = fits(middle)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    return jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.float32(0), high))[0]


@functools.cache
def _forge(summed: bool, deviation: Deviation, knowledge: Knowledge):
    def forge(
        stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
    ) -> tuple[Updates, State]:
        seen = rows.visible(knowledge, malicious, context)
        mean = rows.mean_of(stacked, seen)
        direction = deviation_from(deviation, stacked, seen, mean)
        gram = rows.gram_around(stacked, seen, mean, direction)
        gamma = largest_strength(gram, seen, summed=summed)
        return rows.put(stacked, malicious, rows.along(mean, -gamma, direction)), state

    return forge


def min_max(
    *, deviation: Deviation = "unit", knowledge: Knowledge = "honest"
) -> UpdateAttack:
    """Sends ``mu - gamma dev`` no farther from any message than two honest ones are.

    Shejwalkar and Houmansadr, 2021, "Manipulating the Byzantine: Optimizing Model
    Poisoning Attacks and Defenses for Federated Learning" (NDSS). gamma is the greatest
    number, found by bisection, with
    ``max_i |m - x_i| <= max_ij |x_i - x_j|``; the message that is sent always fits
    (a part in 100,000 of the squared distance is kept free for rounding). ``dev`` is
    the mean at unit length, the standard deviation of each coordinate (n - 1), or the
    sign of the mean.

    Threat model: knows all honest messages (or its colluders' own, the paper's
    "gradients of benign devices unknown"), and not the defence.

    Args:
      deviation: "unit", "std" or "sign"; static.
      knowledge: whose messages are seen, "honest" or "colluders"; static.

    Raises:
      ValueError: for an unknown deviation or knowledge.
    """
    return _attack("min_max", False, deviation, knowledge)


def min_sum(
    *, deviation: Deviation = "unit", knowledge: Knowledge = "honest"
) -> UpdateAttack:
    """Sends ``mu - gamma dev`` no farther from all messages than an honest one is.

    As ``min_max``, with sums of squared distances:
    ``sum_i |m - x_i|^2 <= max_i sum_j |x_i - x_j|^2``.

    Threat model: knows all honest messages (or its colluders' own), and not the
    defence.

    Args:
      deviation: "unit", "std" or "sign"; static.
      knowledge: whose messages are seen, "honest" or "colluders"; static.

    Raises:
      ValueError: for an unknown deviation or knowledge.
    """
    return _attack("min_sum", True, deviation, knowledge)


def _attack(
    name: str, summed: bool, deviation: Deviation, knowledge: Knowledge
) -> UpdateAttack:
    rows.check_choice(f"{name}: deviation", deviation, get_args(Deviation))
    rows.check_knowledge(name, knowledge)
    return UpdateAttack(rows.no_state, _forge(summed, deviation, knowledge))
