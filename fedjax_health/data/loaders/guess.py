"""Roles for a table of which nobody has said what its columns hold."""

import msgspec
import pandas as pd

from fedjax_health.data.loaders.cells import first_word, holds_dates
from fedjax_health.data.loaders.reading import open_table
from fedjax_health.data.loaders.roles import (
    REST,
    ColumnRoles,
    key_columns,
    named_columns,
)
from fedjax_health.data.loaders.tabular import find_tables


def guess_roles(path: str, roles: ColumnRoles) -> ColumnRoles:
    """Returns the roles with what the cells say: for a first look, not for training.

    Columns of a modality that hold words become categories, the first column of dates
    the time where none is named, and cells may be empty.

    Args:
      path: as in ``load_table``.
      roles: what is known; it stays as it is.

    Raises:
      DataError: if a file cannot be read.
    """
    sources = [
        open_table(file, delimiter=roles.delimiter) for file in find_tables(path, roles)
    ]
    if any(roles.label not in source.columns for source in sources):
        # So little is known of the file that its body is not even read.
        return roles
    named = {column: role for role, column in named_columns(roles)}
    features = [c for c, role in named.items() if role.startswith("modalities.")]
    rest = []
    if REST in roles.modalities.values():
        known = {*named, *key_columns(roles)}
        rest = [c for c in sources[0].columns if c not in known]
    # What a file lacks is said when the table is loaded.
    wanted = [
        column
        for column in (*rest, *features)
        if all(column in source.columns for source in sources)
    ]
    frame = pd.concat([source.read(wanted, ()) for source in sources])
    words = [column for column in wanted if first_word(frame[column]) is not None]
    time = roles.time
    if time is None:
        # A column that a modality names is a feature.
        dates = [c for c in words if c in rest and holds_dates(frame[c])]
        time = dates[0] if dates else None
    added = [column for column in words if column not in (time, *roles.categorical)]
    return msgspec.structs.replace(
        roles,
        time=time,
        categorical=(*roles.categorical, *added),
        allow_missing=True,
    )
