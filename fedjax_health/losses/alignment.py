"""Alignment of two modalities on normal data.

What two modalities say of the same patient at the same time should find one another in
a shared space as long as nothing is wrong; then a pair that does not is evidence. Only
what both modalities tell can be aligned, so a detector must keep the rest elsewhere.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_health.core.types import Batch, Detection, Key, Outputs
from fedjax_health.losses.combine import Apply, Term
from fedjax_health.losses.contrast import contrast, same_patient, unit


def alignment(
    *,
    weight: float = 0.1,
    temperature: float = 0.1,
    step: Literal["last", "random"] = "last",
) -> Term:
    """Returns the symmetric InfoNCE between the first two modalities.

    Radford et al. 2021 (arXiv:2103.00020) with masks: ``contrast.contrast`` over the
    pairs of ``Detection.aligned`` in the batch, one for each example. A pair takes
    part, as an anchor and as another's counterpart, if the example has weight, both
    modalities are present, and no valid step of its window has label 1. Examples of the
    same patient are not told apart (see ``contrast.same_patient``). With fewer than two
    pairs the loss is 0.

    Args:
      weight: factor of the term.
      temperature: of the cosines.
      step: which step of a window makes the pair: the last, or a valid one drawn at
        random for each window.

    Raises:
      ValueError: for settings out of range; when traced, for a model whose
        ``Detection`` has fewer than two aligned modalities.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and above 0, not {temperature}")
    if step not in ("last", "random"):
        raise ValueError(f"step={step!r}: last or random")
    return Term(float(weight), _alignment(float(temperature), step == "random"))


@functools.cache
def _alignment(temperature: float, random: bool):
    def value(outputs: Outputs, batch: Batch, apply: Apply, key: Key) -> jax.Array:
        del apply
        if not isinstance(outputs, Detection) or len(outputs.aligned) < 2:
            raise ValueError(
                "alignment needs a detector with two or more aligned modalities, such "
                "as fusion_detector with aligned above 0"
            )
        first, second = list(outputs.aligned.values())[:2]
        present = outputs.present
        if present is None:
            present = jnp.ones((*first.shape[:-1], 2), bool)
        if first.ndim == 3:
            at = _step(batch, *first.shape[:2], key=key if random else None)
            first, second, present = (
                jnp.take_along_axis(a, at[:, None, None], axis=1)[:, 0]
                for a in (first, second, present)
            )
        counts = present[:, 0] & present[:, 1] & _normal(batch)
        if "weight" in batch:
            counts &= batch["weight"] > 0
        others = counts[None, :] & ~same_patient(batch, len(counts))
        return contrast(
            unit(first),
            unit(second),
            counts=counts,
            others=others,
            temperature=temperature,
        )

    return value


def _step(batch: Batch, examples: int, time: int, *, key: Key | None) -> jax.Array:
    """Returns which step of each window makes its pair, int32 ``[examples]``."""
    if key is None:
        return jnp.full(examples, time - 1)
    steps = jnp.full(examples, float(time))
    if "valid" in batch:
        steps = jnp.maximum(jnp.sum(batch["valid"], axis=1), 1)
    # Rows that fill up a window stand in front.
    back = jnp.floor(jax.random.uniform(key, (examples,)) * steps)
    return time - 1 - back.astype(jnp.int32)


def _normal(batch: Batch) -> jax.Array:
    """Returns which examples have no valid step of label 1, bool ``[examples]``."""
    attacked = batch["label"] > 0.5
    if "valid" in batch:
        attacked &= batch["valid"] > 0
    return ~jnp.any(attacked.reshape(len(attacked), -1), axis=1)
