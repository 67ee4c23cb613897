"""Fang's attacks: crafted for Krum, and for the trimmed mean and the median."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_health.attacks import rows
from fedjax_health.attacks.rows import Knowledge
from fedjax_health.attacks.statistical import check_num_malicious
from fedjax_health.core import trees
from fedjax_health.core.types import (
    AttackContext,
    Params,
    State,
    UpdateAttack,
    Updates,
)

_HALVINGS = 40

# Standard deviations between which the paper's partial knowledge draws.
_OUTLYING = (3.0, 4.0)


def krum_takes(
    apart: jax.Array,
    away: jax.Array,
    honest: jax.Array,
    copies: jax.Array,
    neighbors: jax.Array,
) -> jax.Array:
    """Returns whether Krum picks a message of which there are several copies, bool.

    The score of a message is the sum of its squared distances to its nearest others.
    A tie with an honest message is a loss.

    Args:
      apart: float32 ``[n, n]``, squared distances between honest messages.
      away: float32 ``[n]``, squared distances of the forged message to them.
      honest: bool ``[n]``; other rows are absent.
      copies: int32 ``[]``, how often the forged message is sent, at most n.
      neighbors: int32 ``[]``, others that are counted.
    """
    n = honest.shape[0]
    place = jnp.arange(n)
    both = honest[:, None] & honest[None, :] & ~jnp.eye(n, dtype=bool)
    others = jnp.where(both, apart, jnp.inf)
    forged = jnp.where(place < copies, away[:, None], jnp.inf)
    near = jnp.sort(jnp.concatenate([others, forged], axis=1), axis=1)[:, :n]
    scores = jnp.sum(jnp.where(place < neighbors, near, 0.0), axis=1)
    # The other copies lie at distance 0.
    own = jnp.sort(jnp.where(honest, away, jnp.inf))
    left = neighbors - (copies - 1)
    own = jnp.sum(jnp.where(place < left, own, 0.0))
    return (own < jnp.min(jnp.where(honest, scores, jnp.inf))) & (copies > 0)


def _forge_krum(
    stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
) -> tuple[Updates, State]:
    honest = rows.visible("honest", malicious, context)
    mean = rows.mean_of(stacked, honest)
    signs = jax.tree.map(jnp.sign, mean)
    cohort = malicious.shape[0]
    gram = rows.gram_around(stacked, honest, mean, signs, mean)
    moved, of_signs, of_mean = gram[:cohort, :cohort], gram[cohort], gram[cohort + 1]
    apart = rows.squared_distances(moved)
    norms = jnp.diagonal(moved) + 2.0 * of_mean[:cohort] + of_mean[cohort + 1]
    norms = jnp.maximum(norms, 0.0)
    slopes = of_signs[:cohort] + of_signs[cohort + 1]
    length = of_signs[cohort]

    copies = jnp.sum(malicious)
    f = jnp.where(state["num_malicious"] < 0, copies, state["num_malicious"])
    f = f.astype(jnp.int32)
    present = rows.num_present(malicious, context)
    neighbors = jnp.maximum(present - f - 2, 1)

    def takes(strength: jax.Array) -> jax.Array:
        away = norms + 2.0 * strength * slopes + strength**2 * length
        return krum_takes(apart, jnp.maximum(away, 0.0), honest, copies, neighbors)

    first = _largest_strength(
        jnp.sqrt(apart), jnp.sqrt(norms), honest, present, f, trees.num_params(mean)
    )

    def halve(carry, _):
        strength, done = carry
        done = done | takes(strength) | (strength < state["threshold"])
        return (jnp.where(done, strength, 0.5 * strength), done), None

    start = (first, jnp.bool_(False))
    (strength, _), _ = jax.lax.scan(halve, start, None, length=_HALVINGS)
    return rows.put(stacked, malicious, trees.scale(signs, -strength)), state


def _largest_strength(
    apart: jax.Array,
    norms: jax.Array,
    honest: jax.Array,
    present: jax.Array,
    f: jax.Array,
    dimension: int,
) -> jax.Array:
    """Returns the paper's upper bound on lambda (Theorem 1), float32 ``[]``."""
    n = honest.shape[0]
    both = honest[:, None] & honest[None, :] & ~jnp.eye(n, dtype=bool)
    near = jnp.sort(jnp.where(both, apart, jnp.inf), axis=1)
    wanted = (jnp.arange(n) < present - f - 2) & jnp.isfinite(near)
    sums = jnp.sum(jnp.where(wanted, near, 0.0), axis=1)
    least = jnp.min(jnp.where(honest, sums, jnp.inf))
    least = jnp.where(jnp.isfinite(least), least, 0.0)
    farthest = jnp.max(jnp.where(honest, norms, 0.0))
    spread = jnp.maximum(present - 2 * f - 1, 1)
    return (least / spread + farthest) / max(dimension, 1) ** 0.5


