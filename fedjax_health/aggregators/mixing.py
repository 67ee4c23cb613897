"""Mixings before a rule, and how they are composed with it.

A mixing is a small matrix M that makes m messages of n. In a pipeline the matrices are
multiplied with one another and the Gram matrix becomes ``M G M^T``: mixed messages are
never held. A Gram rule's weights w then end in one pass, ``(w M) @ X``; a coordinate
rule mixes each block of columns as it reduces it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.columns import (
    EXACT,
    Block,
    Stack,
    map_columns,
    stack_of,
)
from fedjax_health.aggregators.coordinates import CoordinateKernel, coordinate_update
from fedjax_health.aggregators.gram import (
    Geometry,
    GramKernel,
    Needs,
    gram_update,
    measure,
    mix_geometry,
)
from fedjax_health.aggregators.rows import LARGEST, Rows, row_metrics
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import (
    AggregationContext,
    Aggregator,
    Key,
    Metrics,
    Mixing,
    Params,
    State,
    Updates,
)


class MixingKernel(NamedTuple):
    """A mixing as a function of what is known of the rows.

    Attributes:
      build: ``(Geometry, Rows, numbers, key) -> (matrix [m, n], valid [m])``; a mixing
        that only scales rows returns its diagonal ``[n]`` as the matrix. Columns of
        rows that do not count are 0, and so are rows that are not valid.
      needs: see ``gram.Needs``.
    """

    build: Callable[[Geometry, Rows, State, Key], tuple[jax.Array, jax.Array]]
    needs: Needs


def build_mixing(kernel: MixingKernel, numbers: State, check) -> Mixing:
    """Returns a mixing whose ``matrix`` stands alone.

    Args:
      kernel: the same object for equal static arguments.
      numbers: Python numbers that are traced in a pipeline.
      check: the static half.
    """

    def matrix(gram: jax.Array, key: Key) -> jax.Array:
        gram = jnp.asarray(gram, jnp.float32)
        squares = jnp.diagonal(gram)
        valid = squares <= LARGEST
        both = valid[:, None] & valid[None, :]
        geometry = Geometry(
            jnp.pad(jnp.where(both, gram, 0.0), ((0, 1), (0, 1))),
            jnp.where(valid, jnp.sqrt(jnp.maximum(squares, 0.0)), 0.0),
            valid,
        )
        rows = Rows(
            valid,
            valid.astype(jnp.float32),
            jnp.sum(~valid).astype(jnp.int32),
            jnp.arange(valid.shape[0], dtype=jnp.int32),
        )
        made, _ = kernel.build(geometry, rows, numbers, key)
        return jnp.diag(made) if made.ndim == 1 else made

    return Mixing(matrix, check, kernel, numbers)


def _joint_needs(kernels: tuple[MixingKernel, ...], last: Needs) -> Needs:
    """Returns what must be known of the messages for mixings and what follows them."""
    needs = [*(kernel.needs for kernel in kernels), last]
    if "gram" in needs:
        return "gram"
    # Norms of rows that more than scaling has mixed come from inner products.
    mixed = [i for i, kernel in enumerate(kernels) if kernel.needs == "nothing"]
    if mixed and "norms" in needs[mixed[0] + 1 :]:
        return "gram"
    return "norms" if "norms" in needs else "nothing"


@functools.cache
def _composed(kernels: tuple[MixingKernel, ...], needs: Needs):
    """Returns the mixings as one; the same function for the same kernels."""

    def mixing(geometry: Geometry, rows: Rows, numbers: State, key: Key):
        whole = None
        for i, kernel in enumerate(kernels):
            own = jax.random.fold_in(key, i)
            matrix, valid = kernel.build(geometry, rows, numbers[i], own)
            if matrix.ndim == 1:
                weights, ids = jnp.where(valid, rows.weights, 0.0), rows.client_ids
            else:
                total = jnp.sum(matrix, axis=1, keepdims=True)
                shares = matrix / jnp.where(total != 0, total, 1.0)
                weights = jnp.matmul(shares, rows.weights, precision=EXACT)
                ids = jnp.arange(valid.shape[0], dtype=jnp.int32)
                if valid.shape == rows.valid.shape:
                    ids = rows.client_ids
            geometry = _mixed_geometry(geometry, matrix, valid, needs)
            rows = Rows(valid, jnp.where(valid, weights, 0.0), rows.masked, ids)
            whole = matrix if whole is None else _product(matrix, whole)
        return geometry, rows, whole

    return mixing


def _mixed_geometry(
    geometry: Geometry, matrix: jax.Array, valid: jax.Array, needs: Needs
) -> Geometry:
    own = geometry.valid[matrix.shape[-1] :]
    if needs == "gram":
        dense = jnp.diag(matrix) if matrix.ndim == 1 else matrix
        return mix_geometry(geometry, dense, valid)
    # Without inner products only scaling leaves known norms.
    m, k = valid.shape[0], own.shape[0]
    norms = jnp.zeros(m)
    if matrix.ndim == 1:
        norms = matrix * geometry.norms[:m]
    norms = jnp.concatenate([norms, geometry.norms[matrix.shape[-1] :]])
    return Geometry(
        jnp.zeros((m + k + 1, m + k + 1)), norms, jnp.concatenate([valid, own])
    )


def _product(second: jax.Array, first: jax.Array) -> jax.Array:
    if second.ndim == 1:
        return second * first if first.ndim == 1 else second[:, None] * first
    if first.ndim == 1:
        return second * first[None, :]
    return jnp.matmul(second, first, precision=EXACT)


def _traced(numbers: Any) -> State:
    def leaf(x):
        return jnp.int32(x) if isinstance(x, int) else jnp.float32(x)

    return jax.tree.map(leaf, numbers)


@functools.cache
def _mix_update(kernels: tuple[MixingKernel, ...]):
    """Returns the function that mixes a stack, with its rows before and after."""
    needs = _joint_needs(kernels, "nothing")
    mixing = _composed(kernels, needs)

    @jax.jit
    def update(stacked: Updates, weights: jax.Array, numbers: State, key: Key, context):
        stack = stack_of(stacked)
        geometry, rows, _ = measure(stack, weights, [], context, needs)
        _, mixed, matrix = mixing(geometry, rows, numbers, key)
        assert matrix is not None
        return stack.build(_mixed_pieces(stack, matrix)), rows, mixed

    return update


def _mixed_pieces(stack: Stack, matrix: jax.Array) -> list[jax.Array]:
    if matrix.ndim == 1:
        used = (matrix != 0)[:, None]
        return [
            jnp.where(used, x.astype(jnp.float32), 0.0) * matrix[:, None]
            for x in stack.pieces
        ]
    used = jnp.any(matrix != 0, axis=0)[:, None]

    def product(part: Block) -> jax.Array:
        rows = jnp.where(used, part.matrix(), 0.0)
        return jnp.matmul(matrix, rows, precision=EXACT)

    return map_columns(stack, product)


def mix(
    mixing: Mixing,
    stacked: Updates,
    key: Key,
    *,
    weights: jax.Array | None = None,
    context: AggregationContext | None = None,
) -> Updates:
    """Applies one mixing alone.

    Args:
      mixing: such as ``nnm(3)``.
      stacked: leaves ``[n, ...]``; they are not changed.
      key: for mixings that draw.
      weights: float32 ``[n]``, 0 for absent rows; None for all present.
      context: see ``Aggregator``.

    Returns:
      Leaves ``[m, ...]``; zeros for a message that nothing went into.
    """
    if weights is None:
        weights = jnp.ones(jax.tree.leaves(stacked)[0].shape[0])
    update = _mix_update((_kernel_of(mixing),))
    return update(stacked, weights, (_traced(mixing.numbers),), key, context)[0]


def _kernel_of(mixing: Mixing) -> MixingKernel:
    if mixing.kernel is not None:
        return mixing.kernel
    return _own_kernel(mixing.matrix)


@functools.cache
def _own_kernel(matrix: Callable[[jax.Array, Key], jax.Array]) -> MixingKernel:
    """Returns the kernel of a mixing of one's own, which has a matrix alone."""

    def build(geometry: Geometry, rows: Rows, numbers: State, key: Key):
        del numbers
        n = rows.valid.shape[0]
        gram = geometry.gram
        origin = gram[:n, -1]
        raw = gram[:n, :n] - origin[:, None] - origin[None, :] + gram[-1, -1]
        made = jnp.where(rows.valid[None, :], matrix(raw, key), 0.0)
        valid = jnp.any(made != 0, axis=1)
        if made.shape[0] == n:
            valid = valid & rows.valid
        return jnp.where(valid[:, None], made, 0.0), valid

    return MixingKernel(build, "gram")


