"""Random-k: coordinates drawn at random, by the server for all or by each client."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fedjax_health.core import trees
from fedjax_health.core.message import Message
from fedjax_health.core.permutation import permutation_words, permute
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import (
    ClientContext,
    ClientTransform,
    Params,
    Report,
    Shared,
    State,
    Updates,
)
from fedjax_health.transforms.compose import keep_shared, no_memory
from fedjax_health.transforms.counting import byte_report, measure_bytes
from fedjax_health.transforms.flat import flatten, kept_count, unflatten

SEED_BYTES = 8


def index_set(key: jax.Array, k: int, size: jax.Array | int) -> jax.Array:
    """Returns k distinct indices below ``size``, int32 ``[k]``.

    The first k places of a random permutation, evaluated there alone: neither sorted
    nor drawn one after the other.

    Args:
      key: of the draw.
      k: indices, at most ``size``.
      size: of the vector.
    """
    words = permutation_words(key)
    places = jnp.arange(k, dtype=jnp.int32)
    return permute(words, jnp.int32(0), places, jnp.asarray(size, jnp.int32))


def _trace_of_nonfinite(flat: jax.Array) -> jax.Array:
    """Returns 0, or NaN where a coordinate that may not be sent is not finite."""
    return 0 * trees.squared_norm(flat)


def _init_shared(keep: float, params: Params) -> Shared:
    size = trees.num_params(params)
    # The first set is the same in every run; later ones come from the run's own key.
    indices = index_set(root_key(0), kept_count(keep, size), max(size, 1))
    return {"indices": indices, "size": jnp.int32(size)}


def _send_shared(
    updates: Updates, memory: State, context: ClientContext
) -> tuple[Updates, State, Report]:
    flat = flatten(updates)
    sent = flat[context.shared["indices"]] + _trace_of_nonfinite(flat)
    return sent, memory, byte_report(4 * sent.size)


def _draw_next(shared: Shared, report: Report, key: jax.Array) -> Shared:
    del report
    indices = index_set(key, shared["indices"].size, shared["size"])
    return {**shared, "indices": indices}


def _scatter(
    aggregate: Updates, shared: Shared, params: Params
) -> tuple[Updates, Shared]:
    size = trees.num_params(params)
    flat = jnp.zeros(size, jnp.float32)
    flat = flat.at[shared["indices"]].set(aggregate, unique_indices=True)
    return unflatten(flat, params), shared


def _scatter_unbiased(
    aggregate: Updates, shared: Shared, params: Params
) -> tuple[Updates, Shared]:
    factor = trees.num_params(params) / aggregate.size
    return _scatter(aggregate * jnp.float32(factor), shared, params)


def _send_own(
    keep: float,
    unbiased: bool,
    updates: Updates,
    memory: State,
    context: ClientContext,
) -> tuple[Updates, State, Report]:
    flat = flatten(updates)
    k = kept_count(keep, flat.size)
    indices = index_set(context.key, k, flat.size)
    values = flat[indices] + _trace_of_nonfinite(flat)
    if unbiased:
        values = values * jnp.float32(flat.size / k)
    sent = jnp.zeros_like(flat).at[indices].set(values, unique_indices=True)
    return unflatten(sent, updates), memory, byte_report(SEED_BYTES + 4 * k)


def _check(keep: float, shared: bool, unbiased: bool, message: Message) -> Message:
    count = kept_count(keep, message.num_params)
    return dataclasses.replace(
        message,
        # A common set is scaled by the server, after the bound has done its work.
        bound=message.bound if shared or not unbiased else None,
        density=count / max(message.num_params, 1),
        bits=32,
        index_bits=0.0,
        overhead_bytes=message.overhead_bytes + (0 if shared else SEED_BYTES),
        moving=message.moving or (shared and count < message.num_params),
    )


def is_unbiased(transform: ClientTransform) -> bool:
    """Returns whether a transform is a ``random_k`` that scales what it sends."""
    update = transform.update
    own = isinstance(update, functools.partial) and update.func is _send_own
    return transform.restore is _scatter_unbiased or (own and update.args[1])


def random_k(
    keep: float, *, shared: bool = True, unbiased: bool = False
) -> ClientTransform:
    """Sends ``k = round(keep * d)`` coordinates that are drawn anew every round.

    Stich et al., 2018 (arXiv:1809.07599); with a seed for positions, Konecny et al.,
    2016 (arXiv:1610.05492), random masks.

    Shared: the server draws one set for the whole round and every client sends its k
    values and nothing else, a flat float32 ``[k]``; rules, mechanisms and secure sums
    see these, and the server puts the aggregate back in its places. The set does not
    depend on data, so it is safe to be known and composes with secure aggregation. It
    is held in the shared value: a run that resumes goes on with it. The first round's
    set is the same in every run.

    Not shared: every client draws its own set and sends the seed; the message keeps
    the update's structure, zeros elsewhere.

    ``keep`` is static.

    Args:
      keep: the share of coordinates that is sent, in (0, 1].
      shared: whether a round has one set for all.
      unbiased: whether values are scaled by d/k, so that the message's mean is the
        update (up to the permutation's own bias, 2**-16); the server does so for a
        shared set. Not inside error feedback, which would diverge.

    Formal guarantees: the message's norm does not exceed the update's, but for
    ``unbiased`` with sets of the clients' own. A non-finite coordinate makes the
    message NaN, wherever it is.

    Raises:
      ValueError: if ``keep`` lies outside its range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"random_k: keep must lie in (0, 1], not {keep}")
    return _build(keep, shared, unbiased)


@functools.cache
def _build(keep: float, shared: bool, unbiased: bool) -> ClientTransform:
    check = functools.partial(_check, keep, shared, unbiased)
    if shared:
        return ClientTransform(
            no_memory,
            functools.partial(_init_shared, keep),
            _send_shared,
            _draw_next,
            check,
            restore=_scatter_unbiased if unbiased else _scatter,
            measure=measure_bytes,
        )
    return ClientTransform(
        no_memory,
        no_memory,
        functools.partial(_send_own, keep, unbiased),
        keep_shared,
        check,
        measure=measure_bytes,
    )
