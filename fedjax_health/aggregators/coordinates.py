"""Rules that reduce each coordinate by itself, in blocks of columns.

Order statistics come from a selection network (``core.ranks``), which costs one or two
reads of the updates where a sort along the client axis costs hundreds. A network has
its ranks built in, so it serves while every row is there and finite; it says itself, by
a NaN, if one is not. Then, and for cohorts beyond the network's reach, the rows of a
block are sorted by a bitonic network over whole arrays with what does not count sorted
to the end, and ranks are looked up in what is there.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.columns import (
    BLOCK,
    EXACT,
    Block,
    Stack,
    map_columns,
    row_norms,
    stack_of,
)
from fedjax_health.aggregators.gram import Geometry, Needs, measure
from fedjax_health.aggregators.rows import Rows, row_metrics, rows_of
from fedjax_health.core.types import Key, Metrics, State, Updates

# Sum of a column's magnitudes up to which its rows surely have a finite squared norm.
_LARGE = 1e15

# Columns of a block that is sorted, or mixed: all of its rows are held at once.
_SORTED_BLOCK = 2048
_MIXED_BLOCK = 2048


class CoordinateKernel(NamedTuple):
    """A rule as functions of one block's rows.

    Attributes:
      network: ``(rows, state) -> [columns]``, where rows is a list of one array for
        each client, all of which count.
      general: ``(rows [n, columns], valid [n], dropped, state) -> [columns]``, where
        some rows may not count and ``dropped`` malicious ones are still assumed.
      malicious: how many malicious rows are assumed; None where the rule assumes none.
      reach: the largest cohort for which ``network`` is worth its compilation.
      choose: ``(Geometry, Rows, state) -> (order [k], chosen [n])`` where the rule
        first chooses rows by their inner products: k (static) row numbers while all
        rows are valid, and the same as a mask, which holds whatever is valid.
    """

    network: Callable[[Sequence[jax.Array], State], jax.Array]
    general: Callable[..., jax.Array]
    malicious: int | None = None
    reach: int = 64
    choose: Callable[..., tuple[jax.Array, jax.Array]] | None = None


def added(terms: Sequence[jax.Array]) -> jax.Array:
    """Returns the sum of arrays, in their order."""
    return functools.reduce(jnp.add, terms)


def sorted_rows(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Sorts each column, with the rows that do not count at the end as infinities.

    A bitonic network over whole arrays (Batcher, 1968): its kernels are few and small
    for every cohort.

    Args:
      rows: float32 ``[n, columns]``.
      valid: bool ``[n]``.

    Returns:
      float32 ``[m, columns]``, m the next power of two.
    """
    n, columns = rows.shape
    size = 1 << max(n - 1, 0).bit_length()
    x = jnp.where(valid[:, None], rows, jnp.inf)
    x = jnp.pad(x, ((0, size - n), (0, 0)), constant_values=jnp.inf)

    def exchange(a: jax.Array, b: jax.Array, turned: bool) -> jax.Array:
        small, large = jnp.where(a < b, a, b), jnp.where(a < b, b, a)
        if turned:
            large = large[:, ::-1]
        # Fused with the next step it would be computed anew for each of its readers.
        return jax.lax.optimization_barrier(jnp.stack([small, large], axis=1))

    run = 1
    while run < size:
        pair = x.reshape(size // (2 * run), 2, run, columns)
        x = exchange(pair[:, 0], pair[:, 1, ::-1], True)
        step = run // 2
        while step:
            pair = x.reshape(size // (2 * step), 2, step, columns)
            x = exchange(pair[:, 0], pair[:, 1], False)
            step //= 2
        run *= 2
    return x.reshape(size, columns)


def sorted_median(ordered: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the median of the first ``count`` rows of a sorted block."""
    low = _row(ordered, jnp.maximum(count - 1, 0) // 2)
    return 0.5 * (low + _row(ordered, count // 2))


def sorted_mean(ordered: jax.Array, first: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the mean of ``count`` rows of a sorted block, from row ``first`` on."""
    place = jnp.arange(ordered.shape[0])
    taken = (place >= first) & (place < first + count)
    weights = jnp.where(taken, 1.0 / jnp.maximum(count, 1), 0.0)
    return jnp.dot(weights, jnp.where(taken[:, None], ordered, 0.0), precision=EXACT)


def _row(ordered: jax.Array, number: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(ordered, number, 0, keepdims=False)


def no_mixing(geometry: Geometry, rows: Rows, numbers: State, key: Key):
    """The mixing of a rule that stands alone: none."""
    del numbers, key
    return geometry, rows, None


@functools.cache
def coordinate_update(
    kernel: CoordinateKernel, mixing: Any = no_mixing, needs: Needs = ""
):
    """Returns the ``update`` of a coordinate rule; the same one for the same kernel.

    Args:
      kernel: the rule.
      mixing: ``(Geometry, Rows, numbers, key) -> (Geometry, Rows, matrix or scales)``;
        scales ``[n]`` stand for a diagonal matrix.
      needs: what the mixing needs of the rows. A state is then a pair of the mixing's
        numbers and the rule's state.
    """
    alone = mixing is no_mixing

    @jax.jit
    def update(
        stacked: Updates, weights: jax.Array, state: State, key: Key, *, context=None
    ) -> tuple[Updates, State, Metrics]:
        numbers, own = ((), state) if alone else state
        stack = stack_of(stacked)
        if alone and kernel.choose is None:
            pieces, masked = _unmixed(stack, weights, own, context, kernel)
            return stack.build(pieces), state, {"masked_rows": masked}
        asked = "gram" if kernel.choose is not None else needs
        geometry, rows, _ = measure(stack, weights, [], context, asked)
        mixed, mixed_rows, matrix = mixing(geometry, rows, numbers, key)
        metrics = row_metrics(rows)
        order, counting = None, mixed_rows.valid
        if kernel.choose is not None:
            order, counting = kernel.choose(mixed, mixed_rows, own)
            kept = counting
            if matrix is not None:
                share = counting * (matrix if matrix.ndim == 1 else matrix.T)
                kept = share != 0 if matrix.ndim == 1 else jnp.any(share != 0, axis=1)
            metrics["kept"] = kept & rows.valid
        reduced = _mixed(stack, kernel, own, rows, mixed_rows, matrix, order, counting)
        return stack.build(reduced), state, metrics

    return update


def _unmixed(
    stack: Stack, weights: jax.Array, state: State, context, kernel: CoordinateKernel
) -> tuple[list[jax.Array], jax.Array]:
    """Reduces the messages themselves; returns the pieces and how many were masked."""

    def careful() -> tuple[list[jax.Array], jax.Array]:
        rows = rows_of(weights, row_norms(stack), context)
        return _general(stack, kernel, state, rows, rows.valid), rows.masked

    if stack.cohort > kernel.reach:
        return careful()

    def block(part: Block) -> jax.Array:
        rows = [part.row(i) for i in range(stack.cohort)]
        size = added([jnp.abs(row) for row in rows])
        return jnp.where(size < _LARGE, kernel.network(rows, state), jnp.nan)

    tried = map_columns(stack, block)
    # No coordinate of the result is larger than its column's sum, and no sum of squares
    # overflows that way but for a row that does not count.
    square = sum(jnp.dot(x, x, precision=EXACT) for x in tried)
    every = jnp.all(weights > 0) & jnp.isfinite(square)
    return jax.lax.cond(every, lambda: (tried, jnp.int32(0)), careful)


def _general(
    stack: Stack,
    kernel: CoordinateKernel,
    state: State,
    rows: Rows,
    counting: jax.Array,
    matrix: jax.Array | None = None,
) -> list[jax.Array]:
    assumed = rows.malicious(kernel.malicious or 0)
    dropped = jnp.minimum(assumed, jnp.maximum(jnp.sum(counting) - 1, 0) // 2)

    def block(part: Block) -> jax.Array:
        taken = part.matrix()
        if matrix is not None:
            taken = _times(matrix, taken)
        taken = jnp.where(counting[:, None], taken, 0.0)
        made = kernel.general(taken, counting, dropped, state)
        return jnp.where(jnp.any(counting), made, 0.0)

    return map_columns(stack, block, size=_SORTED_BLOCK)


def _times(matrix: jax.Array, rows: jax.Array) -> jax.Array:
    if matrix.ndim == 1:
        return jnp.where(matrix[:, None] != 0, matrix[:, None] * rows, 0.0)
    # Columns of the matrix that are 0 belong to rows that may hold anything.
    used = jnp.any(matrix != 0, axis=0)[:, None]
    return jnp.matmul(matrix, jnp.where(used, rows, 0.0), precision=EXACT)


def _mixed(
    stack: Stack,
    kernel: CoordinateKernel,
    state: State,
    rows: Rows,
    mixed_rows: Rows,
    matrix: jax.Array | None,
    order: jax.Array | None,
    counting: jax.Array,
) -> list[jax.Array]:
    """Reduces mixed or chosen rows, of which it is known whether they count."""
    number = mixed_rows.valid.shape[0] if order is None else order.shape[0]

    def general() -> list[jax.Array]:
        return _general(stack, kernel, state, mixed_rows, counting, matrix)

    if number > kernel.reach:
        return general()

    def network() -> list[jax.Array]:
        chosen = matrix
        if chosen is not None and order is not None:
            chosen = chosen[order]

        def block(part: Block) -> jax.Array:
            numbers = range(number) if order is None else order
            if chosen is None:
                taken = [part.row(i) for i in numbers]
            elif chosen.ndim == 1:
                taken = [chosen[k] * part.row(i) for k, i in enumerate(numbers)]
            else:
                product = jnp.matmul(chosen, part.matrix(), precision=EXACT)
                taken = [product[k] for k in range(number)]
            return kernel.network(taken, state)

        # What a product leaves is read again at once: it must stay in the near cache.
        size = _MIXED_BLOCK if chosen is not None and chosen.ndim == 2 else BLOCK
        return map_columns(stack, block, size=size)

    return jax.lax.cond(jnp.all(rows.valid), network, general)
