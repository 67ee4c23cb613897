"""Noise by a tree over the rounds: DP-FTRL with restarts.

Kairouz et al., 2021, "Practical and Private (Deep) Learning without Sampling or
Shuffling" (arXiv:2103.00039), without the estimation of nodes by their children. The
sum of all rounds of a tree carries the noise of ``log2`` many nodes in place of one
noise a round, and no amplification by sampling is needed.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_health.core import noise as laws
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import (
    BoundMechanism,
    Key,
    Mechanism,
    Params,
    Sampling,
    State,
)
from fedjax_health.privacy import lattice
from fedjax_health.privacy.accounting import (
    Accounting,
    Relation,
    Target,
    check_multiplier,
)
from fedjax_health.privacy.central import ADVERSARY, own_noise


def tree_aggregation(
    noise_multiplier: float | Target, *, restart_every: int
) -> Mechanism:
    """Adds noise to sums over rounds, node by node of a binary tree.

    A client may take part once in a tree, which cyclic sampling whose cycle is a
    multiple of ``restart_every`` makes sure of.

    Args:
      noise_multiplier: standard deviation of one node's noise over the bound of a
        message, or the target to reach.
      restart_every: rounds of one tree; static.

    Formal guarantees: a message enters the sums of ``ceil(log2(restart_every + 1))``
    nodes; each pass over the clients is one Gaussian release of that squared
    sensitivity, in integers (see ``central_gaussian``).

    Raises:
      ValueError: for numbers out of range.
      CompositionError: in ``bind``, unless each client has one turn in a tree.
    """
    check_multiplier("tree_aggregation", noise_multiplier)
    if restart_every < 1:
        raise ValueError(
            f"tree_aggregation: restart_every must be 1 or more, not {restart_every}"
        )
    accounting = Accounting(
        noise_multiplier,
        f"discrete Gaussian on a lattice, in trees over {restart_every} rounds, "
        "release grade",
        ADVERSARY,
        functools.partial(_event, restart_every),
        _relation,
        _sampler,
    )

    def bind(message: Message, sampling: Sampling) -> BoundMechanism:
        _check(message, sampling, restart_every)
        z = own_noise("tree_aggregation", accounting, message, sampling)
        depth = restart_every.bit_length()
        # A round gives a fresh node and takes back those that it takes the place of.
        grid = lattice.choose_lattice(
            "tree_aggregation",
            message,
            sampling.cohort_size,
            z,
            releases=math.sqrt(depth),
        )

        def init(params: Params) -> State:
            table = jax.tree.map(jnp.asarray, laws.discrete_gaussian(grid.sigma))
            nodes = jax.tree.map(
                lambda x: jnp.zeros((depth, *x.shape), jnp.int32), params
            )
            return {
                "scale": jnp.float32(2.0**grid.bits),
                "noise": table,
                "restart_every": jnp.int32(restart_every),
                "step": jnp.int32(0),
                "nodes": nodes,
            }

        return BoundMechanism(init, server=_server, codec=lattice.nearest_codec())

    return Mechanism(bind, accounting)


def _check(message: Message, sampling: Sampling, restart_every: int):
    if sampling.scheme != "cyclic" or sampling.cycle % restart_every:
        raise CompositionError(
            f"tree_aggregation: a client may take part once in {restart_every} rounds: "
            "use cyclic sampling with a cycle that is a multiple of "
            f"restart_every={restart_every}"
        )
    if message.moving:
        raise CompositionError(
            "tree_aggregation: a node's noise must meet the same parameters in all its "
            "rounds, and the common random_k sends others in every round: use random_k "
            "with shared=False, or central_gaussian"
        )
    if message.side_multiplier is not None:
        raise CompositionError(
            "tree_aggregation: its nodes sum over rounds and need one bound for all: "
            "use clip_l2 in place of adaptive_clip"
        )
    if message.groups > 1:
        raise CompositionError(
            "tree_aggregation: the noise of a tree goes with one sum a round: use "
            "central_gaussian with groups"
        )


def _event(
    restart_every: int, noise_multiplier: float, sampling: Any, rounds: int
) -> Any:
    import dp_accounting as dp

    # One pass over the blocks of clients meets cycle / restart_every trees, and each
    # client one of them.
    passes = math.ceil(rounds / sampling.cycle)
    steps = min(restart_every, rounds)
    one = dp.SingleEpochTreeAggregationDpEvent(noise_multiplier, steps)
    return dp.SelfComposedDpEvent(one, passes)


def _relation(sampling: Any) -> Relation:
    del sampling
    return "add_or_remove"


def _sampler(sampling: Any) -> str:
    return (
        f"each client once in {sampling.cycle} rounds at most; no amplification by "
        "sampling"
    )


def _server(total: Any, state: Any, key: Key, bound: jax.Array) -> tuple[Any, State]:
    del bound
    zeros = jax.tree.map(jnp.zeros_like, total)
    fresh = lattice.add_noise(zeros, key, state["noise"])
    # Rounds of the tree before this one; the lowest bit that they lack is the level of
    # the node that this round completes, and all below it are taken back.
    before = jnp.where(state["step"] == state["restart_every"], 0, state["step"])
    restarted = before == 0
    level = _trailing_ones(before)

    def one(x: jax.Array, new: jax.Array, nodes: jax.Array) -> jax.Array:
        below = (jnp.arange(nodes.shape[0]) < level) & ~restarted
        old = jnp.tensordot(below.astype(jnp.int32), nodes, 1)
        return x + new - old

    def keep(new: jax.Array, nodes: jax.Array) -> jax.Array:
        levels = jnp.arange(nodes.shape[0]).reshape(-1, *[1] * new.ndim)
        kept = jnp.where(restarted | (levels < level), 0, nodes)
        return jnp.where(levels == level, new[None], kept)

    noised = jax.tree.map(one, total, fresh, state["nodes"])
    nodes = jax.tree.map(keep, fresh, state["nodes"])
    return noised, {**state, "step": before + 1, "nodes": nodes}


def _trailing_ones(number: jax.Array) -> jax.Array:
    lowest_zero = ~number & (number + 1)
    return jax.lax.population_count(lowest_zero - 1)
