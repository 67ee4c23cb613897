"""A dataset is split, dealt out to clients, preprocessed and packed."""

from typing import NamedTuple

import numpy as np

from fedjax_health import config
from fedjax_health.config import Config
from fedjax_health.core.types import InputLayout
from fedjax_health.data import partition, splits
from fedjax_health.data.preprocess import (
    Outliers,
    Preprocessing,
    apply_preprocessing,
    class_weights,
    fit_preprocessing,
)
from fedjax_health.data.schema import DataError, Dataset, patients_of
from fedjax_health.data.splits import Parts
from fedjax_health.data.store import ClientStore, from_dataset, input_layout


class Prepared(NamedTuple):
    """Data that a run trains and is measured on.

    Attributes:
      parts: training, validation and test part, preprocessed.
      preprocessing: what was fitted on the training part.
      store: the packed training examples.
      window: time steps of an example, or None for single records.
      layout: where each modality lies in ``batch["x"]``.
    """

    parts: Parts
    preprocessing: Preprocessing
    store: ClientStore
    window: int | None
    layout: InputLayout


def prepare(settings: Config, dataset: Dataset) -> Prepared:
    """Splits, deals out, preprocesses and packs a dataset.

    Beside what ``from_dataset`` packs, the store holds ``class_weight`` where classes
    are balanced, and ``patient`` where the loss aligns modalities.

    Raises:
      DataError: if a part or a client is left without what it needs.
    """
    window = settings.window.length if settings.window.length > 1 else None
    parts = splits.split_dataset(dataset, _split(settings, dataset))
    parts = _partition(settings, parts)
    for name in ("validation", "test"):
        part = getattr(parts, name)
        if part.label.min() == part.label.max():
            raise DataError(
                f"all {part.num_rows:,} rows of the {name} part have label "
                f"{part.label[0]:g}: no detector can be measured on them; change "
                "split, or use more data"
            )
    preprocessing = _fit(settings, parts.train)
    parts = Parts(*(apply_preprocessing(preprocessing, part) for part in parts))
    store = from_dataset(
        parts.train,
        window=window,
        stride=settings.window.stride,
        extra=_extra(settings, parts.train),
    )
    return Prepared(parts, preprocessing, store, window, input_layout(parts.train))


def _fit(settings: Config, train: Dataset) -> Preprocessing:
    outliers = settings.outliers
    return fit_preprocessing(
        train,
        scope=settings.scaling.scope,
        clip=settings.scaling.clip,
        outliers=None
        if outliers is None
        else Outliers(outliers.action, outliers.width, outliers.modalities),
        components=settings.pca,
    )


def _extra(settings: Config, train: Dataset) -> dict[str, np.ndarray]:
    """Returns what some losses need beside features and labels, ``[rows]`` each."""
    extra: dict[str, np.ndarray] = {}
    if settings.balance == "client":
        extra["class_weight"] = class_weights(train)
    if getattr(settings, "alignment", None) is not None:
        extra["patient"] = patients_of(train).astype(np.int32)
    return extra


def _split(settings: Config, dataset: Dataset) -> np.ndarray:
    split = settings.split
    embargo = split.embargo
    if embargo is None:
        embargo = settings.window.length if settings.window.length > 1 else 0
    match split:
        case config.Chronological():
            return splits.chronological(
                dataset,
                train=split.train,
                validation=split.validation,
                test=split.test,
                embargo=embargo,
                scope=split.scope,
            )
        case config.EpisodeBlocks():
            return splits.episode_blocks(
                dataset,
                block=split.block,
                fractions=split.fractions,
                embargo=embargo,
                seed=settings.seed,
            )


def _partition(settings: Config, parts: Parts) -> Parts:
    chosen, seed = settings.partition, settings.seed
    match chosen:
        case config.Natural():
            return partition.natural(parts)
        case config.Contiguous():
            return partition.contiguous(parts, num_clients=chosen.num_clients)
        case config.Iid():
            return partition.iid(
                parts, num_clients=chosen.num_clients, seed=seed, unit=chosen.unit
            )
        case config.DirichletLabels():
            return partition.dirichlet_labels(
                parts,
                num_clients=chosen.num_clients,
                alpha=chosen.alpha,
                seed=seed,
                unit=chosen.unit,
                by=chosen.by,
            )
        case config.QuantitySkew():
            return partition.quantity_skew(
                parts,
                num_clients=chosen.num_clients,
                exponent=chosen.exponent,
                seed=seed,
                unit=chosen.unit,
            )
