"""Momentum that each client keeps of its own updates."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.core import trees
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import (
    ClientContext,
    ClientTransform,
    Params,
    Report,
    Shared,
    State,
    Updates,
)
from fedjax_health.transforms.compose import keep_shared


class LocalMomentum(NamedTuple):
    """What a client remembers.

    Attributes:
      momentum: a tree like the parameters, what it sent last.
      started: bool ``[]``, whether it has sent anything yet.
    """

    momentum: Updates
    started: jax.Array


def _init(params: Params) -> State:
    return LocalMomentum(trees.zeros_like(params), jnp.asarray(False))


def _update(
    updates: Updates, memory: LocalMomentum, context: ClientContext
) -> tuple[Updates, State, Report]:
    beta = jnp.where(memory.started, context.shared["beta"], 0.0)

    def leaf(update: jax.Array, held: jax.Array) -> jax.Array:
        return (beta * held + (1.0 - beta) * update).astype(update.dtype)

    sent = jax.tree.map(leaf, updates, memory.momentum)
    return sent, LocalMomentum(sent, jnp.asarray(True)), ()


def _check(message: Message) -> Message:
    if message.density < 1 or message.bits < 32:
        raise CompositionError(
            "local_momentum after a compressor makes its messages dense again: the "
            "order is local_momentum, then the compressor, then clipping"
        )
    # A bound that moved holds for this round's update and not for earlier ones.
    return dataclasses.replace(message, bound=None)


def local_momentum(beta: float = 0.9) -> ClientTransform:
    """Sends a running mean of a client's own updates in the place of the last one.

    Worker momentum, also called local or distributed momentum: El Mhamdi et al., 2021,
    "Distributed Momentum for Byzantine-resilient SGD" (arXiv:2003.00010), Karimireddy
    et al., 2021, "Learning from History for Byzantine Robust Optimization"
    (arXiv:2012.10333), Farhadkhani et al., 2022 (arXiv:2205.12173). With client memory
    m: ``m <- beta m + (1 - beta) u``, and m is sent. Averaged over rounds, honest
    messages vary less between draws of examples, so that a message which leaves them
    little by little in every round stands out; what differs between clients for good
    (their data) stays.

    Variant: the first message is the update itself, as in Karimireddy et al. (ByzFL
    starts from zero, and its first steps are short). It is over the updates of whole
    rounds; momentum inside a round is the optimiser's, and is forgotten after it. A
    client that does not take part in a round keeps its memory as it is. The memory is a
    row of the client table, one number for each parameter.

    The order is momentum, compressor, clipping, noise: a bound from before it is
    dropped, so that a mechanism asks for a clip after it.

    Args:
      beta: share of the memory that is kept, in [0, 1); 0 sends the updates as they
        are. Traced.

    Raises:
      ValueError: if ``beta`` lies outside its range.
      CompositionError: in ``check``, after a compressor.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"local_momentum: beta must lie in [0, 1), not {beta}")

    def init_server(params: Params) -> Shared:
        del params
        return {"beta": jnp.float32(beta)}

    return ClientTransform(_init, init_server, _update, keep_shared, _check)
