"""How often the trigger of a backdoor gets what it was planted for, on test data."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.attacks import Trigger, apply_trigger, attack_success_rate
from fedjax_health.core.types import Batch, Model, Outputs, Params
from fedjax_health.data.schema import Dataset, examples_of
from fedjax_health.engine.score import probability
from fedjax_health.evaluate.scoring import Weights, build_part_reader


class _Answers(NamedTuple):
    """What a detector says of examples as they are and with the trigger on them."""

    plain: Any
    triggered: Any
    whole: Any


def attack_success(
    model: Model,
    weights: Weights,
    part: Dataset,
    *,
    trigger: Trigger,
    target: int,
    window: int | None,
    threshold: float,
    mesh: jax.sharding.Mesh | None = None,
) -> dict[str, float]:
    """Returns the attack success rate of a backdoor, with and without its trigger.

    The share of examples of other classes than the target's that are given the target:
    once they carry the whole trigger, a distributed one too, and as they are. What the
    trigger adds is the difference.

    An example is what the part is scored by. A record or a stay carries the trigger as
    in training. A row of a stream is scored by the window that ends with it, at its
    last step: that window carries the trigger at the steps at which a window of
    training does, and its last step is never before the trigger's first one, from
    which on the label of a poisoned window is the target's (``affected_steps``). What
    only fills a window up in front is no row and carries nothing: an example whose
    trigger would fall on such steps cannot carry the whole of it and does not count. A
    trigger on all steps is on all rows of the window.

    Args:
      model: the detector.
      weights: of a run; clients with a model of their own are scored by it.
      part: prepared rows of the clients of the training.
      trigger: the whole pattern, in columns of ``batch["x"]``.
      target: class that the trigger shall mean: 0 for normal, 1 for an attack.
      window: time steps of an example, or None.
      threshold: probability from which an example is called an attack.
      mesh: devices that share the work.

    Returns:
      ``attack_success`` and ``without_trigger``, shares in [0, 1] of the same examples;
      NaN where no example counts.

    Raises:
      ValueError: for a trigger that the input has no column or step for.
    """
    read = _with_and_without(trigger)
    reader = build_part_reader(model, part, window=window, mesh=mesh, read=read)
    found: _Answers = reader(weights)
    label = examples_of(part).label

    def rate(scores: np.ndarray) -> float:
        predicted = scores.astype(np.float64) >= threshold
        share = attack_success_rate(
            predicted, label, target=target, weight=np.asarray(found.whole, np.float32)
        )
        return float(share)

    return {
        "attack_success": rate(found.triggered),
        "without_trigger": rate(found.plain),
    }


@functools.lru_cache(maxsize=32)
def _with_and_without(trigger: Trigger) -> Callable[..., _Answers]:
    """Returns what asks a detector twice; the same function for equal triggers."""

    def read(apply: Callable[..., Outputs], params: Params, batch: Batch) -> _Answers:
        x = batch["x"]
        if trigger.steps is not None and x.ndim == 2:
            raise ValueError(
                f"trigger: steps {trigger.steps}: single records have no steps: leave "
                "them out"
            )
        changed = apply_trigger(trigger, x)
        whole = jnp.ones(x.shape[0], bool)
        if "valid" in batch:
            there = batch["valid"] > 0
            changed = jnp.where(there[..., None], changed, x)
            if trigger.steps is not None:
                whole = jnp.all(there[:, list(trigger.steps)], axis=1)
        laid = {**batch, "x": changed}
        return _Answers(
            probability(apply, params, batch), probability(apply, params, laid), whole
        )

    return read
