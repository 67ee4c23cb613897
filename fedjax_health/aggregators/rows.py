"""The rows of a stack: which count, and how many of the nearest are taken.

A row of weight 0 is absent. A row that was sent and whose squared norm is not a finite
number that can be worked with is masked before anything else, counted, and counted
towards the assumed malicious clients: of f assumed ones ``max(f - masked, 0)`` are
left.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import AggregationContext, Metrics, Params, State

LARGEST = 1e36
"""Largest squared norm of a row that counts: distances between such rows are finite."""


class Rows(NamedTuple):
    """Which rows count.

    Attributes:
      valid: bool ``[n]``, present and finite.
      weights: float32 ``[n]``, aggregation weights; 0 where a row is not valid.
      masked: int32 ``[]``, rows that were sent and are not finite.
      client_ids: int32 ``[n]``.
    """

    valid: jax.Array
    weights: jax.Array
    masked: jax.Array
    client_ids: jax.Array

    @property
    def count(self) -> jax.Array:
        """Valid rows, int32 ``[]``."""
        return jnp.sum(self.valid).astype(jnp.int32)

    def by_client(self) -> jax.Array:
        """Returns the row numbers in the order of their clients, int32 ``[n]``.

        The first of several that tie is the one of the lowest client id, so that no
        order of the rows is preferred.
        """
        return jnp.argsort(self.client_ids).astype(jnp.int32)

    def malicious(self, assumed: jax.Array | int) -> jax.Array:
        """Returns how many malicious rows are assumed among the valid, int32 ``[]``.

        Args:
          assumed: among all rows.
        """
        return jnp.maximum(jnp.int32(assumed) - self.masked, 0)


def rows_of(
    weights: jax.Array,
    squared_norms: jax.Array,
    context: AggregationContext | None,
) -> Rows:
    """Returns which rows of a stack count.

    Args:
      weights: float32 ``[n]``, 0 for absent rows.
      squared_norms: float32 ``[n]``; not finite where the row is not.
      context: tells which rows were sent and whose they are; None stands for all of
        those that weigh anything, numbered as they stand.
    """
    present = weights > 0
    # A NaN is no number below the bound either.
    valid = present & (squared_norms <= LARGEST)
    sent = present if context is None else jnp.asarray(context.mask) | present
    ids = None if context is None else context.client_ids
    return Rows(
        valid=valid,
        weights=jnp.where(valid, weights, 0.0).astype(jnp.float32),
        masked=jnp.sum(sent & ~valid).astype(jnp.int32),
        client_ids=(
            jnp.arange(weights.shape[0], dtype=jnp.int32)
            if ids is None
            else jnp.asarray(ids, jnp.int32)
        ),
    )


def smallest(values: jax.Array, count: jax.Array | int) -> jax.Array:
    """Returns how much of each value belongs to the ``count`` smallest ones.

    Values that tie for the last places share them, so that no order of the rows is
    preferred: the result is 1, 0, or a share.

    Args:
      values: float32 ``[..., n]``; infinite where a value must not be taken.
      count: int32 ``[]``, how many; all that are finite where there are fewer.

    Returns:
      float32 ``[..., n]``, which sums to ``count`` along the last axis.
    """
    n = values.shape[-1]
    ordered = jnp.sort(values, axis=-1)
    place = jnp.clip(jnp.int32(count) - 1, 0, n - 1)
    last = jax.lax.dynamic_index_in_dim(ordered, place, -1, keepdims=True)
    finite = values < jnp.inf
    below = finite & (values < last)
    tied = finite & (values == last)
    places = jnp.int32(count) - jnp.sum(below, -1, keepdims=True)
    ties = jnp.maximum(jnp.sum(tied, -1, keepdims=True), 1)
    share = jnp.clip(places / ties, 0.0, 1.0)
    taken = jnp.where(below, 1.0, jnp.where(tied, share, 0.0))
    return jnp.where(jnp.int32(count) > 0, taken, 0.0)


def median_of(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the median of the valid numbers, the middle two averaged; 0 of none."""
    count = jnp.sum(valid)
    ordered = jnp.sort(jnp.where(valid, values, jnp.inf))
    low = jnp.take(ordered, jnp.maximum(count - 1, 0) // 2)
    high = jnp.take(ordered, count // 2, mode="clip")
    return jnp.where(count > 0, 0.5 * (low + high), 0.0)


def normalised(weights: jax.Array) -> jax.Array:
    """Returns weights that sum to 1, or zeros where all are 0."""
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1.0)


def row_metrics(rows: Rows) -> Metrics:
    """Returns what every rule reports of the rows: how many it had to mask."""
    return {"masked_rows": rows.masked}


def check_malicious(rule: str, num_malicious: int) -> int:
    """Refuses a number of malicious clients that is none.

    Raises:
      ValueError: if it is not an integer of 0 or more.
    """
    return check_count(rule, "num_malicious", num_malicious, least=0)


def check_count(rule: str, name: str, value: Any, *, least: int) -> int:
    """Refuses what is no integer of at least ``least``; returns it as an int.

    Raises:
      ValueError: naming the rule and the value.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and hasattr(value, "__index__") and not isinstance(value, bool):
        value, whole = value.__index__(), True
    if not whole or value < least:
        raise ValueError(
            f"{rule}: {name} must be an integer of {least} or more, not {value!r}"
        )
    return value


def check_number(
    rule: str, name: str, value: float, *, above: float, most: float = float("inf")
) -> float:
    """Refuses a number that is not finite or not in ``(above, most]``.

    Raises:
      ValueError: naming the rule and the value.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (above < value <= most and abs(value) < float("inf")):
        end = f" and at most {most:g}" if most < float("inf") else ""
        raise ValueError(
            f"{rule}: {name} must be a finite number above {above:g}{end}, "
            f"not {value!r}"
        )
    return float(value)


def check_majority(rule: str, num_malicious: int, cohort_size: int) -> None:
    """Refuses a cohort of which half or more are assumed malicious.

    Raises:
      CompositionError: with the largest number that is accepted.
    """
    if 2 * num_malicious >= cohort_size:
        raise CompositionError(
            f"{rule} needs num_malicious below half of the cohort, and "
            f"num_malicious={num_malicious} of {cohort_size} is not: assume at most "
            f"{(cohort_size - 1) // 2}, or draw {2 * num_malicious + 1} clients or more"
        )


def no_state(params: Params) -> State:
    """The state of a rule without memory or numbers."""
    del params
    return ()


def accept_any(message: Message, cohort_size: int) -> Message:
    """The check of a rule that is defined for every cohort."""
    del cohort_size
    return message
