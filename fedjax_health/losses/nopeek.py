"""NoPeek: smashed data that depend little on the inputs.

Vepakomma et al., 2020, "NoPeek: Information leakage reduction to share activations in
distributed deep learning" (arXiv:2008.09161), with the squared distance correlation,
which has a gradient everywhere. A client trains its half towards it; nothing is
guaranteed by it.
"""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.core.correlation import distance_correlation
from fedjax_health.core.types import (
    Batch,
    Detection,
    InputLayout,
    Key,
    Outputs,
)
from fedjax_health.losses.combine import Apply, Term


def nopeek(*, weight: float = 0.1, layout: InputLayout | None = None) -> Term:
    """Returns how much what crosses a cut depends on what went in.

    The squared distance correlation of a batch between the values of the split
    modality, over all steps of a window, and its smashed data
    (``Detection.smashed``); with several split modalities, the sum. Examples of weight
    0 do not count, nor do those of which the modality has no value: that nothing was
    observed is seen on the wire whatever the values are. In small batches the statistic
    is far above 0 even for independent data, so its value is no measure of leakage.

    It compares the examples of a batch, so it has no place beside clipping by example.

    Args:
      weight: factor of the term.
      layout: where each modality lies in ``batch["x"]``; None takes all columns.

    Raises:
      ValueError: when traced, for a model without smashed data, or smashed data of a
        modality that the layout does not name.
    """
    return Term(float(weight), _nopeek(layout))


@functools.cache
def _nopeek(layout: InputLayout | None):
    columns = {} if layout is None else {part.name: part for part in layout}

    def value(outputs: Outputs, batch: Batch, apply: Apply, key: Key) -> jax.Array:
        del apply, key
        if not isinstance(outputs, Detection) or not outputs.smashed:
            raise ValueError(
                "nopeek needs a detector that is cut: its Detection has no smashed "
                "data; give the detector a split"
            )
        total = jnp.zeros(())
        for name, smashed in outputs.smashed.items():
            inputs = batch["x"]
            counts = batch.get("weight", jnp.ones(len(inputs))) > 0
            if layout is not None:
                if name not in columns:
                    raise ValueError(
                        f"nopeek: the layout names {sorted(columns)}, not {name!r}, "
                        "which is split"
                    )
                inputs = batch["x"][..., slice(*columns[name].values)]
                observed = columns[name].observed
                if observed is not None:
                    seen = batch["x"][..., slice(*observed)] > 0
                    counts &= jnp.any(seen.reshape(len(seen), -1), axis=1)
            total += distance_correlation(inputs, smashed, counts)
        return total

    return value
