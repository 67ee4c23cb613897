"""Contrast of fused embeddings: of two views, and of each modality alone with them.

Alignment keeps what modalities have in common and nothing else. A fused embedding that
tells examples apart whatever the noise on them must keep what is in one modality alone
and what only several together tell, too.
"""

import functools
import math

import jax
import jax.numpy as jnp

from fedjax_health.core.types import Batch, Detection, InputLayout, Key, Outputs
from fedjax_health.losses.combine import Apply, Term
from fedjax_health.losses.contrast import contrast, last_step, same_patient, unit
from fedjax_health.losses.temporal import embedding_of, noisy


def comm(
    *,
    weight: float = 0.1,
    temperature: float = 0.1,
    jitter: float = 0.1,
    scaling: float = 0.1,
    layout: InputLayout | None = None,
) -> Term:
    """Returns the objective of CoMM on the detector's fused embedding.

    Dufumier et al. 2025, "What to align in multimodal contrastive learning?"
    (arXiv:2409.07402): ``c(Z', Z'') + sum_i [c(Z_i, Z') + c(Z_i, Z'')] / 2``, where Z'
    and Z'' are the fused embeddings of two noisy views of the batch (the noise of
    ``window_contrast``), Z_i that of modality i of the batch itself, with the others
    taken away by ``batch["absent"]``, and c the symmetric InfoNCE of
    ``contrast.contrast`` on their cosines. Of a window the last step counts. There is
    no projection head.

    An example takes part if it has weight and any modality; in the terms of Z_i if it
    has modality i and another one, as else nothing is taken away. Examples of the same
    patient are not told apart (see ``contrast.same_patient``). Labels play no part. A
    term without examples to tell apart is 0. The detector runs once more, on as many
    copies of the batch as it has modalities and two, with its own dropout.

    Args:
      weight: factor of the term.
      temperature: of the cosines.
      jitter: deviation of the noise on each value.
      scaling: deviation of the factor of each feature.
      layout: where each modality lies in ``batch["x"]``: flags and times stay as they
        are, and so do values that were not observed. None adds noise to all.

    Raises:
      ValueError: for settings out of range; when traced, for a model without an
        embedding or with fewer than two modalities.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and above 0, not {temperature}")
    for name, value in {"jitter": jitter, "scaling": scaling}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and 0 or more, not {value}")
    value = _comm(layout, float(temperature), float(jitter), float(scaling))
    return Term(float(weight), value)


@functools.cache
def _comm(
    layout: InputLayout | None, temperature: float, jitter: float, scaling: float
):
    def value(outputs: Outputs, batch: Batch, apply: Apply, key: Key) -> jax.Array:
        present = _present(outputs, batch)
        examples, count = present.shape
        keys = jax.random.split(key, 3)
        views = [
            noisy(batch, keys[i], layout=layout, jitter=jitter, scaling=scaling)
            for i in range(2)
        ]
        copies = 2 + count
        many = {n: jnp.concatenate([rows] * copies) for n, rows in batch.items()}
        many["x"] = jnp.concatenate([*views, *[batch["x"]] * count])
        many["absent"] = _absent(batch, examples, count)
        found = apply(many, keys[2])
        z = unit(last_step(embedding_of(found, "comm"), batch["x"]))
        first, second, *alone = jnp.split(z, copies)

        apart = ~same_patient(batch, examples)
        weighs = batch.get("weight", jnp.ones(examples)) > 0

        def term(one: jax.Array, other: jax.Array, counts: jax.Array) -> jax.Array:
            counts &= weighs
            return contrast(
                one,
                other,
                counts=counts,
                others=counts[None, :] & apart,
                temperature=temperature,
            )

        total = term(first, second, jnp.any(present, axis=1))
        several = jnp.sum(present, axis=1) > 1
        for i, single in enumerate(alone):
            counts = present[:, i] & several
            total += 0.5 * (term(single, first, counts) + term(single, second, counts))
        return total

    return value


def _present(outputs: Outputs, batch: Batch) -> jax.Array:
    """Returns what each example has at its last step, bool ``[examples, modalities]``.

    Raises:
      ValueError: for a model that does not say, or has one modality.
    """
    embedding_of(outputs, "comm")
    present = outputs.present if isinstance(outputs, Detection) else None
    if present is None or present.shape[-1] < 2:
        raise ValueError(
            "comm needs a detector that says which of two or more modalities are "
            "present, such as fusion_detector"
        )
    return last_step(present, batch["x"])


def _absent(batch: Batch, examples: int, count: int) -> jax.Array:
    """Returns what each copy lacks: nothing in the views, then all but one."""
    gone = batch.get("absent", jnp.zeros((examples, count), bool))
    others = ~jnp.eye(count, dtype=bool)
    return jnp.concatenate([gone, gone, *(gone | others[i] for i in range(count))])
