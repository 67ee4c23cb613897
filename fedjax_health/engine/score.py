"""Scoring: the probability that a detector gives every row of a dataset."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fedjax_health.client import gather
from fedjax_health.core.types import Examples, Model, Params, logits_of
from fedjax_health.data.store import ClientStore, to_examples
from fedjax_health.engine.parallel import AXIS

# Examples scored at once; one shape on any number of devices, so the bits agree.
CHUNK = 256


def build_scorer(
    model: Model, store: ClientStore, mesh: jax.sharding.Mesh | None = None
) -> Callable[..., np.ndarray]:
    """Returns ``(params, first=0, count=None) -> probabilities``, float32.

    A stream's example is scored by the logit of its last step, so that with one padded
    window per row (``from_dataset(..., pad=True)``) example i scores row i.

    Args:
      model: the detector.
      store: the examples; put onto the devices once.
      mesh: the devices that share the work; None for the default one.

    Raises:
      DataError: if the store is too large for an int32 index.
      ValueError: by the scorer, for a range outside the store.
    """
    examples = to_examples(store)
    devices = 1 if mesh is None else mesh.size
    if mesh is not None:
        everywhere = jax.sharding.NamedSharding(mesh, PartitionSpec())
        examples = jax.device_put(examples, everywhere)
    run = _compiled(model.apply, mesh)

    def score(params: Params, first: int = 0, count: int | None = None) -> np.ndarray:
        whole = count is None
        count = store.num_examples - first if count is None else count
        if first < 0 or count < 0 or first + count > store.num_examples:
            raise ValueError(
                f"examples {first:,} to {first + count:,} lie outside the store, which "
                f"has {store.num_examples:,}"
            )
        if count == 0:
            return np.zeros(0, np.float32)
        share = -(-count // (CHUNK * devices))
        if not whole:
            # A power of two: scoring client by client then compiles a few sizes only.
            share = 1 << (share - 1).bit_length()
        chunks = share * devices
        index = first + np.minimum(np.arange(chunks * CHUNK), count - 1)
        probabilities = run(params, examples, index.astype(np.int32).reshape(-1, CHUNK))
        return np.asarray(probabilities).reshape(-1)[:count]

    return score


@functools.lru_cache(maxsize=32)
def _compiled(apply: Callable[..., Any], mesh: jax.sharding.Mesh | None):
    def score(params: Params, examples: Examples, index: jax.Array) -> jax.Array:
        def chunk(rows: jax.Array) -> jax.Array:
            logits = logits_of(apply(params, gather(examples, rows)))
            last = logits if logits.ndim == 1 else logits[:, -1]
            return jax.nn.sigmoid(last.astype(jnp.float32))

        return jax.lax.map(chunk, index)

    if mesh is None:
        return jax.jit(score)
    return jax.jit(
        jax.shard_map(
            score,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )
    )
