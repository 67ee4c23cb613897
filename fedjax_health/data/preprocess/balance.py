"""Weights that let both classes of a client count alike."""

import numpy as np

from fedjax_health.data.schema import Dataset, examples_of, segment_ids

# A class of a handful of examples must not carry the whole gradient.
LARGEST_WEIGHT = 20.0


def class_weights(dataset: Dataset, *, largest: float = LARGEST_WEIGHT) -> np.ndarray:
    """Returns the weight of each row by the frequency of its class at its client.

    Of a client's n examples, n_c are of class c; they weigh n / (2 n_c), and at most
    ``largest``. Their mean is 1 where nothing is cut. Examples are rows, or entities
    where the label belongs to the entity, whose rows all have its weight. A client of
    one class has weight 1. Every client counts its own examples: no count leaves it.

    Args:
      dataset: the training part.
      largest: bound on a weight.

    Returns:
      float32 ``[rows]``.
    """
    examples = examples_of(dataset)
    positive = (examples.label > 0).astype(np.int64)
    held = np.zeros((dataset.num_clients, 2))
    np.add.at(held, (examples.client, positive), 1)
    both = held.min(axis=1, keepdims=True) > 0
    weight = held.sum(axis=1, keepdims=True) / (2 * np.maximum(held, 1))
    weight = np.where(both, np.minimum(weight, largest), 1.0)
    of_example = weight[examples.client, positive].astype(np.float32)
    if dataset.target == "row":
        return of_example
    return of_example[segment_ids(dataset)]
