"""Aggregation part by part: each part of a model over the clients that have its data.

A client without a modality has learned nothing about its encoder, and its message holds
zeros there. Averaged in, they would hold the encoder back; to a rule that ranks
messages they would look like a crowd that agrees.
"""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.core import trees
from fedjax_health.core.types import (
    AggregationContext,
    Aggregator,
    Metrics,
    State,
    Updates,
)
from fedjax_health.engine.places import Parts


def part_weights(weights: jax.Array, shares: jax.Array, *, weighting: str) -> jax.Array:
    """Returns what each client weighs in each part, ``[..., parts]``.

    Args:
      weights: float32 ``[...]``, in the parts that all clients train.
      shares: float32 ``[..., parts]``, see ``Cohort.part_shares``.
      weighting: with "examples" a client weighs by its examples that have the part's
        data, with "uniform" the same if it has any.
    """
    counted = shares if weighting == "examples" else (shares > 0).astype(shares.dtype)
    return weights[..., None] * counted


def scale_by_part(
    parts: Parts, tree: Updates, common: jax.Array, own: jax.Array
) -> Updates:
    """Multiplies the leaves that all train by ``common``, those of part p by own[p]."""
    factors = [
        common if part is None else own[part]
        for part in map(parts.of, trees.path_names(tree))
    ]
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(
        [x * f.astype(x.dtype) for x, f in zip(leaves, factors, strict=True)]
    )


@functools.cache
def _update_by_part(rule, parts: Parts, numbers: tuple[int | None, ...]):
    def update(
        stacked: Updates,
        weights: jax.Array,
        state: State,
        key: jax.Array,
        *,
        context: AggregationContext | None = None,
    ) -> tuple[Updates, State, Metrics]:
        if context is None or context.part_shares is None:
            raise ValueError(
                "a rule over parts needs context.part_shares [cohort, parts], the "
                "share of each client's examples that has the data of a part: build "
                "cohorts with part_shares"
            )
        total, states, metrics = None, [], {}
        kept = jnp.ones(weights.shape, bool)
        for place, number in enumerate(numbers):
            of_part = _selector(parts, number)
            own = jnp.ones_like(weights)
            if number is not None:
                own = context.part_shares[:, number]
            known = context._replace(mask=context.mask & (own > 0))
            if context.root_updates is not None:
                root = trees.split_by_path(context.root_updates, of_part)[1]
                known = known._replace(root_updates=root)
            aggregate, new, said = rule(
                trees.split_by_path(stacked, of_part)[1],
                weights * own,
                state[place],
                jax.random.fold_in(key, place),
                context=known,
            )
            total = aggregate if total is None else trees.join(total, aggregate)
            states.append(new)
            if "kept" in said:
                kept &= said["kept"] | (own <= 0)
            name = "" if number is None else f"_{parts.names[number]}"
            metrics |= {f"{k}{name}": v for k, v in said.items() if k != "kept"}
            if "kept" in said:
                metrics["kept"] = kept
        return total, tuple(states), metrics

    return update


@functools.cache
def _selector(parts: Parts, number: int | None):
    return lambda path: parts.of(path) == number


def by_part(rule: Aggregator, parts: Parts | None) -> Aggregator:
    """Returns the rule applied to each part among the clients that have its data.

    A linear rule comes back as it is: the engine weighs its sums by part. The key and
    the state of each part are its own; a client counts as dropped where any part of its
    message was. Metrics of a part end with its name.

    Args:
      rule: the rule.
      parts: the parts, or None for a model of one.
    """
    if parts is None:
        return rule
    return _by_part(rule, parts)


def _by_part(rule: Aggregator, parts: Parts) -> Aggregator:
    def init(params: Updates) -> State:
        return tuple(
            rule.init(trees.split_by_path(params, _selector(parts, number))[1])
            for number in _present(parts, params)
        )

    def update(stacked, weights, state, key, *, context=None):
        numbers = tuple(_present(parts, stacked))
        return _update_by_part(rule.update, parts, numbers)(
            stacked, weights, state, key, context=context
        )

    return rule._replace(init=init, update=update, depends_on="rows", kernel=None)


def _present(parts: Parts, tree: Updates) -> list[int | None]:
    """Returns the numbers of the parts that have leaves, the common one first."""
    found = set(map(parts.of, trees.path_names(tree)))
    order = [None, *range(len(parts.names))]
    return [number for number in order if number in found]
