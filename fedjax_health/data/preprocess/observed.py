"""Columns that training observed too rarely to learn anything of them."""

from collections.abc import Sequence

import numpy as np

from fedjax_health.data.schema import DataError, Dataset, segment_starts


def keep_observed(
    train: Dataset,
    modality: str,
    least_share: float = 0.0,
    *,
    statistics: Sequence[str] = (),
) -> Dataset:
    """Returns the training part with those columns that were observed often enough.

    What is fitted on it leaves the other columns out of every part and of new data, as
    columns are matched by name.

    Args:
      train: the training part, and nothing else.
      modality: whose columns are chosen; the others keep all.
      least_share: share of the entities in which a column must have a value, at least
        one of them in any case.
      statistics: names of the statistics that the columns were summarised by, such as
        "HR mean"; those of one variable then stand or fall together, and a count of 0
        is no observation.

    Raises:
      DataError: if no column is left.
    """
    names, values = train.feature_names[modality], train.features[modality]
    seen = ~np.isnan(values)
    variable = names
    if statistics:
        counts = np.asarray([name.endswith(" count") for name in names])
        seen &= ~(counts & (values == 0))
        variable = tuple(name.rpartition(" ")[0] for name in names)
    entities = np.logical_or.reduceat(seen, segment_starts(train), axis=0)
    kept = []
    for position, own in enumerate(variable):
        columns = [other == own for other in variable]
        share = entities[:, columns].any(axis=1).mean()
        if share > 0 and share >= least_share:
            kept.append(position)
    if not kept:
        raise DataError(
            f"modality {modality!r}: no variable is observed in {least_share:.0%} of "
            "the training entities; give a smaller least_share"
        )
    return train._replace(
        features={**train.features, modality: values[:, kept]},
        feature_names={
            **train.feature_names,
            modality: tuple(names[position] for position in kept),
        },
    )
