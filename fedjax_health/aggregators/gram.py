"""Rules that need inner products alone: two passes over the updates, whatever the rule.

With ``G = sum over leaves of X X^T`` clipping, nearest-neighbour mixing and bucketing
are small matrices M, and Krum, the geometric median, centred clipping and their like
are weights w: all of a rule happens in n x n, and one product ``w @ X`` ends it.

Precision. In float32 the inner products of rows that lie close together and far from
the origin drown in the rounding of their norms: with an offset of 100 times the spread
the squared distances lose .4 %, with 1000 times 40 %. The first pass tells whether that
is so; if it is, a second one forms the differences to a centre before it multiplies.
The centre is the row whose nearest majority lies closest: a majority of the rows is
around it, one of them honest, so that the malicious cannot pull it away from the honest
rows (as they can pull a mean) and a centre costs no pass of its own (as a median does).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.columns import (
    EXACT,
    Block,
    Stack,
    row_norms,
    stack_of,
    sum_columns,
    vectors_of,
    weighted_rows,
)
from fedjax_health.aggregators.rows import Rows, row_metrics, rows_of
from fedjax_health.core.types import (
    AggregationContext,
    Key,
    Metrics,
    State,
    Updates,
)

# Smallest squared radius of a majority, in squared norms of its centre, at which
# products about the origin are precise enough: 16 roundings of 1e-7.
_SPREAD = 1.0 / 16

Needs = Literal["gram", "norms", "nothing", ""]
"""What of the rows a rule works with: "gram", their "norms", or "nothing" of them."""


class Geometry(NamedTuple):
    """What is known of m points: the messages, mixed or not, and a rule's own vectors.

    Attributes:
      gram: float32 ``[m + 1, m + 1]``, inner products about a centre near the messages;
        the last point is the origin. Rows of points that do not count are 0.
      norms: float32 ``[m]``, norms about the origin.
      valid: bool ``[m]``.
    """

    gram: jax.Array
    norms: jax.Array
    valid: jax.Array

    def squared_distances(self) -> jax.Array:
        """Returns them, ``[m, m]``: 0 to the point itself, infinite to invalid ones."""
        squared = _squared_distances(self.gram[:-1, :-1])
        both = self.valid[:, None] & self.valid[None, :]
        return jnp.where(both, squared, jnp.inf)


class GramKernel(NamedTuple):
    """A rule as weights.

    Attributes:
      weigh: ``(Geometry, Rows, state, key) -> (weights [m], metrics)``; the aggregate
        is the sum of the points so weighted. ``Rows`` are the messages, the first of
        the m points.
      needs: see ``Needs``; a rule that needs norms or nothing gets zeros for the rest.
      vectors: ``(state, context) -> trees`` that are points beside the messages.
      finish: ``(aggregate, Geometry, Rows, state, key) -> (aggregate, state)``, what
        the rule does with the aggregate and remembers.
      selects: whether a weight of 0 means that the client was judged and dropped, which
        the rule then reports as ``kept`` ``[cohort]``.
    """

    weigh: Callable[[Geometry, Rows, State, Key], tuple[jax.Array, Metrics]]
    needs: Needs = "gram"
    vectors: Callable[[State, AggregationContext | None], Sequence[Updates]] | None = (
        None
    )
    finish: Callable[..., tuple[Updates, State]] | None = None
    selects: bool = False


def _squared_distances(gram: jax.Array) -> jax.Array:
    squares = jnp.diagonal(gram)
    between = squares[:, None] + squares[None, :] - 2.0 * gram
    return jnp.where(jnp.eye(gram.shape[0], dtype=bool), 0.0, jnp.maximum(between, 0.0))


def _majority(squared: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the row whose nearest majority lies closest and its squared radius."""
    both = valid[:, None] & valid[None, :]
    ordered = jnp.sort(jnp.where(both, squared, jnp.inf), axis=1)
    half = jnp.sum(valid) // 2
    radius = jax.lax.dynamic_index_in_dim(ordered, half, 1, keepdims=False)
    radius = jnp.where(valid, radius, jnp.inf)
    return jnp.argmin(radius), jnp.min(radius)


