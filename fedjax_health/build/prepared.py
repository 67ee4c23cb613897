"""A dataset is split, dealt out to clients, preprocessed and packed."""

from typing import NamedTuple

import numpy as np

from fedjax_health.build.root import take_root
from fedjax_health.build.split import deal_out, split_of
from fedjax_health.config import Config, Events, WindowContrast
from fedjax_health.core.types import InputLayout
from fedjax_health.data.partition import num_training_clients
from fedjax_health.data.preprocess import (
    Outliers,
    Preprocessing,
    apply_preprocessing,
    class_weights,
    fit_preprocessing,
    keep_observed,
)
from fedjax_health.data.schema import DataError, Dataset, patients_of
from fedjax_health.data.splits import Parts, split_dataset
from fedjax_health.data.store import ClientStore, from_dataset, input_layout


class Prepared(NamedTuple):
    """Data that a run trains and is measured on.

    Attributes:
      parts: training, validation and test part, preprocessed. Clients without training
        rows, which the split holds out, come last in ``client_names``.
      split: the part of every row of the dataset, int8 ``[rows]``.
      preprocessing: what was fitted on the training part.
      store: the packed training examples of the clients that train.
      window: time steps of an example, or None for single records.
      layout: where each modality lies in ``batch["x"]``.
      root: the server's own examples, one client of the site's name, or None where it
        has none. No part holds their rows; in ``split`` they count as training.
    """

    parts: Parts
    split: np.ndarray
    preprocessing: Preprocessing
    store: ClientStore
    window: int | None
    layout: InputLayout
    root: ClientStore | None = None


def prepare(settings: Config, dataset: Dataset) -> Prepared:
    """Splits, deals out, preprocesses and packs a dataset.

    Beside what ``from_dataset`` packs, the store holds ``class_weight`` where classes
    are balanced, and ``patient`` and ``position`` where the loss tells examples apart.

    Raises:
      DataError: if a part or a client is left without what it needs.
      ConfigError: if the server's own data cannot be had as configured.
    """
    window = settings.window.length if settings.window.length > 1 else None
    split = split_of(settings, dataset)
    parts = deal_out(settings, split_dataset(dataset, split))
    for name in ("validation", "test"):
        part = getattr(parts, name)
        if part.label.min() == part.label.max():
            raise DataError(
                f"all {part.num_rows:,} rows of the {name} part have label "
                f"{part.label[0]:g}: no detector can be measured on them; change "
                "split, or use more data"
            )
    population = num_training_clients(parts)
    cut = take_root(settings, parts.train, population)
    if cut is not None:
        parts = parts._replace(train=cut.kept)
    preprocessing = _fit(settings, parts.train)
    parts = Parts(*(apply_preprocessing(preprocessing, part) for part in parts))

    return Prepared(
        parts,
        split,
        preprocessing,
        store=pack(settings, parts.train, slice(population)),
        window=window,
        layout=input_layout(parts.train),
        root=None
        if cut is None
        else _pack_root(settings, apply_preprocessing(preprocessing, cut.held)),
    )


def pack(
    settings: Config,
    part: Dataset,
    clients: slice = slice(None),
    *,
    stride: int | None = None,
) -> ClientStore:
    """Packs a preprocessed part with all that the training loss reads.

    Args:
      settings: the configuration.
      part: its rows.
      clients: those that are packed; the others have no rows.
      stride: rows between the starts of two windows; None for the configuration's.
    """
    return from_dataset(
        part._replace(client_names=part.client_names[clients]),
        window=settings.window.length if settings.window.length > 1 else None,
        stride=stride or settings.window.stride,
        extra=_extra(settings, part),
    )


def _pack_root(settings: Config, held: Dataset) -> ClientStore:
    """Packs the server's rows, which are scaled as those of the site they are from."""
    client = int(held.client[0])
    alone = held._replace(client=np.zeros(held.num_rows, np.int32))
    return pack(settings, alone, slice(client, client + 1))


def _fit(settings: Config, train: Dataset) -> Preprocessing:
    outliers = settings.outliers
    return fit_preprocessing(
        _observed(settings, train),
        scope=settings.scaling.scope,
        clip=settings.scaling.clip,
        log=settings.scaling.log,
        outliers=None
        if outliers is None
        else Outliers(outliers.action, outliers.width, outliers.modalities),
        components=settings.pca,
    )


def _observed(settings: Config, train: Dataset) -> Dataset:
    """Returns the training part without the events' rare variables."""
    data, summed = settings.data, settings.summarise
    if (
        not isinstance(data, Events)
        or data.variables
        or "series" not in data.modalities
    ):
        return train
    named = summed is not None and (
        not summed.modalities or "series" in summed.modalities
    )
    return keep_observed(
        train,
        "series",
        data.least_share,
        statistics=summed.statistics if summed is not None and named else (),
    )


def _extra(settings: Config, train: Dataset) -> dict[str, np.ndarray]:
    """Returns what some losses need beside features and labels, ``[rows]`` each."""
    extra: dict[str, np.ndarray] = {}
    if settings.balance == "client":
        extra["class_weight"] = class_weights(train)
    contrasted = isinstance(settings.temporal, WindowContrast)
    if settings.alignment is not None or contrasted:
        patient = patients_of(train)
        # The number of a row's time among those of its patient, whatever device: as
        # integers, times keep their order exactly, and with it which windows overlap.
        moments = np.stack([patient, train.time], axis=1)
        position = np.unique(moments, axis=0, return_inverse=True)[1].reshape(-1)
        extra["patient"] = patient.astype(np.int32)
        extra["position"] = position.astype(np.int32)
    return extra
