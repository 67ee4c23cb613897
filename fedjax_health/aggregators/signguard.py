"""SignGuard: rows of ordinary norm in the largest cluster of sign statistics."""

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
    accept_any,
    check_number,
    median_of,
    normalised,
    row_metrics,
    rows_of,
)
from fedjax_health.core.types import Aggregator, Key, Metrics, Params, State, Updates

# Steps of mean shift; points move to their mode in a handful.
_STEPS = 50


def _distances(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum((a[:, None, :] - b[None, :, :]) ** 2, axis=-1))


def largest_cluster(points: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the points of mean shift's largest cluster, bool ``[n]``.

    Comaniciu and Meer, 2002, with a flat kernel whose bandwidth is the mean distance of
    a point to the farther end of its nearest half, as scikit-learn estimates it for the
    quantile 0.5. Modes within a bandwidth of one that more points surround are merged
    into it; a point belongs to its nearest mode, if that lies within the bandwidth.

    Args:
      points: float32 ``[n, features]``.
      valid: bool ``[n]``.
    """
    n = valid.shape[0]
    count = jnp.sum(valid)
    apart = jnp.where(valid[None, :], _distances(points, points), jnp.inf)
    reach = jnp.maximum(count // 2, 1) - 1
    half = jax.lax.dynamic_index_in_dim(jnp.sort(apart, 1), reach, 1, keepdims=False)
    total = jnp.sum(jnp.where(valid, half, 0.0))
    # Points that are all alike have no width, and rounding must not part them.
    bandwidth = jnp.maximum(total / jnp.maximum(count, 1), 1e-6)

    def near(centers: jax.Array) -> jax.Array:
        return (_distances(centers, points) <= bandwidth) & valid[None, :]

    def shift(_, centers: jax.Array) -> jax.Array:
        inside = near(centers).astype(jnp.float32)
        number = jnp.maximum(jnp.sum(inside, 1, keepdims=True), 1.0)
        moved = jnp.matmul(inside, points, precision=EXACT) / number
        return jnp.where(jnp.any(inside > 0, axis=1)[:, None], moved, centers)

    modes = jax.lax.fori_loop(0, _STEPS, shift, points)
    crowd = jnp.where(valid, jnp.sum(near(modes), axis=1), -1)
    between = _distances(modes, modes)

    def settle(i: jax.Array, held):
        open_, kept = held
        best = jnp.argmax(jnp.where(open_, crowd, -1))
        takes = open_ & (between[best] <= bandwidth)
        return open_ & ~takes, kept.at[best].set(kept[best] | open_[best])

    start = valid, jnp.zeros(n, bool)
    _, kept = jax.lax.fori_loop(0, n, settle, start)
    to_modes = jnp.where(kept[None, :], _distances(points, modes), jnp.inf)
    label = jnp.argmin(to_modes, axis=1)
    belongs = valid & (jnp.min(to_modes, axis=1) <= bandwidth)
    sizes = jnp.zeros(n, jnp.int32).at[label].add(belongs)
    return belongs & (label == jnp.argmax(sizes))


@jax.jit
def _update(
    stacked: Updates, weights: jax.Array, state: State, key: Key, *, context=None
) -> tuple[Updates, State, Metrics]:
    del key
    stack = stack_of(stacked)
    squares = row_norms(stack)
    rows = rows_of(weights, squares, context)
    norms = jnp.where(rows.valid, jnp.sqrt(squares), 0.0)
    middle = median_of(norms, rows.valid)
    ordinary = (norms > state["low"] * middle) & (norms < state["high"] * middle)

    def signs(part: Block) -> jax.Array:
        x = part.matrix()
        ones = jnp.ones(part.size)
        # Counts of a block are exact in float32, and so are their integer sums.
        kinds = jnp.stack([x > 0, x == 0, x < 0]).astype(jnp.float32)
        return jnp.matmul(kinds, ones, precision=EXACT).astype(jnp.int32)

    counts = sum_columns(stack, signs).astype(jnp.float32).T
    counts = jnp.where(rows.valid[:, None], counts, 0.0)
    most = jnp.max(counts, axis=0)
    features = counts / jnp.where(most > 0, most, 1.0)
    alike = largest_cluster(features, rows.valid)
    kept = rows.valid & ordinary & alike
    clip = jnp.minimum(1.0, middle / jnp.where(norms > 0, norms, 1.0))
    shares = normalised(kept.astype(jnp.float32)) * clip
    pieces = weighted_rows(stack, shares, jnp.all(jnp.isfinite(squares)))
    metrics = {**row_metrics(rows), "kept": kept, "clip_norm": middle}
    return stack.build(pieces), state, metrics


def signguard(*, low: float = 0.1, high: float = 3.0) -> Aggregator:
    """Rows of ordinary norm whose signs resemble the others', clipped and averaged.

    Xu et al., 2022, "Byzantine-robust Federated Learning through Collaborative
    Malicious Gradient Filtering" (ICDCS; arXiv:2109.05872), the plain variant. A row
    must have a norm within ``low`` to ``high`` times the median norm, and its shares of
    positive, zero and negative coordinates (each over the largest of any row) must lie
    in mean shift's largest cluster; kept rows are clipped to the median norm and
    averaged. The shares are of all coordinates; the authors' code takes a random tenth
    of them.

    Breakdown point 1/2 of the rows, as far as signs show them. Weights are not used,
    but for a weight of 0, which marks an absent row. Traced: both bounds.

    Args:
      low: least norm of a kept row, in median norms.
      high: largest.

    Raises:
      ValueError: unless ``0 < low < 1 < high``.
    """
    least = check_number("signguard", "low", low, above=0, most=1)
    most = check_number("signguard", "high", high, above=1)

    def init(params: Params) -> State:
        del params
        return {"low": jnp.float32(least), "high": jnp.float32(most)}

    return Aggregator(init, _update, accept_any, False, "rows")