@functools.cache
def _generic_update(kernels: tuple[MixingKernel, ...], update):
    """Returns the update of a pipeline that holds mixed rows: of any rule."""
    mixed_by = _mix_update(kernels)

    def whole(
        stacked: Updates, weights: jax.Array, state: State, key: Key, *, context=None
    ) -> tuple[Updates, State, Metrics]:
        numbers, own = state
        mixed, rows, left = mixed_by(stacked, weights, numbers, key, context)
        if context is not None:
            m = left.valid.shape[0]
            # What was masked was sent, and counts towards the malicious.
            sent = left.valid
            if m == rows.valid.shape[0]:
                sent = left.valid | (jnp.asarray(context.mask) & ~rows.valid)
            context = context._replace(client_ids=left.client_ids, mask=sent)
        aggregate, own, metrics = update(mixed, left.weights, own, key, context=context)
        metrics = {k: v for k, v in metrics.items() if k != "kept"}
        return aggregate, (numbers, own), {**metrics, **row_metrics(rows)}

    return whole


def pipeline(*parts: Mixing | Aggregator) -> Aggregator:
    """Joins mixings and a rule: ``pipeline(nnm(3), trimmed_mean(3))``.

    The first mixing sees the messages, each next one what the one before made of them,
    the rule what the last one made. A selecting rule reports as ``kept`` the clients
    whose messages went into what it selected.

    Args:
      *parts: mixings, then exactly one aggregator.

    Raises:
      ValueError: for parts in another order; whatever ``check`` of the parts raises for
        a cohort of a wrong size.
    """
    *mixings, rule = parts or (None,)
    if not isinstance(rule, Aggregator):
        raise ValueError(
            "pipeline ends in exactly one aggregator, such as "
            f"pipeline(nnm(3), trimmed_mean(3)), not in {type(rule).__name__}"
        )
    for part in mixings:
        if not isinstance(part, Mixing):
            raise ValueError(
                "pipeline takes mixings (nnm, bucketing, clip_norms, arc) before its "
                f"aggregator, not {type(part).__name__}"
            )
    if not mixings:
        return rule
    first = [part for part in mixings if isinstance(part, Mixing)]
    kernels = tuple(_kernel_of(part) for part in first)
    numbers = tuple(part.numbers for part in first)

    def init(params: Params) -> State:
        return tuple(_traced(own) for own in numbers), rule.init(params)

    def check(message: Message, cohort_size: int) -> Message:
        for part in first:
            message, cohort_size = part.check(message, cohort_size)
        return rule.check(message, cohort_size)

    update, depends_on = _pipeline_update(kernels, rule)
    return Aggregator(init, update, check, False, depends_on)


def _pipeline_update(kernels: tuple[MixingKernel, ...], rule: Aggregator):
    kernel = rule.kernel
    if isinstance(kernel, GramKernel):
        needs = _joint_needs(kernels, kernel.needs)
        update = gram_update(kernel, _composed(kernels, needs), needs)
        return update, rule.depends_on
    if isinstance(kernel, CoordinateKernel):
        needs = _joint_needs(kernels, "gram" if kernel.choose else "nothing")
        update = coordinate_update(kernel, _composed(kernels, needs), needs)
        alone = rule.depends_on in ("coordinates", "median")
        blind = needs == "nothing" and alone
        return update, "coordinates" if blind else "rows"
    return _generic_update(kernels, rule.update), "rows"


def check_smaller(rule: str, name: str, value: int, cohort_size: int) -> None:
    """Refuses a number that leaves none of the cohort.

    Raises:
      CompositionError: if it is not below the cohort.
    """
    if value >= cohort_size:
        raise CompositionError(
            f"{rule}: {name}={value} leaves none of a cohort of {cohort_size}: at most "
            f"{cohort_size - 1}"
        )
