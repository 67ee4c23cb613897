"""Scoring: what a detector says of every row of a dataset."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fedjax_health.client import gather
from fedjax_health.core.types import (
    Batch,
    Detection,
    Examples,
    Model,
    Outputs,
    Params,
    logits_of,
)
from fedjax_health.data.store import ClientStore, room_for, to_examples
from fedjax_health.engine.parallel import AXIS

# Examples scored at once; one shape on any number of devices, so the bits agree.
CHUNK = 256

Read = Callable[[Callable[..., Outputs], Params, Batch], Any]


class Reading(NamedTuple):
    """What a detector says of some examples.

    Attributes:
      probability: float32 ``[examples]``.
      shares: float32 ``[examples, modalities]``, how much each modality counts, or None
        where the detector does not say.
    """

    probability: Any
    shares: Any


def probability(apply: Callable[..., Outputs], params: Params, batch: Batch) -> Any:
    """Returns the probability of an attack, float32 ``[examples]``.

    A stream's example is scored by the logit of its last step.
    """
    return jax.nn.sigmoid(_last(logits_of(apply(params, batch))).astype(jnp.float32))


def reading(apply: Callable[..., Outputs], params: Params, batch: Batch) -> Any:
    """Returns a ``Reading`` of a batch."""
    outputs = apply(params, batch)
    shares = outputs.shares if isinstance(outputs, Detection) else None
    if shares is not None:
        shares = shares if shares.ndim == 2 else shares[:, -1]
    logits = _last(logits_of(outputs)).astype(jnp.float32)
    return Reading(jax.nn.sigmoid(logits), shares)


def attributions(apply: Callable[..., Outputs], params: Params, batch: Batch) -> Any:
    """Returns what each column adds to the logit, float32 ``[examples, columns]``.

    Gradient times input, summed over the window (Simonyan et al. 2014,
    arXiv:1312.6034; Shrikumar et al. 2017, arXiv:1605.01713): a first-order answer,
    exact for a linear detector.
    """

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(_last(logits_of(apply(params, {**batch, "x": x}))))

    x = batch["x"]
    each = jax.grad(total)(x) * x
    return each if each.ndim == 2 else jnp.sum(each, axis=1)


def _last(logits: jax.Array) -> jax.Array:
    return logits if logits.ndim == 1 else logits[:, -1]


def build_reader(
    model: Model,
    store: ClientStore,
    mesh: jax.sharding.Mesh | None = None,
    *,
    read: Read,
) -> Callable[[Params, np.ndarray], Any]:
    """Returns ``(params, index [n]) -> tree of arrays [n, ...]`` for chosen examples.

    Args:
      model: the detector.
      store: the examples; put onto the devices once.
      mesh: the devices that share the work; None for the default one.
      read: ``probability``, ``reading``, ``attributions`` or another function of the
        model's ``apply``, parameters and a batch; equal functions compile once.

    Raises:
      DataError: if the store is too large for an int32 index.
      ValueError: by the reader, for an example outside the store.
    """
    examples = to_examples(store)
    devices = 1 if mesh is None else mesh.size
    if mesh is not None:
        everywhere = jax.sharding.NamedSharding(mesh, PartitionSpec())
        examples = jax.device_put(examples, everywhere)
    run = _compiled(model.apply, mesh, read)

    def read_examples(params: Params, index: np.ndarray) -> Any:
        index = np.asarray(index, np.int64)
        count = len(index)
        if count and (index.min() < 0 or index.max() >= store.num_examples):
            raise ValueError(
                f"examples {index.min():,} to {index.max():,} lie outside the store, "
                f"which has {store.num_examples:,}"
            )
        if store.num_examples == 0:
            raise ValueError("the store has no examples to score")
        # Few sizes: data of like size shares one program, and clients one by one do.
        share = room_for(max(1, -(-count // (CHUNK * devices))))
        padded = np.zeros(share * devices * CHUNK, np.int32)
        padded[:count] = index
        padded[count:] = index[-1] if count else 0
        out = run(params, examples, padded.reshape(-1, CHUNK))
        return jax.tree.map(
            lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:count], out
        )

    return read_examples


def build_scorer(
    model: Model, store: ClientStore, mesh: jax.sharding.Mesh | None = None
) -> Callable[..., np.ndarray]:
    """Returns ``(params, first=0, count=None) -> probabilities``, float32.

    With one padded window per row (``from_dataset(..., pad=True)``) example i scores
    row i.

    Args:
      model: the detector.
      store: the examples; put onto the devices once.
      mesh: the devices that share the work; None for the default one.

    Raises:
      DataError: if the store is too large for an int32 index.
      ValueError: by the scorer, for a range outside the store.
    """
    read_examples = build_reader(model, store, mesh, read=probability)

    def score(params: Params, first: int = 0, count: int | None = None) -> np.ndarray:
        count = store.num_examples - first if count is None else count
        if first < 0 or count < 0 or first + count > store.num_examples:
            raise ValueError(
                f"examples {first:,} to {first + count:,} lie outside the store, which "
                f"has {store.num_examples:,}"
            )
        if count == 0:
            return np.zeros(0, np.float32)
        return read_examples(params, np.arange(first, first + count))

    return score


@functools.lru_cache(maxsize=32)
def _compiled(
    apply: Callable[..., Any], mesh: jax.sharding.Mesh | None, read: Read
) -> Callable[..., Any]:
    def score(params: Params, examples: Examples, index: jax.Array) -> Any:
        return jax.lax.map(lambda i: read(apply, params, gather(examples, i)), index)

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