def products(
    stack: Stack, vectors: Sequence[Sequence[jax.Array]], center: jax.Array | None
) -> jax.Array:
    """Returns the inner products of rows, further vectors and, last, the origin.

    Args:
      stack: the rows, n of them.
      vectors: pieces of k further vectors.
      center: int32 ``[]``, the row that everything is moved by; None for the origin.

    Returns:
      float32 ``[n + k + 1, n + k + 1]``.
    """
    # Fewer rows want fewer columns for a block to stay in the nearest cache.
    size = 2048 if stack.cohort + len(vectors) <= 32 else 8192

    def product(rows: jax.Array, others: jax.Array) -> jax.Array:
        contracted = (((1,), (1,)), ((), ()))
        return jax.lax.dot_general(rows, others, contracted, precision=EXACT)

    def block(part: Block) -> jax.Array:
        rows = part.matrix()
        if center is not None:
            more = [part.part(v)[None] for v in vectors]
            middle = part.row(center)[None]
            rows = jnp.concatenate([rows, *more]) - middle
            rows = jnp.concatenate([rows, -middle])
            return product(rows, rows)
        made = product(rows, rows)
        if not vectors:
            return made
        # By itself: a vector more in the block would copy the whole of it.
        more = jnp.stack([part.part(v) for v in vectors])
        across = product(rows, more)
        own = product(more, more)
        return jnp.block([[made, across], [across.T, own]])

    made = sum_columns(stack, block, size=size)
    return made if center is not None else jnp.pad(made, ((0, 1), (0, 1)))


def measure(
    stack: Stack,
    weights: jax.Array,
    vectors: Sequence[Sequence[jax.Array]],
    context: AggregationContext | None,
    needs: Needs,
) -> tuple[Geometry, Rows, jax.Array]:
    """Returns the geometry of a stack, its rows, and whether every row is finite."""
    points = stack.cohort + len(vectors)
    if needs != "gram":
        squares = row_norms(stack)
        own = [sum(jnp.dot(p, p, precision=EXACT) for p in v) for v in vectors]
        squares = jnp.concatenate([squares, jnp.asarray(own, jnp.float32)])
        gram = jnp.zeros((points + 1, points + 1))
        rows, valid = _judge(squares, stack.cohort, weights, context)
        norms = jnp.where(valid, jnp.sqrt(squares), 0.0)
        return Geometry(gram, norms, valid), rows, _clean(squares)
    raw = products(stack, vectors, None)
    squares = jnp.diagonal(raw)[:-1]
    rows, valid = _judge(squares, stack.cohort, weights, context)
    counts = jnp.append(valid, True)

    def only_valid(gram: jax.Array) -> jax.Array:
        return jnp.where(counts[:, None] & counts[None, :], gram, 0.0)

    raw = only_valid(raw)
    n = stack.cohort
    center, radius = _majority(_squared_distances(raw[:n, :n]), rows.valid)
    # A majority of equal rows has radius 0 and is moved into the origin.
    blurred = radius < _SPREAD * jnp.diagonal(raw)[center]
    gram = jax.lax.cond(
        blurred,
        lambda: only_valid(products(stack, vectors, center)),
        lambda: raw,
    )
    norms = jnp.where(valid, jnp.sqrt(squares), 0.0)
    return Geometry(gram, norms, valid), rows, _clean(squares)


def _judge(squares, cohort: int, weights, context) -> tuple[Rows, jax.Array]:
    rows = rows_of(weights, squares[:cohort], context)
    own = jnp.ones(squares.shape[0] - cohort, bool)
    return rows, jnp.concatenate([rows.valid, own])


def _clean(squares: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(squares))


