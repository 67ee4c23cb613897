"""Divide and conquer: rows that stand out along their own top direction are dropped."""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.columns import (
    EXACT,
    Block,
    row_norms,
    stack_of,
    sum_columns,
    weighted_rows,
)
from fedjax_health.aggregators.rows import (
    check_count,
    check_majority,
    check_malicious,
    check_number,
    normalised,
    row_metrics,
    rows_of,
    smallest,
)
from fedjax_health.core.message import Message
from fedjax_health.core.types import Aggregator, Key, Metrics, Params, State, Updates


@functools.cache
def _update(iterations: int):
    @jax.jit
    def update(
        stacked: Updates, weights: jax.Array, state: State, key: Key, *, context=None
    ) -> tuple[Updates, State, Metrics]:
        stack = stack_of(stacked)
        squares = row_norms(stack)
        rows = rows_of(weights, squares, context)
        center = normalised(rows.valid.astype(jnp.float32))
        keep = rows.count - jnp.floor(
            state["fraction"] * rows.malicious(state["num_malicious"])
        ).astype(jnp.int32)

        def products(number: int) -> jax.Array:
            drawn = jax.random.fold_in(key, number)

            def block(part: Block) -> jax.Array:
                kept = jnp.where(rows.valid[:, None], part.matrix(), 0.0)
                own = jax.random.fold_in(drawn, part.piece)
                own = jax.random.fold_in(own, jnp.uint32(part.start))
                chosen = jax.random.uniform(own, (part.size,)) < state["subdimension"]
                moved = kept - jnp.dot(center, kept, precision=EXACT)
                moved = jnp.where(rows.valid[:, None] & chosen, moved, 0.0)
                return jnp.matmul(moved, moved.T, precision=EXACT)

            return sum_columns(stack, block)

        def votes(number: int) -> jax.Array:
            # Squared scores along the top right singular vector, up to a factor: those
            # of the left one.
            top = jnp.linalg.eigh(products(number))[1][:, -1]
            return smallest(jnp.where(rows.valid, top**2, jnp.inf), keep) > 0

        kept = sum(votes(number).astype(jnp.int32) for number in range(iterations))
        chosen = rows.valid & (kept == jnp.max(kept)) & (kept > 0)
        shares = normalised(chosen.astype(jnp.float32))
        pieces = weighted_rows(stack, shares, jnp.all(jnp.isfinite(squares)))
        metrics = {**row_metrics(rows), "kept": chosen}
        return stack.build(pieces), state, metrics

    return update


def dnc(
    num_malicious: int,
    *,
    iterations: int = 5,
    subdimension: float = 0.2,
    fraction: float = 1.0,
) -> Aggregator:
    """Drops, over random coordinates, the rows that stand out most; averages the rest.

    Shejwalkar and Houmansadr, 2021, "Manipulating the Byzantine: Optimizing Model
    Poisoning Attacks and Defenses for Federated Learning" (NDSS). Each iteration draws
    coordinates, centres them on their mean, scores rows by their squared part along the
    top right singular vector, and keeps the n - c f lowest; a row must be kept by all
    iterations. Every coordinate is drawn with the probability ``subdimension`` (the
    authors draw a fixed number); if no row is kept by all, those kept most often are
    averaged.

    Breakdown point: f malicious rows, for f < n / 2, as far as the random coordinates
    show them. Weights are not used, but for a weight of 0, which marks an absent row.
    Static: ``iterations``; traced: the others.

    Args:
      num_malicious: f, the malicious rows that are assumed.
      iterations: how often coordinates are drawn.
      subdimension: share of the coordinates, in (0, 1].
      fraction: c, rows that an iteration drops, in multiples of f.

    Raises:
      ValueError: for numbers out of range; a ``CompositionError`` of ``check`` if
        2 f >= n or nothing would be kept.
    """
    f = check_malicious("dnc", num_malicious)
    count = check_count("dnc", "iterations", iterations, least=1)
    share = check_number("dnc", "subdimension", subdimension, above=0, most=1)
    multiple = check_number("dnc", "fraction", fraction, above=0)

    def init(params: Params) -> State:
        del params
        return {
            "num_malicious": jnp.int32(f),
            "subdimension": jnp.float32(share),
            "fraction": jnp.float32(multiple),
        }

    return Aggregator(init, _update(count), _check(f, multiple), False, "rows")


@functools.cache
def _check(f: int, fraction: float):
    def check(message: Message, cohort_size: int) -> Message:
        check_majority("dnc", f, cohort_size)
        check_majority("dnc with this fraction", int(fraction * f) // 2, cohort_size)
        return message

    return check
