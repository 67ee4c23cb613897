"""The leak check of a configuration's data; imports no jax, so that it starts fast."""

import warnings
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from fedjax_health.build.sources import ROLES, has_time, names_of, table_roles
from fedjax_health.build.split import deal_out
from fedjax_health.config import Config, Natural, Table
from fedjax_health.data.leakcheck import LeakReport, count_classes, leakcheck
from fedjax_health.data.loaders.guess import guess_roles
from fedjax_health.data.loaders.reading import open_table
from fedjax_health.data.loaders.roles import (
    REST,
    ColumnRoles,
    key_columns,
    named_columns,
)
from fedjax_health.data.loaders.tabular import find_tables, load_table
from fedjax_health.data.schema import Dataset
from fedjax_health.data.splits import split_dataset


def find_leaks(settings: Config, dataset: Dataset, split: np.ndarray) -> LeakReport:
    """Searches the data of a configuration for what gives the label away.

    Of a table every column is looked at, those too that no detector sees.

    Args:
      settings: the configuration.
      dataset: its data as it was loaded.
      split: the part of every row.

    Raises:
      DataError: if the table cannot be read again.
    """
    table = table_roles(settings)
    unused = None
    if table is not None:
        path, roles = table
        seen = None if settings.summarise is not None else dataset.feature_names
        unused = _unused_columns(path, roles, seen)
    return leakcheck(
        dataset,
        split,
        unused=unused,
        names=names_of(settings, dataset),
        timed=has_time(settings),
        classes=_dealt_classes(settings, dataset, split),
        seed=settings.seed,
    )


def guess_columns(settings: Config) -> Config:
    """Returns the configuration of a table of whose columns nothing is said.

    Raises:
      DataError: if the table cannot be read.
    """
    table = table_roles(settings)
    if table is None or not isinstance(settings.data, Table):
        return settings
    roles = guess_roles(*table)
    data = msgspec.structs.replace(
        settings.data,
        time=roles.time,
        categorical=roles.categorical,
        allow_missing=roles.allow_missing,
    )
    return msgspec.structs.replace(settings, data=data)


def _dealt_classes(
    settings: Config, dataset: Dataset, split: np.ndarray
) -> np.ndarray | None:
    """Returns [clients, 2], the examples of each class that a partition deals out."""
    if isinstance(settings.partition, Natural):
        return None
    # Rows are dealt by labels and streams; features would only be copied.
    bare = dataset._replace(features={}, feature_names={})
    dealt = deal_out(settings, split_dataset(bare, split))
    return np.sum([count_classes(part) for part in dealt], axis=0)


def _unused_columns(
    path: str, roles: ColumnRoles, seen: Mapping[str, Sequence[str]] | None
) -> Dataset | None:
    """Returns the columns that no detector sees, by their roles.

    Args:
      path: of the table.
      roles: what its columns mean.
      seen: modality name -> columns of the dataset; those of the roles where the
        dataset's are others, made from them.
    """
    first = find_tables(path, roles)[0]
    columns = open_table(first, delimiter=roles.delimiter).columns
    held = roles.modalities if seen is None else seen
    used = {name for names in held.values() if names != REST for name in names}
    if REST in held.values():
        used |= set(columns) - {column for _, column in named_columns(roles)}
        used -= set(key_columns(roles))
    used |= {column for role, column in named_columns(roles) if role in ROLES}
    rest = [column for column in columns if column not in used]
    if not rest:
        return None
    dropped = tuple(column for column in rest if column in roles.drop)
    others = tuple(column for column in rest if column not in roles.drop)
    modalities = {"drop": dropped, "unused": others}
    as_text = msgspec.structs.replace(
        roles,
        drop=(),
        modalities={name: held for name, held in modalities.items() if held},
        # Text, numbers and gaps alike.
        categorical=tuple(rest),
        allow_missing=True,
        carried=(),
        links=(),
    )
    with warnings.catch_warnings():
        # Said already when the data was loaded.
        warnings.simplefilter("ignore")
        return load_table(path, as_text)
