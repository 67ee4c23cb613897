"""Consistency over time, in three kinds.

An attack lasts, so neighbouring steps should tell the same unless the truth or the
input changes; and a window should be told apart from others whatever the noise on it.
"""

import functools
import math

import jax
import jax.numpy as jnp

from fedjax_health.core.types import (
    Batch,
    Detection,
    InputLayout,
    Key,
    Outputs,
    logits_of,
)
from fedjax_health.losses.combine import Apply, Term
from fedjax_health.losses.contrast import contrast, last_step, same_patient, unit
from fedjax_health.losses.supervised import step_weight


def logit_smoothness(*, weight: float = 0.1, masked: bool = True) -> Term:
    """Returns the mean squared step of the probability where the label stays.

    ``sum 1[y_t = y_{t+1}] (p_{t+1} - p_t)^2 / sum 1[y_t = y_{t+1}]`` over the pairs of
    steps that count: both valid, in an example of weight above 0. Where none does, it
    is 0. Unmasked, onsets are smoothed with the rest and detected later: that is for
    comparison alone.

    Args:
      weight: factor of the term.
      masked: whether pairs across which the label changes are left out.

    Raises:
      ValueError: when traced, for a model without an answer at each step.
    """
    return Term(float(weight), _logit(bool(masked)))


@functools.cache
def _logit(masked: bool):
    def value(outputs: Outputs, batch: Batch, apply: Apply, key: Key) -> jax.Array:
        del apply, key
        logits = logits_of(outputs)
        counts = _pairs(batch, logits, "logit_smoothness")
        if masked:
            label = batch["label"]
            counts *= label[:, 1:] == label[:, :-1]
        moves = jnp.diff(jax.nn.sigmoid(logits), axis=1)
        return _mean(moves**2, counts)

    return value


def embedding_smoothness(
    *, weight: float = 0.1, sigma: float = 1.0, layout: InputLayout | None = None
) -> Term:
    """Returns the mean squared step of the embedding where the input stays.

    The mean over the pairs of steps that count of ``exp(-|dx|^2 / sigma^2) |dz|^2``
    with ``|dx|^2`` and ``|dz|^2`` divided by the numbers of values that x and z have,
    so that neither setting depends on them. The mean's denominator is the number of
    pairs. Where none counts, it is 0.

    Args:
      weight: factor of the term.
      sigma: root mean square step of the input, in standard deviations, at which a
        pair counts 1/e.
      layout: where each modality lies in ``batch["x"]``: flags and times are no part
        of ``dx``, nor is a value that was not observed at both steps, unless the last
        observed one stands in its place. None takes all columns for values.

    Raises:
      ValueError: for a sigma of 0 or less; when traced, for a model without embedding.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be finite and above 0, not {sigma}")
    return Term(float(weight), _embedding(float(sigma), layout))


@functools.cache
def _embedding(sigma: float, layout: InputLayout | None):
    def value(outputs: Outputs, batch: Batch, apply: Apply, key: Key) -> jax.Array:
        del apply, key
        counts = _pairs(batch, logits_of(outputs), "embedding_smoothness")
        z = embedding_of(outputs, "embedding_smoothness")
        still = _moved(batch["x"], layout) / sigma**2
        moves = jnp.mean(jnp.diff(z, axis=1) ** 2, axis=-1)
        return _mean(jnp.exp(-still) * moves, counts)

    return value


def _moved(x: jax.Array, layout: InputLayout | None) -> jax.Array:
    """Returns the mean squared step of the values, ``[examples, time - 1]``."""
    squares = jnp.diff(x, axis=1) ** 2
    if layout is None:
        return jnp.mean(squares, axis=-1)
    values, counts = [], []
    for columns in layout:
        values.append(squares[..., slice(*columns.values)])
        both = jnp.ones_like(values[-1])
        if columns.observed is not None and columns.elapsed is None:
            seen = x[..., slice(*columns.observed)]
            both = seen[:, 1:] * seen[:, :-1]
        counts.append(both)
    count = jnp.concatenate(counts, axis=-1)
    total = jnp.sum(count * jnp.concatenate(values, axis=-1), axis=-1)
    return total / jnp.maximum(jnp.sum(count, axis=-1), 1)


def window_contrast(
    *,
    weight: float = 0.1,
    layout: InputLayout | None = None,
    temperature: float = 0.2,
    jitter: float = 0.1,
    scaling: float = 0.1,
) -> Term:
    """Returns how well two noisy views of a window find one another in the batch.

    The contextual contrasting of TS-TCC (Eldele et al. 2021, arXiv:2106.14112): the
    embeddings at the last step of two views are pulled together and pushed from those
    of other windows, by the cross-entropy of their cosines over the temperature. Both
    views multiply each feature of a window by ``1 + scaling e`` and add ``jitter e`` to
    each value, with standard normal e: nothing is permuted, so the order of the steps
    stays what it is. There is neither a projection head nor the prediction of one
    view's future from the other's past. Windows of the same patient are not pushed
    apart (see ``contrast.same_patient``); examples of weight 0 do not count; the loss
    is 0 where there is nothing to push. The detector runs once more, on both views.

    Args:
      weight: factor of the term.
      layout: where each modality lies in ``batch["x"]``: flags and times stay as they
        are, and so do values that were not observed. None adds noise to all.
      temperature: of the cosines.
      jitter: deviation of the noise on each value.
      scaling: deviation of the factor of each feature.

    Raises:
      ValueError: for settings out of range; when traced, for a model without embedding.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and above 0, not {temperature}")
    for name, value in {"jitter": jitter, "scaling": scaling}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and 0 or more, not {value}")
    value = _window(layout, float(temperature), float(jitter), float(scaling))
    return Term(float(weight), value)


