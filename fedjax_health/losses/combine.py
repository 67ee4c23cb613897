"""The training loss as a sum of terms over one run of the detector."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_health.core.types import (
    Batch,
    Detection,
    Key,
    LossFn,
    Metrics,
    Model,
    Outputs,
    Params,
    logits_of,
)
from fedjax_health.losses.supervised import Supervised

Apply = Callable[[Batch, Key], Outputs]


class Term(NamedTuple):
    """A part of the loss beside the supervised one.

    Attributes:
      weight: its factor.
      value: ``(outputs, batch, apply, key) -> loss []``; ``apply(batch, key)`` runs the
        detector once more.
    """

    weight: float
    value: Callable[[Outputs, Batch, Apply, Key], jax.Array]


def combine(
    model: Model,
    supervised: Supervised,
    *,
    unimodal_weight: float = 0.3,
    temporal: Term | None = None,
    alignment: Term | None = None,
    nopeek: Term | None = None,
) -> LossFn:
    """Returns the loss ``L_sup + w sum_m L_m + lambda_t L_t + lambda_a L_a``.

    With ``nopeek`` its term comes on top.

    ``L_m`` is the supervised loss of modality m's own logits over the examples (and
    steps) that count and have the modality; it is 0 where the model has no such
    logits. The modalities of ``Detection.unimodal`` must come in the order of
    ``Detection.present``.

    Metrics: those of the supervised loss, and the value of each part, unweighted, as
    ``supervised``, ``unimodal`` (the sum), ``temporal``, ``alignment`` and ``nopeek``,
    as far as there are more parts than the first.

    All settings are static, and equal settings return the same function.

    Args:
      model: the detector.
      supervised: such as ``bce()`` or ``focal_bce()``.
      unimodal_weight: w, 0 or more.
      temporal: consistency over time.
      alignment: agreement between modalities.
      nopeek: how much what crosses a cut depends on what went in.

    Raises:
      ValueError: for a weight that is negative or not finite; and when traced, by the
        terms, for a model that lacks what they need.
    """
    weights = {"unimodal_weight": unimodal_weight}
    terms = (("temporal", temporal), ("alignment", alignment), ("nopeek", nopeek))
    for name, term in terms:
        if term is not None:
            weights[f"{name}.weight"] = term.weight
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{name} must be finite and 0 or more, not {weight}")
    return _build(model, supervised, float(unimodal_weight), terms)


@functools.cache
def _build(
    model: Model,
    supervised: Supervised,
    unimodal_weight: float,
    terms: tuple[tuple[str, Term | None], ...],
) -> LossFn:
    def loss_fn(params: Params, batch: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        def apply(batch: Batch, key: Key) -> Outputs:
            return model.apply(params, batch, key=key)

        outputs = apply(batch, key)
        total, metrics = supervised(logits_of(outputs), batch, None)
        parts = {}
        if unimodal_weight and isinstance(outputs, Detection) and outputs.unimodal:
            own = _unimodal(supervised, outputs, batch)
            parts["unimodal"] = (unimodal_weight, own)
        for number, (name, term) in enumerate(terms):
            if term is not None and term.weight:
                # The model's own keys are folded from the same one with small numbers.
                own = jax.random.fold_in(key, 2**31 - 1 - number)
                parts[name] = (term.weight, term.value(outputs, batch, apply, own))
        if parts:
            metrics = {**metrics, "supervised": total}
        for name, (weight, value) in parts.items():
            total += weight * value
            metrics[name] = value
        return total, metrics

    return loss_fn


def _unimodal(supervised: Supervised, outputs: Detection, batch: Batch) -> jax.Array:
    losses = []
    for i, logits in enumerate(outputs.unimodal.values()):
        counts = None if outputs.present is None else outputs.present[..., i]
        losses.append(supervised(logits, batch, counts)[0])
    return sum(losses[1:], losses[0])
