"""The examples that an attacker asks about, and what a detector says of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core.types import Batch, Model, Params, logits_of
from fedjax_health.data.store import ClientStore
from fedjax_health.engine.score import build_reader
from fedjax_health.evaluate.scoring import Weights, weights_of_client


class Confidence(NamedTuple):
    """What a detector says of the true label of some examples, ``[examples]`` each.

    Attributes:
      logit: log(p / (1 - p)) with p the probability of the true label; its mean over
        the steps of a window.
      loss: cross-entropy; its mean over the steps of a window.
    """

    logit: Any
    loss: Any


def confidence(apply: Any, params: Params, batch: Batch) -> Confidence:
    """Returns the ``Confidence`` of a batch; see ``engine.score``."""
    logits = logits_of(apply(params, batch)).astype(jnp.float32)
    label = batch["label"]
    if label.ndim > logits.ndim:
        # One label for a whole window: the last step has it.
        label = label[:, -1]
    signed = jnp.where(label > 0.5, logits, -logits)
    loss = jax.nn.softplus(-signed)
    if signed.ndim == 1:
        return Confidence(signed, loss)
    counts = batch["valid"] if "valid" in batch else jnp.ones_like(signed)
    steps = jnp.maximum(jnp.sum(counts, axis=1), 1)
    return Confidence(
        jnp.sum(signed * counts, axis=1) / steps, jnp.sum(loss * counts, axis=1) / steps
    )


def take(store: ClientStore, keep: np.ndarray) -> ClientStore:
    """Returns a store of some examples.

    Args:
      store: in memory.
      keep: int ``[examples]``, increasing.
    """
    offsets = np.searchsorted(keep, store.offsets).astype(np.int64)
    if store.devices is not None:
        devices = np.searchsorted(keep, store.devices).astype(np.int64)
        store = store._replace(devices=devices)
    if store.window is None:
        rows = {name: np.asarray(values)[keep] for name, values in store.rows.items()}
        return store._replace(rows=rows, offsets=offsets)
    assert store.starts is not None
    return store._replace(starts=store.starts[keep], offsets=offsets)


def apart(store: ClientStore) -> np.ndarray:
    """Returns examples no two of which share a row, int ``[examples]``, increasing.

    A window that shares rows with a member's is half a member itself.
    """
    if store.window is None or store.starts is None:
        return np.arange(store.num_examples)
    starts = np.asarray(store.starts)
    order = np.argsort(starts, kind="stable")
    kept, end = [], -1
    for example in order:
        if starts[example] >= end:
            kept.append(example)
            end = starts[example] + store.window
    return np.sort(np.array(kept, np.int64))


def choose(store: ClientStore, most: int, rng: np.random.Generator) -> ClientStore:
    """Returns at most so many examples, none sharing a row, of each client its part.

    Args:
      store: in memory.
      most: examples in all; each client keeps one at least.
      rng: of the choice.
    """
    keep = apart(store)
    if len(keep) > most:
        client = np.searchsorted(store.offsets, keep, side="right") - 1
        share, chosen = most / len(keep), []
        for one in np.unique(client):
            own = keep[client == one]
            count = max(1, int(share * len(own)))
            chosen.append(rng.choice(own, count, replace=False))
        keep = np.sort(np.concatenate(chosen))
    return take(store, keep)


def clients_of(store: ClientStore) -> np.ndarray:
    """Returns the client of each example, int ``[examples]``."""
    return np.repeat(np.arange(store.num_clients), np.diff(store.offsets))


def build_confidence(model: Model, store: ClientStore, took_part: Any = ()):
    """Returns ``weights -> Confidence`` of all examples of a store.

    Args:
      model: the detector.
      store: the examples; where a part of the model is personal, its clients are the
        rows of ``Weights.own``.
      took_part: see ``weights_of_client``.
    """
    reader = build_reader(model, store, None, read=confidence)
    client = clients_of(store)

    def answer(weights: Weights) -> Confidence:
        if weights.own is None:
            found = reader(weights.params, np.arange(store.num_examples))
            return Confidence(*(np.asarray(x, np.float64) for x in found))
        logit, loss = np.zeros((2, store.num_examples))
        for one in np.unique(client):
            index = np.flatnonzero(client == one)
            params = weights_of_client(weights, int(one), took_part=took_part)
            found = reader(params, index)
            logit[index], loss[index] = found.logit, found.loss
        return Confidence(logit, loss)

    return answer
