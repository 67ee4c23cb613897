"""What the columns of a table mean, and the tables that are linked to it."""

from collections.abc import Iterator
from typing import Literal

import msgspec

from fedjax_health.data.schema import DataError

REST = "rest"

Columns = tuple[str, ...] | Literal["rest"]


def _default_modalities() -> dict[str, Columns]:
    return {"features": REST}


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further table whose rows belong to rows of the main one.

    Attributes:
      path: the file.
      modality: the modality that its columns become; its values may be missing.
      on: columns that tell what belongs together, of one name in both tables, or
        (main column -> linked column).
      time: column of the time in the linked table, which then is a history: each
        column gives its latest value that is not younger than the row. Without it the
        table has one row for a key.
      tolerance: age, in the unit of time (seconds, where times are dates), beyond
        which a value is not used any more; None for any age.
      time_format: strptime format of a time that is written as text.
      columns: which columns, or "rest" for all but keys, time and ``drop``.
      drop: columns that must not be used.
      categorical: columns of categories.
      delimiter: the character between the cells of a CSV.

    Raises:
      DataError: if the roles contradict each other.
    """

    path: str
    modality: str
    on: tuple[str, ...] | dict[str, str]
    time: str | None = None
    tolerance: float | None = None
    time_format: str | None = None
    columns: Columns = REST
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    delimiter: str = ","

    def __post_init__(self):
        where = f"links: {self.modality}"
        if not self.on or isinstance(self.on, str):
            raise DataError(f"{where}: on is {self.on!r}; give a list of columns")
        if not self.columns or (isinstance(self.columns, str) and self.columns != REST):
            raise DataError(
                f"{where}: columns is {self.columns!r}; give a list of columns or "
                '"rest"'
            )
        if self.tolerance is not None and not self.tolerance >= 0:
            raise DataError(f"{where}: tolerance is {self.tolerance}; give 0 or more")
        if self.tolerance is not None and self.time is None:
            raise DataError(f"{where}: tolerance needs time, the column of the time")

    @property
    def keys(self) -> dict[str, str]:
        """Column of the main table -> column of the linked one."""
        if isinstance(self.on, dict):
            return dict(self.on)
        return {name: name for name in self.on}


class ColumnRoles(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """What the columns of a table mean.

    Attributes:
      label: column of the label.
      positive: values of the label that are positive, all others being negative;
        empty for a label that is written as 0 and 1 (or false and true).
      attack: column of the attack type, or None.
      normal: the value of the attack column that stands for no attack.
      client: column that names the client, or None for a single client (for one
        client per file where there are several files).
      entity: column that names the stream (device, patient) inside its client, or
        None where all rows of a client (of a file) are one stream.
      patient: column that names the person, the same in the whole data; None where
        every entity is another one.
      time: column of the time, numbers or dates, or None for the order of the file.
      time_format: strptime format of a time that is written as text, or None to
        let pandas infer it.
      step_seconds: time between two rows of an entity; None for the median step where
        times are dates, and for an unknown one elsewhere.
      target: what a label belongs to, each "row" or the whole "entity".
      drop: columns that must not be used, such as identifiers.
      modalities: name -> columns, or "rest" for all columns without a role.
      categorical: columns of the modalities that hold categories, not numbers.
      allow_missing: whether a feature may be empty (it is then NaN, not observed);
        all modalities are then masked ones.
      carried: modalities, missing values allowed, whose models see the last observed
        value in place of a gap.
      links: further tables, each of which gives one more modality.
      files: what several files are, where no column names the client: one client
        each ("clients"), or parts of one table ("rows").
      delimiter: the character between the cells of a CSV.

    Raises:
      DataError: if the roles contradict each other.
    """

    label: str
    positive: tuple[bool | int | float | str, ...] = ()
    attack: str | None = None
    normal: str = "normal"
    client: str | None = None
    entity: str | None = None
    patient: str | None = None
    time: str | None = None
    time_format: str | None = None
    step_seconds: float | None = None
    target: Literal["row", "entity"] = "row"
    drop: tuple[str, ...] = ()
    modalities: dict[str, Columns] = msgspec.field(default_factory=_default_modalities)
    categorical: tuple[str, ...] = ()
    allow_missing: bool = False
    carried: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    files: Literal["clients", "rows"] = "clients"
    delimiter: str = ","

    def __post_init__(self):
        for name in ("drop", "positive", "categorical", "carried"):
            value = getattr(self, name)
            if isinstance(value, str):
                kind = "values" if name == "positive" else "columns"
                raise DataError(f"{name} is {value!r}; give a list of {kind}")
        if len(self.delimiter) != 1:
            raise DataError(f"delimiter is {self.delimiter!r}; give one character")
        if self.step_seconds is not None and not self.step_seconds > 0:
            raise DataError(f"step_seconds is {self.step_seconds}; give more than 0")
        _check_modalities(self)
        named: dict[str, str] = {}
        for role, column in named_columns(self):
            if column in named:
                raise DataError(
                    f"column {column!r} has two roles, {named[column]} and {role}; "
                    "keep one"
                )
            named[column] = role
        for column in self.categorical:
            if not named.get(column, "modalities").startswith("modalities"):
                raise DataError(
                    f"column {column!r} has two roles, {named[column]} and "
                    "categorical; keep one"
                )
        for link in self.links:
            if link.time is not None and self.time is None:
                raise DataError(
                    f"links: {link.modality}: is joined by time, but the table has no "
                    "time; name its column"
                )


def _check_modalities(roles: ColumnRoles) -> None:
    if not roles.modalities:
        raise DataError(
            'modalities is empty; name at least one, e.g. {features = "rest"}'
        )
    for name, columns in roles.modalities.items():
        if isinstance(columns, str) and columns != REST:
            raise DataError(
                f'modalities.{name} is {columns!r}; give a list of columns or "rest"'
            )
        if not columns:
            raise DataError(f"modalities.{name} has no column; name one or drop it")
    if list(roles.modalities.values()).count(REST) > 1:
        raise DataError(
            'only one modality can be "rest"; list the columns of the others'
        )
    linked = [link.modality for link in roles.links]
    for position, name in enumerate(linked):
        if name in roles.modalities or name in linked[:position]:
            raise DataError(f"links: two modalities named {name!r}; rename one")
    masked = {*linked, *(roles.modalities if roles.allow_missing else ())}
    for name in roles.carried:
        if name not in masked:
            raise DataError(
                f"carried names {name!r}, which is no modality with missing values; "
                "set allow_missing = true, or correct the name"
            )


def named_columns(roles: ColumnRoles) -> Iterator[tuple[str, str]]:
    """Yields (role, column) of every column that the roles name."""
    for role in ("label", "attack", "client", "entity", "patient", "time"):
        column = getattr(roles, role)
        if column is not None:
            yield role, column
    for column in roles.drop:
        yield "drop", column
    for name, columns in roles.modalities.items():
        if columns != REST:
            for column in columns:
                yield f"modalities.{name}", column


def key_columns(roles: ColumnRoles) -> tuple[str, ...]:
    """Returns the columns of the main table that link further tables to it."""
    return tuple(dict.fromkeys(key for link in roles.links for key in link.keys))
