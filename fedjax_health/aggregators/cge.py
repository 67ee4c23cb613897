"""Comparative gradient elimination: the rows of smallest norm."""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.gram import Geometry, GramKernel, gram_update
from fedjax_health.aggregators.rows import (
    Rows,
    check_majority,
    check_malicious,
    normalised,
    smallest,
)
from fedjax_health.core.message import Message
from fedjax_health.core.types import Aggregator, Key, Metrics, Params, State


def _weigh(
    geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[jax.Array, Metrics]:
    del key
    norms = jnp.where(rows.valid, geometry.norms, jnp.inf)
    keep = rows.count - rows.malicious(state["num_malicious"])
    return normalised(smallest(norms, keep)), {}


_KERNEL = GramKernel(_weigh, needs="norms", selects=True)


@functools.cache
def _check(f: int):
    def check(message: Message, cohort_size: int) -> Message:
        check_majority("cge", f, cohort_size)
        return message

    return check


def cge(num_malicious: int) -> Aggregator:
    """The mean of the n - f rows of smallest norm.

    Gupta and Vaidya, 2020, "Fault-Tolerance in Distributed Optimization: The Case of
    Redundancy" (arXiv:1910.09819), and Gupta et al., 2021, arXiv:2008.04699; the papers
    add the kept rows up, here they are averaged. Rows that tie for the last place share
    it.

    Breakdown point: f malicious rows, for f < n / 2 and honest rows that are alike;
    small malicious rows pass. Weights are not used, but for a weight of 0, which marks
    an absent row. Traced: f.

    Args:
      num_malicious: f, the malicious rows that are assumed.

    Raises:
      ValueError: if f is negative; a ``CompositionError`` of ``check`` if 2 f >= n.
    """
    f = check_malicious("cge", num_malicious)

    def init(params: Params) -> State:
        del params
        return {"num_malicious": jnp.int32(f)}

    return Aggregator(init, gram_update(_KERNEL), _check(f), False, "gram", _KERNEL)
