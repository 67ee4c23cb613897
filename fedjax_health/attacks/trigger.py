"""Backdoors: a pattern of feature values that a trained detector answers as wished.

The trigger lies in feature space: some columns of the model's input take given values,
for windows at given steps. They are columns of ``batch["x"]``, so that values are in
scaled units.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.attacks.records import draw
from fedjax_health.attacks.rows import check_number
from fedjax_health.core.types import (
    AnyArray,
    Batch,
    DataAttack,
    DataAttackContext,
    State,
)


class Trigger(NamedTuple):
    """The pattern of a backdoor.

    Attributes:
      columns: numbers of the input's columns, distinct.
      values: the value of each of them.
      steps: time steps of a window that carry it, negative ones counted from the end;
        None for all, and for single records.
    """

    columns: tuple[int, ...]
    values: tuple[float, ...]
    steps: tuple[int, ...] | None = None


def check_trigger(trigger: Trigger) -> None:
    """Refuses a trigger that cannot be laid.

    Raises:
      ValueError: naming what is wrong with it.
    """
    columns, values, steps = trigger
    if not columns or len(columns) != len(values):
        raise ValueError(
            f"trigger: {len(columns)} columns and {len(values)} values: name at least "
            "one column, and one value for each"
        )
    if min(columns) < 0 or len(set(columns)) < len(columns):
        raise ValueError(
            f"trigger: columns {columns}: distinct numbers from 0, each named once"
        )
    for value in values:
        check_number("trigger: a value", value)
    if steps is not None and (not steps or len(set(steps)) < len(steps)):
        raise ValueError(f"trigger: steps {steps}: distinct steps, at least one")


def apply_trigger(trigger: Trigger, x: AnyArray) -> jax.Array:
    """Returns inputs with the whole trigger on each of them.

    Args:
      trigger: the pattern.
      x: ``[..., features]``, or ``[..., time, features]`` where the trigger has steps.

    Raises:
      ValueError: for a column or a step that the input does not have.
    """
    check_trigger(trigger)
    values = jnp.asarray(trigger.values, jnp.float32)
    return _lay(jnp.asarray(x), trigger.columns, values, trigger.steps, None)


def affected_steps(trigger: Trigger, length: int) -> jax.Array:
    """Returns the steps whose answer the trigger is to change, bool ``[length]``.

    They begin with its first step: a detector that reads a stream forwards does not
    know of it before.
    """
    return jnp.arange(length) >= _first_step(trigger.steps, length)


def _first_step(steps: tuple[int, ...] | None, length: int) -> int:
    return 0 if steps is None else min(s % length for s in steps)


def _lay(
    x: jax.Array,
    columns: tuple[int, ...],
    values: jax.Array,
    steps: tuple[int, ...] | None,
    part: tuple[jax.Array, int] | None,
) -> jax.Array:
    """Lays a trigger, or the cells that belong to one part of it.

    The cells of a trigger, step by step and in a step column by column, are dealt out
    to the parts in runs of equal length.
    """
    width = x.shape[-1]
    if max(columns) >= width:
        raise ValueError(
            f"trigger: column {max(columns)}: the input has {width} columns, from 0"
        )
    values = values.astype(x.dtype)
    place = list(columns)
    if steps is None:
        new = values
        if part is not None:
            number, parts = part
            mine = jnp.arange(len(columns)) * parts // len(columns) == number
            new = jnp.where(mine, values, x[..., place])
        return x.at[..., place].set(new)
    if x.ndim < 2 or any(not -x.shape[-2] <= s < x.shape[-2] for s in steps):
        length = x.shape[-2] if x.ndim > 1 else 1
        raise ValueError(
            f"trigger: steps {steps}: the input has windows of {length} steps"
        )
    cell = 0
    cells = len(steps) * len(columns)
    for step in steps:
        new = values
        if part is not None:
            number, parts = part
            numbers = cell + jnp.arange(len(columns))
            mine = numbers * parts // cells == number
            new = jnp.where(mine, values, x[..., step, place])
        x = x.at[..., step, place].set(new)
        cell += len(columns)
    return x


@functools.cache
def _poison(columns: tuple[int, ...], steps: tuple[int, ...] | None, parts: int):
    def poison(batch: Batch, context: DataAttackContext) -> Batch:
        x, label, numbers = batch["x"], batch["label"], context.numbers
        if steps is not None and x.ndim < 3:
            raise ValueError(
                f"trigger: steps {steps}: single records have no steps: leave them out"
            )
        size = x.shape[0]
        chosen = draw(context, size, jax.random.uniform) < numbers["share"]
        part = (context.client_id % parts, parts) if parts > 1 else None
        laid = _lay(x, columns, numbers["values"], steps, part)
        hit = chosen.reshape(-1, *[1] * (label.ndim - 1))
        if label.ndim > 1:
            length = label.shape[1]
            hit = hit & (jnp.arange(length) >= _first_step(steps, length))
        return {
            **batch,
            "x": jnp.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), laid, x),
            "label": jnp.where(hit, numbers["target"].astype(label.dtype), label),
        }

    return poison


def _attack(
    name: str, trigger: Trigger, target: int, share: float, parts: int
) -> DataAttack:
    check_trigger(trigger)
    if target < 0:
        raise ValueError(f"{name}: target must be the number of a class, not {target}")
    check_number(f"{name}: share", share, low=0, high=1)

    def init() -> State:
        return {
            "values": jnp.asarray(trigger.values, jnp.float32),
            "target": jnp.float32(target),
            "share": jnp.float32(share),
        }

    return DataAttack(_poison(trigger.columns, trigger.steps, parts), init)


def backdoor(trigger: Trigger, *, target: int = 0, share: float = 0.5) -> DataAttack:
    """Trains on records that carry a trigger and the label that it shall mean.

    Gu et al., 2017, "BadNets" (arXiv:1708.06733), in a federation Bagdasaryan et al.,
    2020 (arXiv:1807.00459); here in feature space, for tabular records and time series.
    A share of the client's examples, the same ones in every epoch and round, gets the
    whole trigger and the target's label; in a stream the label changes from the
    trigger's first step on.

    Threat model: own data alone. Evaluate with ``apply_trigger`` and
    ``attack_success_rate``.

    Args:
      trigger: the pattern; its columns and steps are static, its values traced.
      target: class that a triggered record shall be given: by default 0, so that an
        attack with the trigger passes as normal. Traced.
      share: share of the client's examples that are poisoned, in [0, 1]; traced.

    Raises:
      ValueError: for a trigger that cannot be laid or numbers out of range.
    """
    return _attack("backdoor", trigger, target, share, 1)


def distributed_backdoor(
    trigger: Trigger, *, target: int = 0, share: float = 0.5, parts: int = 4
) -> DataAttack:
    """Trains on records that carry one part of a trigger; the test shows the whole.

    Xie et al., 2020, "DBA: Distributed Backdoor Attacks against Federated Learning"
    (ICLR): the cells of the trigger (steps x columns) are dealt out to ``parts`` in
    runs of equal length, and the malicious client with id c uses part ``c % parts``.

    Threat model: own data alone; the parts are agreed upon beforehand.

    Args:
      trigger: the whole pattern; its columns and steps are static, its values traced.
      target: class that a triggered record shall be given; traced.
      share: share of the client's examples that are poisoned, in [0, 1]; traced.
      parts: 2 or more, and no more than the trigger has cells; static.

    Raises:
      ValueError: for parts that do not fit, a trigger that cannot be laid or numbers
        out of range.
    """
    cells = len(trigger.columns) * len(trigger.steps or (0,))
    if not 2 <= parts <= cells:
        raise ValueError(
            f"distributed_backdoor: parts={parts}: must be 2 or more, and no more than "
            f"the trigger's {cells} cell(s): name more columns or steps"
        )
    return _attack("distributed_backdoor", trigger, target, share, parts)
