"""Rules on signs: the majority's, and a learning rate that needs one."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.columns import (
    EXACT,
    Block,
    map_columns,
    row_norms,
    stack_of,
)
from fedjax_health.aggregators.coordinates import (
    CoordinateKernel,
    added,
    coordinate_update,
)
from fedjax_health.aggregators.rows import (
    accept_any,
    check_number,
    no_state,
    normalised,
    row_metrics,
    rows_of,
)
from fedjax_health.core.types import Aggregator, Key, Metrics, Params, State, Updates


def _majority(rows: Sequence[jax.Array], state: State) -> jax.Array:
    del state
    return jnp.sign(added([jnp.sign(row) for row in rows]))


def _majority_of_some(
    rows: jax.Array, valid: jax.Array, dropped: jax.Array, state: State
) -> jax.Array:
    del valid, dropped, state
    # Rows that do not count are zero and have no sign.
    return jnp.sign(_sum_of_signs(rows))


def _sum_of_signs(rows: jax.Array) -> jax.Array:
    return jnp.dot(jnp.ones(rows.shape[0]), jnp.sign(rows), precision=EXACT)


_KERNEL = CoordinateKernel(_majority, _majority_of_some, reach=512)


@functools.cache
def sign_majority() -> Aggregator:
    """The sign that most rows have, coordinate by coordinate: -1, 0 or 1.

    Bernstein et al., 2019, "signSGD with Majority Vote is Communication Efficient and
    Fault Tolerant" (arXiv:1810.05291). The server's learning rate sets the size of the
    step; use it with one well below 1.

    Breakdown point 1/2 of the rows. Weights are not used, but for a weight of 0, which
    marks an absent row. Nothing is traced.
    """
    update = coordinate_update(_KERNEL)
    return Aggregator(no_state, update, accept_any, False, "coordinates", _KERNEL)


@jax.jit
def _update(
    stacked: Updates, weights: jax.Array, state: State, key: Key, *, context=None
) -> tuple[Updates, State, Metrics]:
    del key
    stack = stack_of(stacked)
    rows = rows_of(weights, row_norms(stack), context)
    shares = normalised(rows.weights)

    def block(part: Block) -> jax.Array:
        kept = jnp.where(rows.valid[:, None], part.matrix(), 0.0)
        mean = jnp.dot(shares, kept, precision=EXACT)
        agree = jnp.abs(_sum_of_signs(kept)) >= state["threshold"]
        return jnp.where(agree, mean, -mean)

    pieces = map_columns(stack, block)
    return stack.build(pieces), state, row_metrics(rows)


def robust_learning_rate(*, threshold: float = 4.0) -> Aggregator:
    """The weighted mean, its sign turned where too few rows agree on theirs.

    Ozdayi et al., 2021, "Defending against Backdoors in Federated Learning with Robust
    Learning Rate" (arXiv:2007.03767): a coordinate with ``abs(sum sign) < theta`` is
    moved away from, which is the server's learning rate turned.

    Made against backdoors; it bounds no row's size, so its breakdown point is 0.
    Weights are used for the mean and not for the signs. Traced: the threshold.

    Args:
      threshold: theta, in rows; more than the malicious ones, fewer than the cohort.

    Raises:
      ValueError: if the threshold is not positive.
    """
    theta = check_number("robust_learning_rate", "threshold", threshold, above=0)

    def init(params: Params) -> State:
        del params
        return {"threshold": jnp.float32(theta)}

    return Aggregator(init, _update, accept_any, False, "rows")
