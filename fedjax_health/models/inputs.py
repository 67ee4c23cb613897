"""What an encoder sees of a batch: columns by modality, flags, presence.

Inside models time is the leading axis: recurrent scans run over it, and shifts along
it copy nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_health.core.types import Batch, InputLayout, ModalityColumns


class Part(NamedTuple):
    """One modality of a batch.

    Attributes:
      values: ``[..., features]`` where ``...`` is ``[examples]`` or, for streams,
        ``[time, examples]``; 0 where nothing was observed, or in a carried modality
        the last observed value.
      observed: the same shape, 1 where the value was observed; None where all were.
      elapsed: the same shape, log(1 + steps) since the value was last observed; None
        where the modality is not carried.
      valid: ``[time, examples]``, 0 on rows that fill up a window in front; None where
        there are none.
    """

    values: jax.Array
    observed: jax.Array | None = None
    elapsed: jax.Array | None = None
    valid: jax.Array | None = None


def as_layout(features: int | InputLayout, *, owner: str) -> InputLayout:
    """Returns a layout; a number stands for one complete modality of that width.

    Raises:
      ValueError: for a width below 1, an empty layout or a name that comes twice.
    """
    if isinstance(features, tuple):
        names = [columns.name for columns in features]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"{owner}: the layout names modalities {names}: one or more, each once"
            )
        return features
    features = int(features)
    if features < 1:
        raise ValueError(f"{owner}: features={features} must be 1 or more")
    return (ModalityColumns("features", (0, features)),)


def spans(columns: ModalityColumns) -> list[tuple[int, int]]:
    """Returns the column spans that a modality has."""
    every = (columns.values, columns.observed, columns.elapsed)
    return [span for span in every if span is not None]


def layout_width(layout: InputLayout) -> int:
    """Returns the width of ``batch["x"]``."""
    return max(end for columns in layout for _, end in spans(columns))


def num_values(columns: ModalityColumns) -> int:
    """Returns the number of features of a modality."""
    return columns.values[1] - columns.values[0]


def num_inputs(layout: InputLayout) -> int:
    """Returns the width of ``side_by_side``."""
    return sum(end - start for c in layout for start, end in spans(c))


def split_batch(
    batch: Batch, layout: InputLayout, *, streams: bool, owner: str
) -> tuple[Part, ...]:
    """Returns the modalities of ``batch["x"]``, time first.

    Raises:
      ValueError: if the width or the number of axes is another.
    """
    x = batch["x"]
    width = layout_width(layout)
    if x.ndim != (3 if streams else 2) or x.shape[-1] != width:
        steps = "time, " if streams else ""
        raise ValueError(
            f"{owner} needs batch['x'] of shape [examples, {steps}{width}], "
            f"not {x.shape}"
        )
    valid = batch["valid"] if streams and "valid" in batch else None
    if streams:
        x = jnp.swapaxes(x, 0, 1)
        valid = None if valid is None else jnp.swapaxes(valid, 0, 1).astype(x.dtype)
    return tuple(_take(x, columns, valid) for columns in layout)


def _take(x: jax.Array, columns: ModalityColumns, valid: jax.Array | None) -> Part:
    def span(of: tuple[int, int] | None):
        return None if of is None else x[..., of[0] : of[1]]

    values, observed, elapsed = (
        x[..., columns.values[0] : columns.values[1]],
        span(columns.observed),
        span(columns.elapsed),
    )
    if observed is not None and elapsed is None:
        values = jnp.where(observed > 0, values, 0)
    return Part(values, observed, elapsed, valid)


def side_by_side(parts: tuple[Part, ...]) -> jax.Array:
    """Returns values, flags and times of all parts in one array ``[..., inputs]``."""
    arrays = [a for part in parts for a in part[:3] if a is not None]
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=-1)


def presence(part: Part, *, axes: int) -> jax.Array:
    """Returns where a modality has been observed at all, bool.

    Args:
      part: the modality.
      axes: 0 for records ``[examples, features]``; for streams 1 for an answer at each
        step, from the steps up to it, and 2 for one over the whole window.

    Returns:
      ``[examples]``, or ``[time, examples]`` for streams with an answer at each step.
      True everywhere for a modality without flags.
    """
    if part.observed is None:
        shape = part.values.shape[1:-1] if axes == 2 else part.values.shape[:-1]
        return jnp.ones(shape, bool)
    seen = jnp.any(part.observed > 0, axis=-1)
    if axes == 0:
        return seen
    if axes == 2:
        return jnp.any(seen, axis=0)
    return lax.cummax(seen.astype(jnp.int8), axis=0) > 0


def last_row(part: Part) -> Part:
    """Returns the last step of a part ``[time, examples, features]`` as a record."""
    last = (None if a is None else a[-1] for a in part[:3])
    return Part(*last)  # pyright: ignore[reportArgumentType]
