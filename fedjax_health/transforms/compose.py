"""The identity transform and the composition of several."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fedjax_health.core.message import Message
from fedjax_health.core.types import (
    ClientContext,
    ClientTransform,
    Metrics,
    Params,
    Report,
    Shared,
    State,
    Updates,
)


def no_memory(params: Params) -> State:
    """The memory of a transform that remembers nothing."""
    del params
    return ()


def _pass_on(
    updates: Updates, memory: State, context: ClientContext
) -> tuple[Updates, State, Report]:
    del context
    return updates, memory, ()


def keep_shared(shared: Shared, report: Report, key: jax.Array) -> Shared:
    """The server half of a transform that broadcasts the same value for ever."""
    del report, key
    return shared


def _same(message: Message) -> Message:
    return message


@functools.cache
def identity() -> ClientTransform:
    """Sends the updates as they are."""
    return ClientTransform(no_memory, no_memory, _pass_on, keep_shared, _same)


@functools.cache
def _chained(updates: tuple, reduces: tuple) -> tuple:
    """Returns update and reduce of a chain: the same objects for the same parts."""

    def update(
        value: Updates, memory: State, context: ClientContext
    ) -> tuple[Updates, State, Report]:
        memories, reports = [], []
        for i, part in enumerate(updates):
            own = context._replace(
                key=jax.random.fold_in(context.key, i), shared=context.shared[i]
            )
            value, kept, report = part(value, memory[i], own)
            memories.append(kept)
            reports.append(report)
        return value, tuple(memories), tuple(reports)

    def reduce(shared: Shared, report: Report, key: jax.Array) -> Shared:
        return tuple(
            part(shared[i], report[i], jax.random.fold_in(key, i))
            for i, part in enumerate(reduces)
        )

    return update, reduce


@functools.cache
def _chained_restore(parts: tuple):
    """Returns the ways back, the last transform's first; None where there is none."""
    if not any(parts):
        return None

    def restore(
        aggregate: Updates, shared: Shared, params: Params
    ) -> tuple[Updates, Shared]:
        new = list(shared)
        for i in reversed(range(len(parts))):
            if parts[i] is not None:
                aggregate, new[i] = parts[i](aggregate, shared[i], params)
        return aggregate, tuple(new)

    return restore


@functools.cache
def _chained_measure(parts: tuple):
    """Returns what all parts say; of one name, what the last one says."""
    if not any(parts):
        return None

    def measure(report: Report, shared: Shared, count: jax.Array) -> Metrics:
        said: Metrics = {}
        for i, part in enumerate(parts):
            if part is not None:
                said |= part(report[i], shared[i], count)
        return said

    return measure


def chain(*transforms: ClientTransform) -> ClientTransform:
    """Applies transforms one after the other, the first one first.

    A bound that a part announces is named by the part's position, ``"0/clip_norm"``.
    One part at most may send messages of another structure than the parameters: its
    way back, like every other, is told the parameters' structure.
    """
    update, reduce = _chained(
        tuple(t.update for t in transforms), tuple(t.reduce for t in transforms)
    )

    def check(message: Message) -> Message:
        for i, part in enumerate(transforms):
            # Marked as coming from outside, an earlier bound that is kept cannot be
            # mistaken for a new one of the same name, a nested chain's for instance.
            before = None if message.bound is None else f"../{message.bound}"
            checked = part.check(dataclasses.replace(message, bound=before))
            if checked.bound is None:
                bound = None
            elif checked.bound == before:
                bound = message.bound
            else:
                bound = f"{i}/{checked.bound}"
            message = dataclasses.replace(checked, bound=bound)
        return message

    return ClientTransform(
        init=lambda params: tuple(t.init(params) for t in transforms),
        init_server=lambda params: tuple(t.init_server(params) for t in transforms),
        update=update,
        reduce=reduce,
        check=check,
        restore=_chained_restore(tuple(t.restore for t in transforms)),
        measure=_chained_measure(tuple(t.measure for t in transforms)),
    )


def bound_leaf(shared: Shared, name: str) -> jax.Array:
    """Returns the leaf of a chain's shared value that ``Message.bound`` names."""
    value = shared
    for part in name.split("/"):
        value = value[int(part)] if part.isdigit() else _field(value, part)
    return jnp.asarray(value)


def _field(value: Shared, name: str):
    return value[name] if isinstance(value, dict) else getattr(value, name)
