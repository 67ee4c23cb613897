"""What a trained detector says of prepared rows, the clients' own models included."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core import trees
from fedjax_health.core.types import Model, Params
from fedjax_health.data.schema import Dataset
from fedjax_health.data.store import from_dataset
from fedjax_health.engine.score import Read, build_reader, probability


class Weights(NamedTuple):
    """Parameters to score with.

    Attributes:
      params: the global model; where a leaf is personal, None or its initial value.
      own: the clients' own leaves ``[clients, ...]``, None where a leaf is shared; or
        None where clients keep nothing of the model.
    """

    params: Params
    own: Params | None


def weights_of_client(
    weights: Weights, client: int, *, took_part: Sequence[bool] = ()
) -> Params:
    """Returns the whole model that a client uses.

    Args:
      weights: of a run.
      client: row of ``weights.own``; -1 for a client that was not in training. It uses
        the global model, and the mean over the clients of what is personal.
      took_part: for each row whether its client was ever drawn; the mean is over those
        alone. All where it is empty.
    """
    if weights.own is None:
        return weights.params
    if client >= 0:
        own = trees.take_row(weights.own, jnp.int32(client))
        return trees.join(own, weights.params)
    drawn = np.flatnonzero(took_part) if any(took_part) else slice(None)
    mean = jax.tree.map(lambda x: jnp.mean(x[drawn], axis=0), weights.own)
    if None not in jax.tree.leaves(mean, is_leaf=lambda leaf: leaf is None):
        # Whole models beside the global one, which nothing is lacking in.
        return weights.params
    # The mean comes first: a personal leaf of the global model was never trained.
    return trees.join(mean, weights.params)


def build_part_reader(
    model: Model,
    part: Dataset,
    *,
    window: int | None,
    mesh: jax.sharding.Mesh | None = None,
    own_row: np.ndarray | None = None,
    took_part: Sequence[bool] = (),
    read: Read = probability,
) -> Callable[..., Any]:
    """Returns ``(weights, chosen=None) -> tree of arrays [examples, ...]``.

    Args:
      model: the detector.
      part: prepared rows; each row is an example, or each entity where the label
        belongs to the entity, in the order of ``examples_of(part)``.
      window: time steps of an example, or None.
      mesh: devices that share the work.
      own_row: int ``[clients of part]``, the row of ``weights.own`` of each client, -1
        for none; None where they are the clients of the training.
      took_part: as in ``weights_of_client``.
      read: what is asked of the detector; see ``engine.score``.

    Returns:
      A function that answers for all examples, or for the chosen ones (increasing).
    """
    store = from_dataset(part, window=window, pad=True)
    reader = build_reader(model, store, mesh, read=read)
    rows = np.arange(part.num_clients) if own_row is None else np.asarray(own_row)

    def answer(weights: Weights, chosen: np.ndarray | None = None) -> Any:
        index = np.arange(store.num_examples) if chosen is None else chosen
        if weights.own is None:
            return reader(weights.params, index)
        client = np.searchsorted(store.offsets, index, side="right") - 1
        answers = []
        for present in np.unique(client):
            own = int(rows[present])
            params = weights_of_client(weights, own, took_part=took_part)
            answers.append(reader(params, index[client == present]))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *answers)

    return answer
