"""Losses that compare logits with labels."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_health.core.types import (
    Batch,
    Key,
    LossFn,
    Metrics,
    Model,
    Params,
    logits_of,
)

# (logits, batch, counts) -> (loss, metrics); ``counts`` has the shape of the logits
# and is 1 for those that count; None for all.
Supervised = Callable[[jax.Array, Batch, jax.Array | None], tuple[jax.Array, Metrics]]


def masked_bce(
    model: Model, *, positive_weight: float = 1.0, burn_in: int = 0
) -> LossFn:
    """Returns the training loss of a detector by ``bce`` alone.

    Equal settings return the same function.

    Args:
      model: the detector.
      positive_weight: what a positive step's loss is multiplied by, above 0.
      burn_in: first steps of each window that carry no loss; for streams only.

    Raises:
      ValueError: for settings out of range, and when traced for shapes that do not
        fit one another.
    """
    return _alone(model, bce(positive_weight=positive_weight, burn_in=burn_in))


def focal(
    model: Model, *, gamma: float = 2.0, alpha: float | None = None, burn_in: int = 0
) -> LossFn:
    """Returns the training loss of a detector by ``focal_bce`` alone.

    Equal settings return the same function.

    Args:
      model: the detector.
      gamma: how much less a step counts that is already right, 0 or more.
      alpha: weight of positive steps, of negative ones ``1 - alpha``; None for none.
      burn_in: first steps of each window that carry no loss; for streams only.

    Raises:
      ValueError: for settings out of range, and when traced for shapes that do not
        fit one another.
    """
    return _alone(model, focal_bce(gamma=gamma, alpha=alpha, burn_in=burn_in))


@functools.cache
def _alone(model: Model, supervised: Supervised) -> LossFn:
    def loss_fn(params: Params, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        logits = logits_of(model.apply(params, batch, key=key))
        return supervised(logits, batch, None)

    return loss_fn


def bce(*, positive_weight: float = 1.0, burn_in: int = 0) -> Supervised:
    """Returns the binary cross-entropy over the steps that count.

    The loss is the weighted mean of ``-k (c y log p + (1 - y) log(1 - p))`` with
    ``p = sigmoid(logit)``, ``c = positive_weight`` and ``k`` the step's
    ``batch["class_weight"]``, 1 where the batch has none. The weight of a step is what
    ``step_weight`` says: neither c nor k is part of the mean's denominator. Where no
    step counts, loss and gradient are zero.

    The batch holds ``label`` and optionally ``class_weight`` and ``valid`` in the shape
    of the logits, ``[examples]`` or ``[examples, time]``, labels being 0 and 1
    (anything finite where no weight lies), and ``weight [examples]``. Where logits are
    ``[examples]`` and these are ``[examples, time]``, the label belongs to the example
    and the last step speaks for it.

    Metrics: ``accuracy``, the share of counting steps on the right side of logit 0.

    Both settings are static, and equal settings return the same function.

    Args:
      positive_weight: what a positive step's loss is multiplied by, above 0.
      burn_in: first steps of each window that carry no loss; for streams only.

    Raises:
      ValueError: for settings out of range, and when traced for shapes that do not
        fit one another.
    """
    if not (math.isfinite(positive_weight) and positive_weight > 0):
        raise ValueError(
            f"positive_weight must be finite and above 0, not {positive_weight}"
        )
    return _bce(float(positive_weight), _checked(burn_in))


@functools.cache
def _bce(positive_weight: float, burn_in: int) -> Supervised:
    def each(logits: jax.Array, label: jax.Array) -> jax.Array:
        # -log p = softplus(z) - z and -log(1 - p) = softplus(z)
        loss = (1 + (positive_weight - 1) * label) * jax.nn.softplus(logits)
        return loss - positive_weight * label * logits

    return _mean_of(each, burn_in)


def focal_bce(
    *, gamma: float = 2.0, alpha: float | None = None, burn_in: int = 0
) -> Supervised:
    """Returns the focal loss over the steps that count.

    Lin et al. 2017 (arXiv:1708.02002): the weighted mean of
    ``-k a (1 - q)^gamma log q``, where q is the probability given to the true class
    and a is ``alpha`` for positive steps, ``1 - alpha`` for others, or 1 without it.
    Batch, weights, ``k`` and metrics are those of ``bce``.

    All settings are static, and equal settings return the same function.

    Args:
      gamma: how much less a step counts that is already right, 0 or more.
      alpha: weight of positive steps, in (0, 1); None for none.
      burn_in: first steps of each window that carry no loss; for streams only.

    Raises:
      ValueError: for settings out of range, and when traced for shapes that do not
        fit one another.
    """
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be finite and 0 or more, not {gamma}")
    if alpha is not None and not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), not {alpha}: None for none")
    return _focal(
        float(gamma), None if alpha is None else float(alpha), _checked(burn_in)
    )


@functools.cache
def _focal(gamma: float, alpha: float | None, burn_in: int) -> Supervised:
    def each(logits: jax.Array, label: jax.Array) -> jax.Array:
        # q = sigmoid(s) with s the logit towards the true class; (1 - q)^gamma as an
        # exponential of log(1 - q) = -softplus(s), whose gradient is finite for every
        # gamma.
        right = (2 * label - 1) * logits
        loss = jnp.exp(-gamma * jax.nn.softplus(right)) * jax.nn.softplus(-right)
        if alpha is not None:
            loss *= alpha * label + (1 - alpha) * (1 - label)
        return loss

    return _mean_of(each, burn_in)


def _mean_of(
    each: Callable[[jax.Array, jax.Array], jax.Array], burn_in: int
) -> Supervised:
    def supervised(
        logits: jax.Array, batch: Batch, counts: jax.Array | None = None
    ) -> tuple[jax.Array, Metrics]:
        weight = step_weight(batch, logits, burn_in=burn_in)
        if counts is not None:
            weight *= counts.astype(weight.dtype)
        label = for_logits(batch["label"], logits).astype(logits.dtype)
        loss = each(logits, label)
        if "class_weight" in batch:
            loss *= for_logits(batch["class_weight"], logits).astype(logits.dtype)
        total = jnp.sum(weight)
        scale = 1 / jnp.where(total > 0, total, 1)
        right = (logits > 0) == (label > 0.5)
        metrics = {"accuracy": jnp.sum(weight * right) * scale}
        return jnp.sum(weight * loss) * scale, metrics

    return supervised


def for_logits(values: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns values of steps in the shape of the logits.

    Where a window has one logit, the window's last step speaks for it.
    """
    return values[:, -1] if values.ndim == logits.ndim + 1 else values


