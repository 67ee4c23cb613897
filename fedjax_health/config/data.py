"""Where the data comes from and how it is dealt out, split, cut and scaled."""

from typing import Annotated, Literal

import msgspec

from fedjax_health.config.common import (
    AboveZero,
    Count,
    Custom,
    NonNegative,
    Positive,
    Record,
)

Range = Annotated[tuple[Positive, ...], msgspec.Meta(min_length=2, max_length=2)]
Fractions = Annotated[tuple[NonNegative, ...], msgspec.Meta(min_length=3, max_length=3)]


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


class Table(Record, frozen=True, tag_field="kind", tag="table"):
    """Any CSV or Parquet file with column roles.

    Attributes:
      path: the file.
      label: column of the label.
      positive: label values that count as an attack; where it is empty the column
        holds 0 and 1.
      attack: column with the type of attack.
      normal: value of the attack column that means no attack.
      client: column that names the client of a row.
      entity: column that names the stream of a row inside its client.
      time: column that orders the rows of an entity.
      time_format: strptime format of a time that is written as text; inferred where
        it is left out.
      drop: columns that are not used: identifiers, counters, anything that gives the
        label away.
      modalities: modality name -> its columns; "rest" stands for all that have no
        other role.
      allow_missing: whether empty cells in feature columns are allowed.
      delimiter: the character between the cells of a CSV.
    """

    path: str = ""
    label: str = "label"
    positive: tuple[bool | int | float | str, ...] = ()
    attack: str | None = None
    normal: str = "normal"
    client: str | None = None
    entity: str | None = None
    time: str | None = None
    time_format: str | None = None
    drop: tuple[str, ...] = ()
    modalities: dict[str, tuple[str, ...] | Literal["rest"]] = msgspec.field(
        default_factory=lambda: {"features": "rest"}
    )
    allow_missing: bool = False
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
        if not self.modalities:
            raise ValueError('modalities is empty: name "flow", "biometrics" or both')


Data = HospitalSim | Table | Wustl | Custom


class Natural(Record, frozen=True, tag_field="kind", tag="natural"):
    """The clients that the data names."""


class Contiguous(Record, frozen=True, tag_field="kind", tag="contiguous"):
    """Blocks of the stream, in its order.

    Attributes:
      num_clients: blocks.
    """

    num_clients: Positive = 10


class Iid(Record, frozen=True, tag_field="kind", tag="iid"):
    """Units dealt out at random.

    Attributes:
      num_clients: clients.
      unit: consecutive rows that stay together, best a multiple of the window.
    """

    num_clients: Positive = 10
    unit: Positive = 100


class DirichletLabels(Record, frozen=True, tag_field="kind", tag="dirichlet_labels"):
    """Label shares of the clients drawn from a Dirichlet distribution.

    Attributes:
      num_clients: clients.
      alpha: concentration; smaller is less alike.
      unit: consecutive rows that stay together, best a multiple of the window.
      by: the labels that are dealt: 0 and 1, or the types of attack.
    """

    num_clients: Positive = 10
    alpha: AboveZero = 0.3
    unit: Positive = 100
    by: Literal["label", "attack"] = "label"


class QuantitySkew(Record, frozen=True, tag_field="kind", tag="quantity_skew"):
    """Client sizes by a power law.

    Attributes:
      num_clients: clients.
      exponent: exponent of the power law; 0 for equal sizes.
      unit: consecutive rows that stay together, best a multiple of the window.
    """

    num_clients: Positive = 10
    exponent: NonNegative = 1.0
    unit: Positive = 100


Partition = Natural | Contiguous | Iid | DirichletLabels | QuantitySkew


class Chronological(Record, frozen=True, tag_field="kind", tag="chronological"):
    """Earlier rows train, later rows test.

    Attributes:
      train: share of the training part.
      validation: share of the validation part.
      test: share of the test part.
      embargo: rows left out at each border; the window's length where it is left out.
      scope: whose rows are cut by time together: each client's, those of the whole
        table ("global") or each entity's.
    """

    train: AboveZero = 0.6
    validation: AboveZero = 0.1
    test: AboveZero = 0.3
    embargo: Count | None = None
    scope: Literal["client", "global", "entity"] = "client"

    def __post_init__(self):
        _check_shares((self.train, self.validation, self.test))


class EpisodeBlocks(Record, frozen=True, tag_field="kind", tag="episode_blocks"):
    """Blocks of time dealt out to the parts, no episode cut in two.

    Attributes:
      block: rows of a block.
      fractions: shares of training, validation and test part.
      embargo: rows left out at each border; the window's length where it is left out.
    """

    block: Positive = 200
    fractions: Fractions = (0.6, 0.1, 0.3)
    embargo: Count | None = None

    def __post_init__(self):
        _check_shares(self.fractions)


Split = Chronological | EpisodeBlocks


class Window(Record, frozen=True):
    """What one example is.

    Attributes:
      length: time steps of an example; 1 makes every row an example by itself.
      stride: rows from the start of one training window to that of the next.
    """

    length: Positive = 20
    stride: Positive = 5


class Scaling(Record, frozen=True):
    """Standardisation, fitted on the training part.

    Attributes:
      scope: fitted in each client by itself, or once over all of them.
      clip: bound on the magnitude of a scaled value, in standard deviations.
    """

    scope: Literal["client", "pooled"] = "client"
    clip: AboveZero = 8.0


def _check_shares(shares: tuple[float, ...]):
    total = sum(shares)
    if not abs(total - 1) < 1e-6:
        parts = " + ".join(f"{share:g}" for share in shares)
        raise ValueError(f"{parts} is {total:g}: the three parts must add up to 1")