@functools.cache
def _forge_trimmed(knowledge: Knowledge):
    def forge(
        stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
    ) -> tuple[Updates, State]:
        seen = rows.visible(knowledge, malicious, context)
        mean = rows.mean_of(stacked, seen)
        if knowledge == "honest":
            low, high = rows.extremes_of(stacked, seen)
            b = state["spread"]
            under = jax.tree.map(lambda x: jnp.where(x > 0, x / b, x * b), low)
            over = jax.tree.map(lambda x: jnp.where(x > 0, x * b, x / b), high)
        else:
            deviation = rows.deviation_of(stacked, seen, mean, 1.0)
            low, under = (rows.along(mean, -k, deviation) for k in _OUTLYING)
            high, over = (rows.along(mean, k, deviation) for k in _OUTLYING)
        # Where the honest messages would raise a coordinate the forged one lies just
        # below them all, and the other way round.
        near = jax.tree.map(lambda m, u, o: jnp.where(m >= 0, u, o), mean, low, high)
        far = jax.tree.map(lambda m, u, o: jnp.where(m >= 0, u, o), mean, under, over)
        ids = rows.client_ids(malicious, context)

        def sample(row: Updates, i: jax.Array) -> Updates:
            del row
            leaves, structure = jax.tree.flatten(near)
            key = jax.random.fold_in(context.key, ids[i])
            keys = jax.random.split(key, len(leaves))
            shares = structure.unflatten(
                [
                    jax.random.uniform(k, x.shape)
                    for k, x in zip(keys, leaves, strict=True)
                ]
            )
            return jax.tree.map(lambda n, f, u: n + u * (f - n), near, far, shares)

        return rows.change_rows(stacked, malicious, sample), state

    return forge


def fang(
    *,
    form: Literal["krum", "trimmed_mean"] = "krum",
    num_malicious: int | None = None,
    threshold: float = 1e-5,
    spread: float = 2.0,
    knowledge: Knowledge = "honest",
) -> UpdateAttack:
    """Local model poisoning: against the direction in which the model would move.

    Fang et al., 2020, "Local Model Poisoning Attacks to Byzantine-Robust Federated
    Learning" (arXiv:1911.11815).

    ``form="krum"``: all attackers send ``-lambda sign(mu)``; lambda starts at the bound
    of the paper's Theorem 1 and is halved until Krum (n - f - 2 neighbours) would pick
    it, or until it is below ``threshold``. Krum is simulated on the honest messages and
    on as many copies as there are attackers; a tie counts as not picked.

    ``form="trimmed_mean"`` (for the median too): each attacker draws each coordinate
    uniformly just beyond the honest messages, against the sign of mu: below their
    minimum in ``[min / b, min]`` (``[b min, min]`` where it is negative), or above
    their maximum alike, with ``b = spread``. With ``knowledge="colluders"`` it is the
    paper's partial knowledge: between 3 and 4 standard deviations from mu, over the
    messages that the attackers would have sent.

    Threat model: knows all honest messages and the rule, which it takes to be the one
    of its form, whatever the defence is; or its colluders' messages alone.

    Args:
      form: "krum" or "trimmed_mean"; static.
      num_malicious: f as the attacker believes Krum to assume; None counts the
        malicious clients of the cohort. "krum" alone; traced.
      threshold: lambda at which the search ends, above 0; "krum" alone. Traced.
      spread: b, 1 or more; "trimmed_mean" alone. Traced.
      knowledge: "honest", or "colluders" for "trimmed_mean" alone; static.

    Raises:
      ValueError: for what does not go together or a number out of range.
    """
    rows.check_choice("fang: form", form, ("krum", "trimmed_mean"))
    rows.check_knowledge("fang", knowledge)
    if form == "krum" and knowledge != "honest":
        raise ValueError(
            "fang: form='krum' needs knowledge='honest'; form='trimmed_mean' goes with "
            f"{knowledge!r}"
        )
    check_num_malicious("fang", num_malicious)
    if not 0 < threshold < float("inf"):
        raise ValueError(f"fang: threshold must be above 0, not {threshold}")
    rows.check_number("fang: spread", spread, low=1)
    numbers = {
        "num_malicious": -1 if num_malicious is None else num_malicious,
        "threshold": threshold,
        "spread": spread,
    }

    def init(params: Params) -> State:
        del params
        return {name: jnp.float32(value) for name, value in numbers.items()}

    return UpdateAttack(
        init, _forge_krum if form == "krum" else _forge_trimmed(knowledge)
    )