def step_weight(batch: Batch, logits: jax.Array, *, burn_in: int = 0) -> jax.Array:
    """Returns how much each logit of a batch counts, in the shape of the logits.

    That is ``batch["weight"]`` of its example (0 for rows that only fill up a batch)
    times ``batch["valid"]`` of the step; either may be absent and is then 1.

    Args:
      batch: with ``label`` and, if present, ``class_weight``, ``valid`` and ``weight``;
        all but the last in the shape of the logits, or with a time axis where logits
        have none.
      logits: ``[examples]`` or ``[examples, time]``.
      burn_in: first steps that do not count.

    Raises:
      ValueError: for shapes that do not fit one another.
    """
    shape = logits.shape
    label = batch["label"].shape if "label" in batch else None
    if len(shape) == 1 and label is not None and len(label) == 2:
        shape = (*shape, label[1])
    expected = {
        "label": shape,
        "class_weight": shape,
        "valid": shape,
        "weight": logits.shape[:1],
    }
    for name, wanted in expected.items():
        found = batch[name].shape if name in batch else None
        if found != wanted and (name == "label" or found is not None):
            raise ValueError(
                f"batch[{name!r}] has shape {found}; logits {logits.shape} need "
                f"{wanted}"
            )
    if burn_in and (logits.ndim < 2 or burn_in >= logits.shape[1]):
        raise ValueError(
            f"burn_in={burn_in} leaves no step of logits {logits.shape}: choose a "
            "burn-in below the window's length, and 0 for records without time"
        )
    weight = jnp.ones(logits.shape, logits.dtype)
    if "weight" in batch:
        rows = batch["weight"].astype(logits.dtype)
        weight *= rows.reshape(rows.shape + (1,) * (logits.ndim - 1))
    if "valid" in batch:
        weight *= for_logits(batch["valid"], logits).astype(logits.dtype)
    if burn_in:
        weight *= (jnp.arange(logits.shape[1]) >= burn_in).astype(logits.dtype)
    return weight


def _checked(burn_in: int) -> int:
    if burn_in < 0:
        raise ValueError(f"burn_in must be 0 or more, not {burn_in}")
    return int(burn_in)
