"""Categories become one column for each category that was seen in training.

Categories are matched by name and never by their number, which differs from file to
file. One that training never saw has zeros in all columns, as if the value were none of
those that the detector knows; a value that is missing is missing in all of them.
"""

from collections.abc import Mapping

import numpy as np

from fedjax_health.data.schema import DataError, Dataset

# Categories of one column; more of them mean a name or a number of each record.
MOST_CATEGORIES = 256

Vocabulary = dict[str, dict[str, tuple[str, ...]]]


def fit_vocabulary(train: Dataset) -> Vocabulary:
    """Returns the categories that occur in training at any client, sorted.

    The union over the clients is what they all have to know; it leaves them, as the
    names of the columns do.

    Args:
      train: the training part, and nothing else.

    Returns:
      Modality name -> column -> its categories.

    Raises:
      DataError: for a column of too many categories to be one, or a modality that is
        left without any column.
    """
    vocabulary: Vocabulary = {}
    for modality, columns in train.categories.items():
        vocabulary[modality] = {}
        names = train.feature_names[modality]
        for column, labels in columns.items():
            codes = train.features[modality][:, names.index(column)]
            seen = np.unique(codes[~np.isnan(codes)]).astype(np.int64)
            found = sorted({labels[code] for code in seen})
            if len(found) > MOST_CATEGORIES:
                raise DataError(
                    f"column {column!r} of modality {modality!r} has {len(found):,} "
                    f"categories in training, more than {MOST_CATEGORIES}: it names "
                    "records rather than kinds; list it in drop"
                )
            vocabulary[modality][column] = tuple(found)
    for modality, names in train.feature_names.items():
        encoded = encoded_names(names, vocabulary.get(modality, {}))
        if not encoded:
            raise DataError(
                f"modality {modality!r} has no value in training; drop it, or check "
                "the split"
            )
        twice = {name for name in encoded if encoded.count(name) > 1}
        if twice:
            raise DataError(
                f"modality {modality!r} has two columns named {min(twice)!r} once its "
                "categories are columns; rename one"
            )
    return vocabulary


def encoded_names(
    names: tuple[str, ...], vocabulary: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Returns the columns of a modality once categories are encoded.

    Args:
      names: its columns.
      vocabulary: column -> categories.

    Returns:
      Names in the same order, ``colour=red`` for a category.
    """
    result: list[str] = []
    for name in names:
        if name in vocabulary:
            result += [f"{name}={category}" for category in vocabulary[name]]
        else:
            result.append(name)
    return tuple(result)


def encoded_columns(vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    """Returns modality name -> names of the columns that stand for categories."""
    return {
        modality: encoded_names(tuple(columns), columns)
        for modality, columns in vocabulary.items()
    }


def encode(vocabulary: Vocabulary, dataset: Dataset) -> Dataset:
    """Returns the dataset with 0 and 1 in place of categories.

    Args:
      vocabulary: of the training part.
      dataset: the same columns; ``categories`` names their own categories.

    Returns:
      A dataset without ``categories``; a category that is not in the vocabulary is 0
      in all columns, a missing one NaN in all of them.
    """
    features, feature_names = {}, {}
    for modality, values in dataset.features.items():
        names = dataset.feature_names[modality]
        known = vocabulary.get(modality, {})
        feature_names[modality] = encoded_names(names, known)
        if not known:
            features[modality] = values
            continue
        encoded = np.empty((len(values), len(feature_names[modality])), np.float32)
        start = 0
        for position, name in enumerate(names):
            column = values[:, position]
            if name not in known:
                encoded[:, start] = column
                start += 1
                continue
            code = _codes(column, dataset.categories[modality][name], known[name])
            end = start + len(known[name])
            encoded[:, start:end] = code[:, None] == np.arange(end - start)
            encoded[np.isnan(column), start:end] = np.nan
            start = end
        features[modality] = encoded
    return dataset._replace(
        features=features, feature_names=feature_names, categories={}
    )


def unseen_categories(
    vocabulary: Vocabulary, dataset: Dataset
) -> dict[str, dict[str, int]]:
    """Counts the rows whose category training never saw.

    Args:
      vocabulary: of the training part.
      dataset: rows with ``categories``.

    Returns:
      ``modality.column`` -> category -> rows, for columns with such rows.
    """
    found: dict[str, dict[str, int]] = {}
    for modality, columns in vocabulary.items():
        names = dataset.feature_names.get(modality, ())
        for column, known in columns.items():
            labels = dataset.categories.get(modality, {}).get(column, ())
            if column not in names or not labels:
                continue
            codes = dataset.features[modality][:, names.index(column)]
            observed = codes[~np.isnan(codes)].astype(np.int64)
            rows = np.bincount(observed, minlength=len(labels))
            new = {
                label: int(count)
                for label, count in zip(labels, rows, strict=True)
                if count and label not in known
            }
            if new:
                found[f"{modality}.{column}"] = new
    return found


def _codes(
    column: np.ndarray, labels: tuple[str, ...], known: tuple[str, ...]
) -> np.ndarray:
    """Returns int64 [rows]: the place in the vocabulary, -1 for unseen or missing."""
    place = {category: index for index, category in enumerate(known)}
    table = np.asarray([*(place.get(label, -1) for label in labels), -1], np.int64)
    code = np.where(np.isnan(column), len(labels), column).astype(np.int64)
    return table[code]