@functools.cache
def _window(
    layout: InputLayout | None, temperature: float, jitter: float, scaling: float
):
    def value(outputs: Outputs, batch: Batch, apply: Apply, key: Key) -> jax.Array:
        del outputs
        keys = jax.random.split(key, 3)
        views = [
            noisy(batch, keys[i], layout=layout, jitter=jitter, scaling=scaling)
            for i in range(2)
        ]
        twice = {name: jnp.concatenate([rows, rows]) for name, rows in batch.items()}
        found = apply({**twice, "x": jnp.concatenate(views)}, keys[2])
        z = unit(last_step(embedding_of(found, "window_contrast"), batch["x"]))
        first, second = jnp.split(z, 2)
        counts = batch.get("weight", jnp.ones(len(first))) > 0
        others = counts[None, :] & ~same_patient(batch, len(first))
        return contrast(
            first,
            second,
            counts=counts,
            others=others,
            temperature=temperature,
            within=True,
        )

    return value


def noisy(
    batch: Batch,
    key: Key,
    *,
    layout: InputLayout | None,
    jitter: float,
    scaling: float,
) -> jax.Array:
    """Returns ``batch["x"]`` with the noise of ``window_contrast``."""
    x = batch["x"]
    of_scale, of_jitter = jax.random.split(key)
    shape = (len(x), *[1] * (x.ndim - 2), x.shape[-1])
    factor = 1 + scaling * jax.random.normal(of_scale, shape, x.dtype)
    view = factor * x + jitter * jax.random.normal(of_jitter, x.shape, x.dtype)
    if "valid" in batch:
        view = jnp.where(batch["valid"][..., None] > 0, view, x)
    if layout is None:
        return view
    out = x
    for columns in layout:
        span = slice(*columns.values)
        changed = view[..., span]
        if columns.observed is not None:
            seen = x[..., slice(*columns.observed)] > 0
            changed = jnp.where(seen, changed, x[..., span])
        out = out.at[..., span].set(changed)
    return out


def embedding_of(outputs: Outputs, owner: str) -> jax.Array:
    """Returns the embedding of a ``Detection``.

    Raises:
      ValueError: where there is none.
    """
    if not isinstance(outputs, Detection) or outputs.embedding is None:
        raise ValueError(
            f"{owner} needs a detector that returns a Detection with an embedding, "
            "such as fusion_detector, of one modality or several"
        )
    return outputs.embedding


def _pairs(batch: Batch, logits: jax.Array, owner: str) -> jax.Array:
    """Returns how much each pair of steps counts, ``[examples, time - 1]``."""
    if logits.ndim != 2:
        raise ValueError(
            f"{owner} needs an answer at each step, [examples, time]; the detector's "
            f"logits have shape {logits.shape}"
        )
    counts = step_weight(batch, logits)[:, 1:]
    if "valid" in batch:
        counts *= batch["valid"][:, :-1].astype(counts.dtype)
    return counts


def _mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    total = jnp.sum(counts)
    return jnp.sum(counts * values) / jnp.where(total > 0, total, 1)
