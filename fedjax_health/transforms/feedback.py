"""Memory around a compressor: error feedback and EF21."""

import dataclasses
import functools

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
from fedjax_health.transforms.random_k import is_unbiased

# Stands for a bound before the compressor: whoever sets another one clips.
_BEFORE = "?"


def _empty_memory(name: str, inner: ClientTransform):
    """Returns the structure of a compressor's memory, which must hold nothing."""
    structure = jax.tree.structure(jax.eval_shape(inner.init, {"w": jnp.zeros(2)}))
    if structure.num_leaves:
        raise CompositionError(
            f"{name} around a transform with a memory of its own: wrap the compressor "
            "alone"
        )
    if is_unbiased(inner):
        raise CompositionError(
            f"{name} around an unbiased random_k diverges, since its error is larger "
            "than the update: use random_k(keep) without unbiased"
        )
    return structure


def _check(name: str, inner: ClientTransform, message: Message) -> Message:
    if message.noised:
        raise CompositionError(
            f"{name} around noise feeds the noise back: the order is {name}, then "
            "clipping, then noise"
        )
    checked = inner.check(dataclasses.replace(message, bound=_BEFORE))
    if checked.noised or checked.side_multiplier != message.side_multiplier:
        raise CompositionError(
            f"{name} around a transform that adds noise: the noise comes last, after "
            "clipping"
        )
    if checked.bound not in (_BEFORE, None):
        raise CompositionError(
            f"{name} around a clipping transform: what is cut off would be sent later; "
            f"put the clipping after {name}"
        )
    # What was held back comes on top: a bound from before it says nothing.
    return dataclasses.replace(checked, bound=None)


def _decoded(inner_restore, sent: Updates, shared: Shared, like: Updates) -> Updates:
    return sent if inner_restore is None else inner_restore(sent, shared, like)[0]


@functools.cache
def _feedback(inner_update, inner_restore, empty):
    """Returns the update of error feedback: one object for one compressor."""

    def update(
        updates: Updates, memory: State, context: ClientContext
    ) -> tuple[Updates, State, Report]:
        corrected = trees.add(updates, memory)
        sent, _, report = inner_update(corrected, empty.unflatten(()), context)
        decoded = _decoded(inner_restore, sent, context.shared, updates)
        return sent, trees.subtract(corrected, decoded), report

    return update


def error_feedback(inner: ClientTransform) -> ClientTransform:
    """Keeps what a compressor left out and adds it to the next round's update.

    Seide et al., 2014; Stich et al., 2018 (arXiv:1809.07599); Karimireddy et al., 2019
    (arXiv:1901.09847). With client memory e: ``m = C(u + e)``, ``e <- u + e - m``, so
    that all messages plus the memory are all updates, whatever C is. A client that does
    not take part in a round keeps its memory as it is. The memory is a row of the
    client table, one number for each parameter.

    The order is memory, compressor, clipping, noise. What clipping or noise after it
    does is not fed back; clipping before it bounds nothing, as the memory comes on top.

    Args:
      inner: the compressor, without a memory of its own; best one whose error is
        smaller than the update (top_k, random_k, threshold, sign, drive, eden): an
        unbiased one with a large variance (qsgd with few levels, terngrad) may make the
        memory grow.

    Raises:
      CompositionError: for a compressor with a memory, an unbiased ``random_k``, and,
        in ``check``, one that clips or adds noise.
    """
    empty = _empty_memory("error_feedback", inner)
    return ClientTransform(
        trees.zeros_like,
        inner.init_server,
        _feedback(inner.update, inner.restore, empty),
        inner.reduce,
        functools.partial(_check, "error_feedback", inner),
        restore=inner.restore,
        measure=inner.measure,
    )


@functools.cache
def _ef21(inner: tuple, empty):
    """Returns update, reduce, restore and measure of EF21 around a compressor's."""
    inner_update, inner_reduce, inner_restore, inner_measure = inner

    def update(
        updates: Updates, memory: State, context: ClientContext
    ) -> tuple[Updates, State, Report]:
        context = context._replace(shared=context.shared["inner"])
        change = trees.subtract(updates, memory)
        sent, _, report = inner_update(change, empty.unflatten(()), context)
        decoded = _decoded(inner_restore, sent, context.shared, updates)
        return sent, trees.add(memory, decoded), report

    def reduce(shared: Shared, report: Report, key: jax.Array) -> Shared:
        return {**shared, "inner": inner_reduce(shared["inner"], report, key)}

    def restore(
        aggregate: Updates, shared: Shared, params: Params
    ) -> tuple[Updates, Shared]:
        kept = shared["inner"]
        if inner_restore is not None:
            aggregate, kept = inner_restore(aggregate, kept, params)
        change = trees.scale(aggregate, shared["participation"])
        estimate = trees.add(shared["estimate"], change)
        # The round is dropped then; the mean must outlive it.
        finite = trees.all_finite(estimate)
        held = trees.select(finite, estimate, shared["estimate"])
        return estimate, {**shared, "estimate": held, "inner": kept}

    def measure(report: Report, shared: Shared, count: jax.Array):
        if inner_measure is None:
            return {}
        return inner_measure(report, shared["inner"], count)

    return update, reduce, restore, measure


def ef21(inner: ClientTransform, *, participation: float = 1.0) -> ClientTransform:
    """Sends the compressed change of what the server believes of a client's update.

    Richtarik et al., 2021, "EF21" (arXiv:2106.05203), with the partial participation of
    Fatkhullin et al., 2021 (arXiv:2110.03294, EF21-PP). Client i holds g_i and the
    server g, all zero at first. In a round every client that takes part sends
    ``c_i = C(u_i - g_i)`` and sets ``g_i <- g_i + c_i``; the others keep g_i. The
    server sets ``g <- g + q mean(c_i)``, q the share of the population that took part,
    and steps with g: the mean of all g_i, those of absent clients included.

    The identity ``g = mean(g_i)`` is exact for cohorts of one size without dropouts and
    uniform weights (or under a mechanism, which divides by the expected cohort), else
    it holds on average. Clipping after it breaks it, and noise would add up in g round
    by round: for private runs use ``error_feedback``.

    Args:
      inner: the compressor, without a memory of its own; one whose error is smaller
        than its input, such as ``top_k``.
      participation: q, the expected share of the population in a round, in (0, 1];
        traced.

    Raises:
      CompositionError: as ``error_feedback`` does.
      ValueError: if ``participation`` lies outside its range.
    """
    if not 0 < participation <= 1:
        raise ValueError(f"ef21: participation must lie in (0, 1], not {participation}")
    empty = _empty_memory("ef21", inner)

    def init_server(params: Params) -> Shared:
        return {
            "estimate": trees.zeros_like(params),
            "inner": inner.init_server(params),
            "participation": jnp.float32(participation),
        }

    update, reduce, restore, measure = _ef21(
        (inner.update, inner.reduce, inner.restore, inner.measure), empty
    )
    return ClientTransform(
        trees.zeros_like,
        init_server,
        update,
        reduce,
        functools.partial(_check, "ef21", inner),
        restore=restore,
        measure=measure,
    )
