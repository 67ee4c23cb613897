"""A robust rule over the sums of small groups, each of which hides its members."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_health.core.message import (
    CompositionError,
    CompositionWarning,
    Message,
)
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
    Grouping,
    SecureState,
    build_gather,
    decode_means,
    encode_rows,
    known,
    num_groups,
)
from fedjax_health.secagg.secure_mean import start, threshold_of
from fedjax_health.secagg.settings import (
    check_settings,
    check_share,
    check_whole,
    hidden,
)


def largest_group(malicious: float) -> int | None:
    """Returns the largest group size with which most groups have no malicious member.

    A group of s clients is clean with chance ``(1 - malicious)**s``, which must pass
    1/2 for the median of groups to be an honest one. None stands for no limit.
    """
    if malicious <= 0:
        return None
    largest = math.floor(math.log(0.5) / math.log1p(-malicious))
    # Exactly half is not most.
    return largest - 1 if (1 - malicious) ** largest <= 0.5 else largest


@functools.cache
def _parts(
    fidelity: Fidelity,
    bits: int,
    grouping: Grouping,
    graph: Graph,
    rule: Callable[..., tuple[Updates, State, Metrics]],
    ranged: bool,
) -> tuple:
    """Returns update and the secure parts: the same objects for the same arguments."""
    codec = fixed_point(bits)
    gather, traced = build_gather(fidelity, bits, grouping, graph)

    def finish(
        means: Updates,
        weights: jax.Array,
        state: SecureState,
        key: Key,
        context: AggregationContext,
    ) -> tuple[Updates, State, Metrics]:
        # A group stands where a client would; one that is not released was not sent.
        of_groups = AggregationContext(
            client_ids=jnp.arange(weights.shape[0], dtype=jnp.int32),
            mask=weights > 0,
            round=context.round,
            root_updates=context.root_updates,
        )
        aggregate, after, metrics = rule(
            means, weights, state.rule, jax.random.fold_in(key, 2), context=of_groups
        )
        # Which groups a rule kept does not say which clients it did.
        metrics = {name: value for name, value in metrics.items() if name != "kept"}
        return aggregate, state._replace(rule=after), metrics

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
        aggregate, state, metrics = finish(
            means, jnp.asarray(gathered.weights), state, key, context
        )
        return aggregate, state, {**gathered.metrics, **metrics, "saturated": saturated}

    secure = Secure(
        codec=codec,
        threshold=threshold_of,
        gather=gather,
        on_host=fidelity == "protocol",
        finish=finish,
        groups=0,
        weigh=counted,
    )
    return update, secure


def grouped_secure(
    group_size: int,
    rule: Aggregator,
    *,
    bits: int = 20,
    value_range: float | None = None,
    max_weight: float = 1.0,
    fidelity: Fidelity = "ideal",
    min_group: int = 2,
    population: int | None = None,
    malicious: float = 0.0,
    degree: int | None = None,
    corrupt: float = 0.1,
    dropout: float = 0.1,
) -> Aggregator:
    """Secure sums of groups of clients, then a robust rule over the groups' means.

    Secure aggregation hides what a robust rule looks at, so the rule sees groups: a
    malicious client spoils its group and hides in it. A client's group is drawn anew in
    every round, of the round and its id alone. There are ``ceil(cohort / group_size)``
    groups; one with fewer than ``min_group`` messages releases nothing.

    A bound on every message limits what one client can do to its group; the rule's
    ``num_malicious`` counts groups.

    Args:
      group_size: clients of a group on average, 2 or more; static.
      rule: over the groups' means, weighted by their weights.
      bits: see ``secure_mean``.
      value_range: see ``secure_mean``.
      max_weight: see ``secure_mean``.
      fidelity: see ``secure_mean``; the protocol runs in every group.
      min_group: fewest messages of a group whose sum is released, 2 or more; traced.
      population: number of all clients, which are then dealt out evenly: groups are of
        equal size in a round in which all take part. None draws each client's group by
        itself; static.
      malicious: share of clients that is expected to be malicious: a group size with
        which most groups would have one is warned of.
      degree: see ``secure_mean``.
      corrupt: see ``secure_mean``.
      dropout: see ``secure_mean``.

    Raises:
      ValueError: for numbers outside their ranges.
      CompositionError: for a rule that is a secure sum itself.
    """
    name = "grouped_secure"
    check_settings(
        name,
        bits=bits,
        value_range=value_range,
        max_weight=max_weight,
        fidelity=fidelity,
    )
    why = "the sum of a group of one client is its message"
    check_whole(name, "group_size", group_size, least=2, why=why)
    check_whole(name, "min_group", min_group, least=2, why=why)
    if min_group > group_size:
        raise ValueError(
            f"{name}: min_group={min_group} is above group_size={group_size}, and most "
            "groups would release nothing: lower it"
        )
    if population is not None:
        why = "it is the number of all clients"
        check_whole(name, "population", population, least=2, why=why)
    if degree is not None:
        why = "a client with fewer neighbours is not hidden"
        check_whole(name, "degree", degree, least=2, why=why)
    for what, value in {
        "malicious": malicious,
        "corrupt": corrupt,
        "dropout": dropout,
    }.items():
        check_share(name, what, value)
    if rule.secure is not None:
        raise CompositionError(
            f"{name}: the rule over groups is a secure sum itself; give it one that "
            "sees messages, such as median()"
        )
    grouping = Grouping(group_size, population)
    graph = Graph(degree, corrupt, dropout)
    update, secure = _parts(
        fidelity, bits, grouping, graph, rule.update, value_range is not None
    )

    def init(params: Params) -> SecureState:
        return start(min_group, max_weight, value_range, rule.init(params))

    def check(message: Message, cohort_size: int) -> Message:
        groups = num_groups(grouping, cohort_size)
        if groups < 2:
            raise CompositionError(
                f"{name}: a cohort of {cohort_size} makes one group of {group_size}, "
                "and a rule needs several: use secure_mean, or smaller groups"
            )
        largest = largest_group(malicious)
        if largest is not None and group_size > largest:
            warnings.warn(
                f"{name}: with {malicious:.0%} of clients malicious, half of the "
                f"groups of {group_size} or more have a malicious member, and no "
                "rule over groups can tell: "
                + (
                    f"use groups of at most {largest}"
                    if largest >= 2
                    else "no group size keeps most groups clean"
                ),
                CompositionWarning,
                stacklevel=2,
            )
        made = hidden(
            name,
            message,
            cohort_size,
            bits=bits,
            value_range=value_range,
            threshold=min_group,
        )
        return rule.check(
            dataclasses.replace(made, unit="group", groups=groups), groups
        )

    return Aggregator(init, update, check, linear=False, secure=secure)
