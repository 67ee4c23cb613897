"""A detector of stays that reads statistics of the whole window.

On clinical series of one or two days with one label a stay, a few numbers of each
variable say most of what is to be known (the benchmark of Harutyunyan et al. 2019,
"Multitask learning and benchmarking with clinical time series data", builds its linear
baselines on such numbers). Clients here hold hundreds of stays, not millions, so the
network is small, has a linear path of its own and sees squares, since risk rises on
both sides of a healthy value.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_health.core.types import Batch, InputLayout, Key, ModalityColumns, Model
from fedjax_health.models.functional import build_model
from fedjax_health.models.inputs import layout_width, num_values
from fedjax_health.models.perceptron import Perceptron

# Squares of outliers would drown the others.
_LARGEST = 3.0


def stay_statistics(
    values: jax.Array,
    observed: jax.Array | None,
    valid: jax.Array,
) -> jax.Array:
    """Returns what a window shows of each variable.

    For each variable, over the steps at which it was observed: the last value, the
    mean, the standard deviation, the slope of the least-squares line (per half window),
    the mean over the later half of the window (the last value before it where there is
    none in it), the squares of last value and mean (within 3 deviations); and where it
    may be missing, log(1 + observations), whether there was any, and log(1 + steps)
    since the last, both over log(1 + steps of the window). 0 where nothing was
    observed.

    Args:
      values: ``[examples, time, variables]``; anything where nothing was observed.
      observed: 1 where a value was observed, of the same shape; None for always.
      valid: ``[examples, time]``, 0 for rows that only fill up the window.

    Returns:
      ``[examples, 7 variables]``, or ``[examples, 10 variables]`` with ``observed``.
    """
    steps = values.shape[1]
    flags = jnp.broadcast_to(valid[..., None], values.shape)
    if observed is not None:
        flags = flags * observed
    seen = flags > 0
    values = jnp.where(seen, values, 0)
    count = jnp.sum(flags, axis=1)
    some = count > 0
    divisor = jnp.maximum(count, 1)
    mean = jnp.sum(values, axis=1) / divisor
    apart = jnp.where(seen, values - mean[:, None], 0)
    variance = jnp.sum(apart**2, axis=1) / divisor
    # A root has no gradient at 0.
    std = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    time = (jnp.arange(steps, dtype=values.dtype) / max(steps - 1, 1) * 2 - 1)[:, None]
    middle = jnp.sum(flags * time, axis=1) / divisor
    lever = jnp.where(seen, time - middle[:, None], 0)
    spread = jnp.sum(lever**2, axis=1)
    slope = jnp.sum(lever * apart, axis=1) / jnp.where(spread > 0, spread, 1)
    position = jnp.where(seen, jnp.arange(steps)[:, None], -1)
    latest = jnp.max(position, axis=1)
    last = jnp.take_along_axis(values, jnp.maximum(latest, 0)[:, None], axis=1)[:, 0]
    later = flags * (jnp.arange(steps) >= steps // 2)[:, None]
    late_count = jnp.sum(later, axis=1)
    late = jnp.sum(values * later, axis=1) / jnp.maximum(late_count, 1)
    late = jnp.where(late_count > 0, late, last)

    def square(x: jax.Array) -> jax.Array:
        return jnp.clip(x, -_LARGEST, _LARGEST) ** 2

    numbers = [last, mean, std, slope, late, square(last), square(mean)]
    if observed is not None:
        whole = jnp.log1p(float(steps))
        since = jnp.log1p(steps - 1.0 - latest)
        numbers += [jnp.log1p(count) / whole, some.astype(values.dtype), since / whole]
    return jnp.concatenate([jnp.where(some, number, 0) for number in numbers], axis=-1)


def _record(values: jax.Array, observed: jax.Array | None) -> jax.Array:
    """Returns values, their squares and flags of one row ``[examples, variables]``."""
    if observed is not None:
        values = jnp.where(observed > 0, values, 0)
    squares = jnp.clip(values, -_LARGEST, _LARGEST) ** 2
    parts = [values, squares] + ([] if observed is None else [observed])
    return jnp.concatenate(parts, axis=-1)


class _Statistics(nnx.Module):
    def __init__(
        self,
        layout: InputLayout,
        records: tuple[str, ...],
        hidden: tuple[int, ...],
        input_dropout: float,
        dropout: float,
        streams: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.layout = layout
        self.records = records
        self.streams = streams
        width = sum(self._width(columns) for columns in layout)
        self.input_dropout = nnx.Dropout(input_dropout)
        self.dense = Perceptron(width, hidden, dropout, False, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.skip = nnx.Linear(width, 1, kernel_init=zeros, rngs=rngs)
        self.head = nnx.Linear(hidden[-1], 1, rngs=rngs) if hidden else None

    def _width(self, columns: ModalityColumns) -> int:
        masked = columns.observed is not None
        each = (7, 10) if self._windowed(columns) else (2, 3)
        return num_values(columns) * each[masked]

    def _windowed(self, columns: ModalityColumns) -> bool:
        return self.streams and columns.name not in self.records

    def __call__(self, batch: Batch, *, key: Key | None = None) -> jax.Array:
        x = batch["x"]
        if x.ndim != (3 if self.streams else 2) or x.shape[-1] != layout_width(
            self.layout
        ):
            raise ValueError(
                "statistics_detector needs batch['x'] of shape [examples, "
                f"{'time, ' if self.streams else ''}{layout_width(self.layout)}], not "
                f"{x.shape}"
            )
        valid = batch["valid"] if "valid" in batch else jnp.ones(x.shape[:-1], x.dtype)
        parts = []
        for columns in self.layout:
            values, observed = (
                None if span is None else x[..., span[0] : span[1]]
                for span in (columns.values, columns.observed)
            )
            assert values is not None
            if self._windowed(columns):
                parts.append(stay_statistics(values, observed, valid))
            else:
                row = (..., -1, slice(None)) if self.streams else ...
                flags = None if observed is None else observed[row]
                parts.append(_record(values[row], flags))
        inputs = jnp.concatenate(parts, axis=-1)
        keys = (None, None) if key is None else jax.random.split(key)
        inputs = self.input_dropout(inputs, deterministic=key is None, rngs=keys[0])
        logits = self.skip(inputs)[..., 0]
        if self.head is not None:
            logits += self.head(self.dense(inputs, key=keys[1]))[..., 0]
        return logits


def statistics_detector(
    layout: InputLayout,
    *,
    records: Sequence[str] = (),
    hidden: Sequence[int] = (64,),
    input_dropout: float = 0.3,
    dropout: float = 0.5,
    streams: bool = True,
) -> Model:
    """Returns a detector with one answer for each window, or for each record.

    Reads ``batch["x"]`` ``[examples, time, width]`` (with ``batch["valid"]``
    ``[examples, time]`` where windows are filled up) and returns logits ``[examples]``:
    a linear function of ``stay_statistics`` plus a perceptron on the same. Of records,
    ``[examples, width]``, it reads values, squares and flags. Equal settings return the
    same functions, and all settings are static.

    Args:
      layout: where each modality lies in ``batch["x"]``.
      records: modalities that do not change over the window: their last row is read.
      hidden: units of each hidden layer; none for the linear function alone.
      input_dropout: share of the statistics dropped while a key is given.
      dropout: share of hidden units dropped while a key is given.
      streams: whether examples have a time axis.

    Raises:
      ValueError: for sizes below 1, a dropout outside [0, 1), or an unknown modality.
    """
    names = [columns.name for columns in layout]
    for name in records:
        if name not in names:
            raise ValueError(
                f"statistics_detector: records names {name!r}: the data has "
                f"{', '.join(names)}"
            )
    hidden = tuple(int(units) for units in hidden)
    if any(units < 1 for units in hidden):
        raise ValueError(f"statistics_detector: hidden={hidden} must be 1 or more")
    for name, value in {"input_dropout": input_dropout, "dropout": dropout}.items():
        if not 0 <= value < 1:
            raise ValueError(f"statistics_detector: {name}={value} must lie in [0, 1)")
    return _build(
        tuple(layout),
        tuple(records),
        hidden,
        float(input_dropout),
        float(dropout),
        bool(streams),
    )


@functools.cache
def _build(
    layout: InputLayout,
    records: tuple[str, ...],
    hidden: tuple[int, ...],
    input_dropout: float,
    dropout: float,
    streams: bool,
) -> Model:
    return build_model(
        lambda rngs: _Statistics(
            layout, records, hidden, input_dropout, dropout, streams, rngs=rngs
        )
    )
