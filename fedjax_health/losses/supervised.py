"""Losses that compare logits with labels."""

import functools
import math

import jax
import jax.numpy as jnp

from fedjax_health.core.types import Batch, Key, LossFn, Metrics, Model, Params


def masked_bce(
    model: Model, *, positive_weight: float = 1.0, burn_in: int = 0
) -> LossFn:
    """Returns the binary cross-entropy over the steps that count.

    The loss is the weighted mean of ``-(c y log p + (1 - y) log(1 - p))`` with
    ``p = sigmoid(logit)`` and ``c = positive_weight``. The weight of a step is
    ``batch["weight"]`` of its example (0 for rows that only fill up a batch) times
    ``batch["valid"]`` of the step; either may be absent and is then 1.
    ``positive_weight`` is not part of the mean's denominator. Where no step counts,
    loss and gradient are zero.

    The batch holds ``label`` in the shape of the logits, ``[examples]`` or
    ``[examples, time]``, of 0 and 1 (anything finite where no weight lies);
    ``valid`` in the same shape, and ``weight [examples]``.

    Metrics: ``accuracy``, the share of counting steps on the right side of logit 0.

    Both settings are static, and equal settings return the same function.

    Args:
      model: the detector.
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
    if burn_in < 0:
        raise ValueError(f"burn_in must be 0 or more, not {burn_in}")
    return _build(model, float(positive_weight), int(burn_in))


@functools.cache
def _build(model: Model, positive_weight: float, burn_in: int) -> LossFn:
    def loss_fn(params: Params, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        logits = model.apply(params, batch, key=key)
        weight = step_weight(batch, logits, burn_in=burn_in)
        label = batch["label"].astype(logits.dtype)
        # -log p = softplus(z) - z and -log(1 - p) = softplus(z)
        each = (1 + (positive_weight - 1) * label) * jax.nn.softplus(logits)
        each -= positive_weight * label * logits
        total = jnp.sum(weight)
        scale = 1 / jnp.where(total > 0, total, 1)
        right = (logits > 0) == (label > 0.5)
        metrics = {"accuracy": jnp.sum(weight * right) * scale}
        return jnp.sum(weight * each) * scale, metrics

    return loss_fn


def step_weight(batch: Batch, logits: jax.Array, *, burn_in: int = 0) -> jax.Array:
    """Returns how much each logit of a batch counts, in the shape of the logits.

    Args:
      batch: with ``label`` and, if present, ``valid`` and ``weight``.
      logits: ``[examples]`` or ``[examples, time]``.
      burn_in: first steps that do not count.

    Raises:
      ValueError: for shapes that do not fit one another.
    """
    expected = {
        "label": logits.shape,
        "valid": logits.shape,
        "weight": logits.shape[:1],
    }
    for name, shape in expected.items():
        found = batch[name].shape if name in batch else None
        if found != shape and (name == "label" or found is not None):
            raise ValueError(
                f"batch[{name!r}] has shape {found}; logits {logits.shape} need {shape}"
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
        weight *= batch["valid"].astype(logits.dtype)
    if burn_in:
        weight *= (jnp.arange(logits.shape[1]) >= burn_in).astype(logits.dtype)
    return weight
