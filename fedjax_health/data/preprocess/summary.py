"""Size and balance of a dataset."""

from typing import NamedTuple

import numpy as np

from fedjax_health.data.schema import Dataset


class Summary(NamedTuple):
    """Size and balance of a dataset.

    Attributes:
      num_rows: rows.
      num_clients: clients, those without rows included.
      prevalence: share of positive rows; 0 without rows.
      rows_per_client: int64 ``[clients]``.
      positives_per_client: int64 ``[clients]``.
      prevalence_per_client: float64 ``[clients]``; 0 for a client without rows.
      single_class_clients: names of the clients whose rows are all of one class.
      empty_clients: names of the clients without rows.
      rows_per_attack: attack name -> rows, "normal" first.
    """

    num_rows: int
    num_clients: int
    prevalence: float
    rows_per_client: np.ndarray
    positives_per_client: np.ndarray
    prevalence_per_client: np.ndarray
    single_class_clients: tuple[str, ...]
    empty_clients: tuple[str, ...]
    rows_per_attack: dict[str, int]


def summary(dataset: Dataset) -> Summary:
    """Returns size and balance, as a whole and per client."""
    rows = np.bincount(dataset.client, minlength=dataset.num_clients)
    positives = np.bincount(
        dataset.client[dataset.label > 0], minlength=dataset.num_clients
    )
    single = (rows > 0) & ((positives == 0) | (positives == rows))
    attacks = np.bincount(dataset.attack, minlength=len(dataset.attack_names))
    return Summary(
        num_rows=dataset.num_rows,
        num_clients=dataset.num_clients,
        prevalence=float(positives.sum() / max(dataset.num_rows, 1)),
        rows_per_client=rows,
        positives_per_client=positives,
        prevalence_per_client=positives / np.maximum(rows, 1),
        single_class_clients=_names_where(dataset, single),
        empty_clients=_names_where(dataset, rows == 0),
        rows_per_attack=dict(zip(dataset.attack_names, attacks.tolist(), strict=True)),
    )


def _names_where(dataset: Dataset, mask: np.ndarray) -> tuple[str, ...]:
    return tuple(dataset.client_names[client] for client in np.flatnonzero(mask))
