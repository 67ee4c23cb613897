"""All that is fitted on the training part, in the order in which it is applied.

Long tails are put on a log scale, categories become columns, outliers are cut, columns
are scaled, components are taken.
Everything is fitted inside each client except what all must share: the categories, and
the components, which come from sums over the clients.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fedjax_health.data.preprocess.encode import (
    Vocabulary,
    encode,
    encoded_columns,
    fit_vocabulary,
)
from fedjax_health.data.preprocess.logs import apply_logs, match_columns
from fedjax_health.data.preprocess.outliers import Fences, apply_fences, fit_fences
from fedjax_health.data.preprocess.project import (
    Projection,
    apply_projections,
    fit_projections,
)
from fedjax_health.data.preprocess.scaling import (
    Scaler,
    apply_scaler,
    fit_scaler,
    leave_columns,
    listed,
)
from fedjax_health.data.schema import DataError, Dataset


class Outliers(NamedTuple):
    """What counts as an outlier; see ``fit_fences``.

    Attributes:
      action: "clip" or "missing".
      width: distance of the fences from the quartiles, in interquartile ranges.
      modalities: which have fences; all of them where it is empty.
    """

    action: Literal["clip", "missing"] = "clip"
    width: float = 3.0
    modalities: tuple[str, ...] = ()


class Preprocessing(NamedTuple):
    """All that was fitted on the training part.

    Attributes:
      feature_names: modality name -> its columns before preprocessing.
      masked: modalities in which values may be missing.
      carried: modalities whose models see the last observed value.
      logged: modality name -> columns that are put on a log scale.
      vocabulary: modality name -> column -> categories seen in training.
      fences: bounds of the outlier filter, or None.
      scaler: means and deviations of the encoded columns.
      clip: bound on the magnitude of a scaled value.
      projections: modality name -> its components, where it has any.
    """

    feature_names: dict[str, tuple[str, ...]]
    masked: frozenset[str]
    carried: frozenset[str]
    logged: dict[str, tuple[str, ...]]
    vocabulary: Vocabulary
    fences: Fences | None
    scaler: Scaler
    clip: float
    projections: dict[str, Projection]


def fit_preprocessing(
    train: Dataset,
    *,
    scope: Literal["client", "pooled"] = "client",
    clip: float = 8.0,
    log: Sequence[str] = (),
    outliers: Outliers | None = None,
    components: Mapping[str, int | float] | None = None,
) -> Preprocessing:
    """Fits encoding, outlier filter, scaling and components.

    Columns that stand for categories are neither cut nor scaled: 0 and 1 are a scale
    already, and at a client of one category scaling would make its column 0.

    Args:
      train: the training part, and nothing else.
      scope: whether each client scales by its own statistics or all by the pooled
        ones.
      clip: bound on the magnitude of a scaled value, in standard deviations.
      log: names of columns that are put on a log scale first, with wildcards.
      outliers: the outlier filter, or None.
      components: modality name -> number of principal components, or the share of the
        variance that they explain.

    Returns:
      What ``apply_preprocessing`` takes.

    Raises:
      DataError: if there are no rows, or an argument does not fit the data.
    """
    if train.num_rows == 0:
        raise DataError("preprocessing has no training rows; check the split")
    logged = match_columns(train, log)
    vocabulary = fit_vocabulary(train)
    plain = encoded_columns(vocabulary)
    encoded = encode(vocabulary, apply_logs(logged, train))
    fences = None
    if outliers is not None:
        fences = fit_fences(
            encoded,
            action=outliers.action,
            width=outliers.width,
            modalities=outliers.modalities,
            leave=plain,
        )
        encoded = apply_fences(fences, encoded)
    scaler = leave_columns(fit_scaler(encoded, scope=scope), plain)
    scaled = apply_scaler(scaler, encoded, clip=clip)
    return Preprocessing(
        feature_names=dict(train.feature_names),
        masked=frozenset(train.masked),
        carried=frozenset(train.carried),
        logged=logged,
        vocabulary=vocabulary,
        fences=fences,
        scaler=scaler,
        clip=float(clip),
        projections=fit_projections(scaled, components or {}),
    )


def apply_preprocessing(preprocessing: Preprocessing, dataset: Dataset) -> Dataset:
    """Returns what a detector sees of any part of the data, or of new data.

    Columns are matched by name: their order does not matter, and modalities and
    columns that training did not have are left out. A modality that is missing
    altogether counts as not observed where its values may be missing. Clients are
    matched by name as well; one that was not in training takes the averages over the
    training clients.

    Args:
      preprocessing: fitted on the training part.
      dataset: rows as a loader returns them.

    Returns:
      float32 features without categories, NaN where nothing was observed.

    Raises:
      DataError: for a missing column or modality, a column that is a category in one
        of the two alone, or a missing value where training had none by declaration.
    """
    dataset = apply_logs(preprocessing.logged, _matched(preprocessing, dataset))
    dataset = encode(preprocessing.vocabulary, dataset)
    if preprocessing.fences is not None:
        dataset = apply_fences(preprocessing.fences, dataset)
    dataset = apply_scaler(preprocessing.scaler, dataset, clip=preprocessing.clip)
    return apply_projections(preprocessing.projections, dataset)


def absent_modalities(
    preprocessing: Preprocessing, dataset: Dataset
) -> tuple[str, ...]:
    """Returns the modalities of the training that hold no value in a dataset.

    Args:
      preprocessing: fitted on the training part.
      dataset: rows as a loader returns them; a modality may be left out.
    """
    return tuple(
        name
        for name in preprocessing.feature_names
        if name not in dataset.features or np.isnan(dataset.features[name]).all()
    )


def absent_columns(preprocessing: Preprocessing, dataset: Dataset) -> tuple[str, ...]:
    """Returns the columns of the training that hold no value in a dataset.

    Those of a modality that is absent altogether are not named.

    Args:
      preprocessing: fitted on the training part.
      dataset: rows as a loader returns them.

    Returns:
      ``modality.column``, in the order of the training.
    """
    absent = set(absent_modalities(preprocessing, dataset))
    found = []
    for modality, names in preprocessing.feature_names.items():
        if modality in absent:
            continue
        own = dataset.feature_names[modality]
        seen = np.flatnonzero(np.any(~np.isnan(dataset.features[modality]), axis=0))
        held = {own[position] for position in seen}
        found += [f"{modality}.{name}" for name in names if name not in held]
    return tuple(found)


def _matched(preprocessing: Preprocessing, dataset: Dataset) -> Dataset:
    """Returns the modalities and columns of the training, in its order."""
    features, categories = {}, {}
    for modality, names in preprocessing.feature_names.items():
        kinds = preprocessing.vocabulary.get(modality, {})
        if modality in dataset.features:
            own = dataset.feature_names[modality]
            own_kinds = dataset.categories.get(modality, {})
            values = dataset.features[modality][:, _places(modality, names, own)]
            _check_kinds(modality, names, kinds, own_kinds)
            if modality not in preprocessing.masked:
                _refuse_missing(modality, names, values)
            labels = {column: own_kinds[column] for column in kinds}
        elif modality in preprocessing.masked:
            values = np.full((dataset.num_rows, len(names)), np.nan, np.float32)
            labels = dict(kinds)
        else:
            raise DataError(
                f"the data has no modality {modality!r}, whose values the detector "
                f"needs; it has {', '.join(dataset.features)}"
            )
        features[modality] = values
        if labels:
            categories[modality] = labels
    return dataset._replace(
        features=features,
        feature_names=dict(preprocessing.feature_names),
        categories=categories,
        masked=preprocessing.masked,
        carried=preprocessing.carried,
    )


def _places(modality: str, names: Sequence[str], own: Sequence[str]) -> list[int]:
    place = {name: position for position, name in enumerate(own)}
    missing = [name for name in names if name not in place]
    if missing:
        raise DataError(
            f"modality {modality!r} lacks columns that the detector was trained on: "
            f"{listed(missing)}"
        )
    return [place[name] for name in names]


def _check_kinds(
    modality: str,
    names: Sequence[str],
    kinds: Mapping[str, Sequence[str]],
    own: Mapping[str, Sequence[str]],
) -> None:
    for name in names:
        if (name in kinds) != (name in own):
            then, now = ("categories", "numbers")
            if name in own:
                then, now = now, then
            raise DataError(
                f"column {name!r} of modality {modality!r} held {then} in training and "
                f"holds {now} here; give it the same role"
            )


def _refuse_missing(modality: str, names: Sequence[str], values: np.ndarray) -> None:
    missing = np.isnan(values)
    if missing.any():
        row, column = np.argwhere(missing)[0]
        raise DataError(
            f"modality {modality!r} was declared complete in training, but "
            f"{names[column]!r} is missing in row {row} (from 0): fill it in, or train "
            "with missing values allowed"
        )
