"""What the contrastive losses share."""

import jax
import jax.numpy as jnp

from fedjax_health.core.types import Batch

# Instead of infinity, whose differences are not numbers.
_NONE = -1e30


def contrast(
    first: jax.Array,
    second: jax.Array,
    *,
    counts: jax.Array,
    others: jax.Array,
    temperature: float,
    within: bool = False,
) -> jax.Array:
    """Returns how badly embeddings find their partners, in both directions.

    The mean over anchors i of ``-log(e^{s_ii} / (e^{s_ii} + sum_j e^{s_ij}))`` with
    ``s_ij = u_i . v_j / temperature``, u from one side and v from the other, and the
    sum over i's others j (van den Oord et al. 2018, arXiv:1807.03748); and the same
    with the sides exchanged. Anchors are those that count and have others; where there
    is none, the loss is 0.

    Args:
      first: ``[n, width]``, unit vectors.
      second: ``[n, width]``, their partners.
      counts: bool ``[n]``.
      others: bool ``[n, n]``, what each is told apart from; never itself.
      temperature: above 0.
      within: whether the others of an anchor's own side are told apart from it, too
        (NT-Xent, Chen et al. 2020, arXiv:2002.05709).
    """
    anchors = counts & jnp.any(others, axis=1)
    across = first @ second.T / temperature
    partner = jnp.diagonal(across)

    def one_way(scores: jax.Array, own: jax.Array) -> jax.Array:
        candidates = [partner[:, None], jnp.where(others, scores, _NONE)]
        if within:
            candidates.append(jnp.where(others, own @ own.T / temperature, _NONE))
        whole = jax.nn.logsumexp(jnp.concatenate(candidates, axis=1), axis=1)
        return whole - partner

    each = 0.5 * (one_way(across, first) + one_way(across.T, second))
    total = jnp.sum(anchors)
    return jnp.sum(jnp.where(anchors, each, 0)) / jnp.maximum(total, 1)


def same_patient(batch: Batch, examples: int) -> jax.Array:
    """Returns which pairs of examples are too alike to be told apart, bool ``[n, n]``.

    These are an example and itself, and examples of the same ``batch["patient"]``; with
    ``batch["position"]``, the number of a row's time among the times of its patient,
    only those of them whose windows overlap in time: neither ends before the other
    begins, however their devices' clocks lie. Both are integers, ``[examples]`` or
    ``[examples, time]``; the last step tells the patient, and rows of
    ``batch["valid"]`` 0, which fill a window up in front, are no part of it.
    """
    alike = jnp.eye(examples, dtype=bool)
    if "patient" not in batch:
        return alike
    patient = batch["patient"]
    same = patient[:, None] == patient[None, :]
    if patient.ndim == 2:
        same = patient[:, None, -1] == patient[None, :, -1]
    if "position" in batch:
        position = batch["position"].reshape(examples, -1)
        end = begin = position[:, -1]
        if position.shape[1] > 1:
            counted = batch["valid"] > 0 if "valid" in batch else True
            begin = jnp.min(jnp.where(counted, position, end[:, None]), axis=1)
        same &= begin[:, None] <= end[None, :]
        same &= begin[None, :] <= end[:, None]
    return alike | same


def last_step(values: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the last step of ``[examples, time, width]``, records as they are."""
    return values[:, -1] if values.ndim == x.ndim == 3 else values


def unit(x: jax.Array) -> jax.Array:
    """Scales vectors to length 1; the gradient at 0 is finite."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
