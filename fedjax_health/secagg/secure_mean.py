"""The mean of messages that the server sees as a sum alone."""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import (
    AggregationContext,
    Aggregator,
    Key,
    Metrics,
    Params,
    Secure,
    State,
    Updates,
)
from fedjax_health.secagg.fixed_point import counted, fixed_point
from fedjax_health.secagg.gathering import (
    Fidelity,
    Graph,
    SecureState,
    build_gather,
    decode_means,
    encode_rows,
    known,
)
from fedjax_health.secagg.graph import COMPLETE_UP_TO, plan_graph
from fedjax_health.secagg.settings import (
    check_settings,
    check_share,
    check_whole,
    hidden,
)
from fedjax_health.secagg.view import masked


def threshold_of(state: SecureState) -> jax.Array:
    """Returns the fewest messages whose sum is released."""
    return state.threshold


@functools.cache
def _parts(fidelity: Fidelity, bits: int, graph: Graph, ranged: bool) -> tuple:
    """Returns update and the secure parts: the same objects for the same arguments."""
    codec = fixed_point(bits)
    gather, traced = build_gather(fidelity, bits, None, graph)

    def update(
        stacked: Updates,
        weights: jax.Array,
        state: SecureState,
        key: Key,
        *,
        context: AggregationContext | None = None,
    ) -> tuple[Updates, State, Metrics]:
        integers, saturated = encode_rows(
            codec, stacked, weights, state, key, ranged=ranged
        )
        context = known(context, weights)
        gathered = traced(integers, weights, state, key, context)
        means = decode_means(codec, gathered, state, stacked)
        metrics = {**gathered.metrics, "saturated": saturated}
        return jax.tree.map(lambda x: x[0], means), state, metrics

    secure = Secure(
        codec=codec,
        threshold=threshold_of,
        # A view of one group is drawn while clients train: no stack of it is needed.
        gather=gather if fidelity == "protocol" else None,
        on_host=fidelity == "protocol",
        weigh=counted,
        mask=masked if fidelity == "view" else None,
    )
    return update, secure


def secure_mean(
    *,
    bits: int = 20,
    value_range: float | None = None,
    max_weight: float = 1.0,
    fidelity: Fidelity = "ideal",
    threshold: int = 1,
    degree: int | None = None,
    corrupt: float = 0.1,
    dropout: float = 0.1,
) -> Aggregator:
    """The weighted mean by secure aggregation: the server learns a sum of integers.

    Each client's update becomes signed fixed point, the integers are summed modulo the
    smallest power of two that the sum cannot pass, and the sum is decoded. The weights
    are told in the open: with uniform weights nothing is.

    Called by itself, ``update`` knows no L2 bound and needs ``value_range``.

    Args:
      bits: of a coordinate with its sign, 2 to 24; static.
      value_range: largest magnitude of a coordinate, beyond which it is cut; traced.
        None takes the messages' L2 bound, which must then be known; with both, the
        smaller.
      max_weight: the weight that counts as 1 before encoding: heavier clients count as
        if they weighed that; traced. With example counts as weights, the largest count.
      fidelity: "ideal" forms the sum alone, "view" draws what the server sees under
        ideal masks, "protocol" runs the protocol of Bonawitz et al. (2017) on the host;
        all three give the same sum to the bit; static.
      threshold: fewest messages whose sum is released; traced. The protocol's shares
        need more than half of the clients of a complete graph besides.
      degree: neighbours of a client in the protocol; None joins every pair up to 100
        clients and computes it beyond; static.
      corrupt: share of clients that work with the server, for the degree; static.
      dropout: share of clients that drop out, for the degree; static.

    Raises:
      ValueError: for numbers outside their ranges.
    """
    name = "secure_mean"
    check_settings(
        name,
        bits=bits,
        value_range=value_range,
        max_weight=max_weight,
        fidelity=fidelity,
    )
    why = "a sum of no message is none"
    check_whole(name, "threshold", threshold, least=1, why=why)
    if degree is not None:
        why = "a client with fewer neighbours is not hidden"
        check_whole(name, "degree", degree, least=2, why=why)
    check_share(name, "corrupt", corrupt)
    check_share(name, "dropout", dropout)
    update, secure = _parts(
        fidelity, bits, Graph(degree, corrupt, dropout), value_range is not None
    )

    def init(params: Params) -> SecureState:
        del params
        return start(threshold, max_weight, value_range)

    def check(message: Message, cohort_size: int) -> Message:
        made = hidden(
            name,
            message,
            cohort_size,
            bits=bits,
            value_range=value_range,
            threshold=threshold,
        )
        if fidelity == "protocol":
            check_protocol(name, cohort_size, degree, corrupt, dropout)
        return made

    return Aggregator(init, update, check, linear=True, secure=secure)


def start(
    threshold: int, max_weight: float, value_range: float | None, rule: State = ()
) -> SecureState:
    """Returns the first state of an aggregator of secure sums."""
    return SecureState(
        threshold=jnp.int32(threshold),
        max_weight=jnp.float32(max_weight),
        value_range=jnp.float32(jnp.inf if value_range is None else value_range),
        rule=rule,
    )


def check_protocol(
    name: str, cohort_size: int, degree: int | None, corrupt: float, dropout: float
) -> None:
    """Refuses a cohort for which the protocol has no graph.

    Raises:
      CompositionError: saying what would do.
    """
    if cohort_size < 2:
        raise CompositionError(
            f"{name}: the protocol needs 2 clients or more in a round, not "
            f"{cohort_size}"
        )
    if degree is None and cohort_size <= COMPLETE_UP_TO:
        return
    if degree is not None and degree >= cohort_size - 1:
        return
    try:
        plan_graph(cohort_size, degree, corrupt=corrupt, dropout=dropout)
    except ValueError as error:
        raise CompositionError(f"{name}: {error}") from error
