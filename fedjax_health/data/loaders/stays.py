"""Stays with one label each: series on a grid, facts that hold for the whole stay."""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_health.data.loaders.cells import index_names
from fedjax_health.data.loaders.loaded import Loaded
from fedjax_health.data.schema import (
    DataError,
    Dataset,
    DataWarning,
    segment_starts,
    take_rows,
)


class Series(NamedTuple):
    """A modality that changes over a stay.

    Attributes:
      names: of its variables.
      values: float32 ``[stays, length, variables]``, NaN where not observed.
    """

    names: tuple[str, ...]
    values: np.ndarray


class Static(NamedTuple):
    """A modality that holds for the whole stay.

    Attributes:
      names: of its columns.
      values: float32 ``[stays, columns]``, NaN where not observed.
      categories: column -> names of its categories, whose indices it holds.
    """

    names: tuple[str, ...]
    values: np.ndarray
    categories: Mapping[str, tuple[str, ...]] = {}


def stays_dataset(
    modalities: Mapping[str, Series | Static],
    *,
    stay: Sequence[str],
    client: Sequence[str],
    label: np.ndarray,
    positive: str,
    bin_seconds: float,
    patient: Sequence[str] | None = None,
) -> Loaded:
    """Returns stays as a dataset, sorted by client and name, and whose label is known.

    With a series every stay is an entity of as many rows as the grid has bins, and the
    label belongs to the entity; what holds for the stay is repeated in its rows.
    Without a series every stay is one row with a label of its own.

    All modalities may have missing values; those of a series are carried.

    Args:
      modalities: name -> its values.
      stay: ``[stays]`` names, all different.
      client: ``[stays]`` name of the client.
      label: ``[stays]`` of 0 and 1, NaN for an unknown one.
      positive: what a positive label stands for.
      bin_seconds: width of a bin of the series.
      patient: ``[stays]`` name of the person; None where every stay is another one.

    Raises:
      DataError: if there are no stays or no modalities.
    """
    if not len(stay):
        raise DataError("there are no stays")
    if not modalities:
        raise DataError("there is no modality; name at least one")
    client_names, client_index = index_names(client)
    entity_names, entity = index_names(stay)
    order = np.lexsort((entity, client_index))
    lengths = {m.values.shape[1] for m in modalities.values() if isinstance(m, Series)}
    length = max(lengths, default=1)
    features = {}
    for name, modality in modalities.items():
        values = modality.values[order]
        if isinstance(modality, Series):
            features[name] = values.reshape(-1, values.shape[2])
        else:
            features[name] = np.repeat(values, length, axis=0)
    label = np.repeat(label[order].astype(np.float32), length)
    known = ~np.isnan(label)
    label = np.where(known, label, np.float32(0))
    dataset = Dataset(
        features={n: np.ascontiguousarray(v, np.float32) for n, v in features.items()},
        feature_names={name: tuple(m.names) for name, m in modalities.items()},
        label=label,
        attack=label.astype(np.int32),
        attack_names=("normal", positive),
        client=np.repeat(client_index[order].astype(np.int32), length),
        client_names=client_names,
        entity=np.repeat(entity[order], length),
        time=np.tile(np.arange(length) * float(bin_seconds), len(order)),
        masked=frozenset(modalities),
        target="entity" if lengths else "row",
        carried=frozenset(n for n, m in modalities.items() if isinstance(m, Series)),
        categories={
            name: dict(modality.categories)
            for name, modality in modalities.items()
            if isinstance(modality, Static) and modality.categories
        },
        patient=(
            None
            if patient is None
            else np.repeat(index_names(patient)[1][order], length)
        ),
        entity_names=entity_names,
        step_seconds=float(bin_seconds) if lengths else None,
    )
    return Loaded(dataset, known)


def leave_out_unlabelled(loaded: Loaded, *, column: str, source: str) -> Loaded:
    """Returns the stays whose label is known, to train on; says how many are not there.

    Where no label is known, nothing is left out.

    Args:
      loaded: stays, as ``stays_dataset`` returns them.
      column: of the label, for the warning.
      source: what the warning calls the data.
    """
    if loaded.known.all() or not loaded.has_labels:
        return loaded
    rows = np.flatnonzero(loaded.known)
    dataset = take_rows(loaded.dataset, rows)
    total, kept = (len(segment_starts(d)) for d in (loaded.dataset, dataset))
    warnings.warn(
        f"{source}: {total - kept:,} of {total:,} stays have no {column} and are left "
        "out",
        DataWarning,
        stacklevel=4,
    )
    return Loaded(dataset, loaded.known[rows])