def mix_geometry(geometry: Geometry, matrix: jax.Array, valid: jax.Array) -> Geometry:
    """Returns the geometry of mixed rows; a rule's own vectors stay as they are.

    The rows are taken as differences to one of the mixed ones before anything is
    multiplied: mixing makes rows alike, and what is left of their distances would
    drown.

    Args:
      geometry: of n rows and k vectors.
      matrix: float32 ``[m, n]``.
      valid: bool ``[m]``.
    """
    m, n = matrix.shape
    vectors = geometry.norms.shape[0] - n
    whole = jnp.zeros((m + vectors, n + vectors)).at[:m, :n].set(matrix)
    whole = whole.at[m:, n:].set(jnp.eye(vectors))
    # A row that is no average of the others is one together with the origin.
    whole = jnp.concatenate([whole, 1.0 - jnp.sum(whole, 1, keepdims=True)], axis=1)
    origin = jnp.zeros(n + vectors + 1).at[-1].set(1.0)
    whole = jnp.concatenate([whole, origin[None]])
    counts = jnp.concatenate([valid, jnp.ones(vectors + 1, bool)])

    def about(base: jax.Array) -> jax.Array:
        moved = jnp.where(counts[:, None], whole - base, 0.0)
        half = jnp.matmul(moved, geometry.gram, precision=EXACT)
        return jnp.matmul(half, moved.T, precision=EXACT)

    around_origin = about(origin)
    center, _ = _majority(_squared_distances(around_origin[:m, :m]), valid)
    gram = about(whole[center])
    squares = jnp.maximum(jnp.diagonal(around_origin)[:-1], 0.0)
    return Geometry(gram, jnp.sqrt(squares), counts[:-1])


def plain_mixing(
    geometry: Geometry, rows: Rows, numbers: State, key: Key
) -> tuple[Geometry, Rows, jax.Array | None]:
    """The mixing of a rule that stands alone: none."""
    del numbers, key
    return geometry, rows, None


@functools.cache
def gram_update(kernel: GramKernel, mixing: Any = plain_mixing, needs: Needs = ""):
    """Returns the ``update`` of a Gram rule; the same one for the same kernel.

    Args:
      kernel: the rule.
      mixing: ``(Geometry, Rows, numbers, key) -> (Geometry, Rows, matrix)``; scales
        ``[n]`` stand for a diagonal matrix, None for no mixing.
      needs: what the mixing needs of the rows; the kernel's own needs where empty. A
        state is then a pair of the mixing's numbers and the rule's state.
    """
    alone = mixing is plain_mixing

    @jax.jit
    def update(
        stacked: Updates, weights: jax.Array, state: State, key: Key, *, context=None
    ) -> tuple[Updates, State, Metrics]:
        numbers, own = ((), state) if alone else state
        stack = stack_of(stacked)
        trees = kernel.vectors(own, context) if kernel.vectors else ()
        vectors = [vectors_of(stacked, tree) for tree in trees]
        asked = needs or kernel.needs
        geometry, rows, clean = measure(stack, weights, vectors, context, asked)
        mixed, mixed_rows, matrix = mixing(geometry, rows, numbers, key)
        weighed, metrics = kernel.weigh(mixed, mixed_rows, own, key)
        m = mixed_rows.valid.shape[0]
        shares = weighed[:m]
        if matrix is not None and matrix.ndim == 1:
            shares = shares * matrix
        elif matrix is not None:
            shares = jnp.matmul(shares, matrix, precision=EXACT)
        # Weights of rows that do not count are 0; say so exactly.
        shares = jnp.where(rows.valid, shares, 0.0)
        extra = [(weighed[m + i], vector) for i, vector in enumerate(vectors)]
        pieces = weighted_rows(stack, shares, clean, extra)
        aggregate = stack.build(pieces)
        if kernel.finish is not None:
            aggregate, own = kernel.finish(aggregate, mixed, mixed_rows, own, key)
        if kernel.selects:
            metrics = {**metrics, "kept": shares != 0}
        after = own if alone else (numbers, own)
        return aggregate, after, {**row_metrics(rows), **metrics}

    return update
