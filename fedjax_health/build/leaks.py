"""The leak check of a configuration's data; imports no jax, so that it starts fast."""

import warnings
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from fedjax_health.build.sources import table_roles
from fedjax_health.config import Config
from fedjax_health.data.leakcheck import LeakReport, leakcheck
from fedjax_health.data.loaders.reading import open_table
from fedjax_health.data.loaders.roles import REST, ColumnRoles, named_columns
from fedjax_health.data.loaders.tabular import find_tables, load_table
from fedjax_health.data.schema import Dataset, segment_starts


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
    if table is None:
        names = {"client": "client", "entity": "entity", "time": "time"}
    else:
        path, roles = table
        seen = None if settings.summarise is not None else dataset.feature_names
        unused = _unused_columns(path, roles, seen)
        columns = {role: getattr(roles, role) for role in ("client", "entity", "time")}
        names = {role: name for role, name in columns.items() if name is not None}
    if dataset.num_clients < 2:
        names.pop("client", None)
    if len(segment_starts(dataset)) < 2:
        names.pop("entity", None)
    return leakcheck(
        dataset, split, unused=unused, identifiers=names, seed=settings.seed
    )


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
    single = ("label", "attack", "client", "entity", "patient", "time")
    used |= {column for role, column in named_columns(roles) if role in single}
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
