"""How data is dealt out, split, cut into examples and scaled."""

from typing import Annotated, Literal

import msgspec

from fedjax_health.config.common import (
    AboveZero,
    Count,
    NonNegative,
    OpenShare,
    Positive,
    Record,
    Seed,
)

Fractions = Annotated[tuple[AboveZero, ...], msgspec.Meta(min_length=3, max_length=3)]


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
      block: rows of a block, more than twice the embargo.
      fractions: shares of training, validation and test part.
      embargo: rows left out at each border; the window's length where it is left out.
      seed: of the draw; the run's seed where it is left out.
    """

    block: Positive = 200
    fractions: Fractions = (0.6, 0.1, 0.3)
    embargo: Count | None = None
    seed: Seed | None = None

    def __post_init__(self):
        _check_shares(self.fractions)


class Stratified(Record, frozen=True, tag_field="kind", tag="stratified"):
    """Patients dealt out at random, alike in every label and client.

    Attributes:
      train: share of the training part.
      validation: share of the validation part.
      test: share of the test part.
      unit: what is dealt whole: a patient, or each row of a table of records that do
        not depend on each other.
      seed: of the draw; the run's seed where it is left out.
    """

    train: AboveZero = 0.6
    validation: AboveZero = 0.1
    test: AboveZero = 0.3
    unit: Literal["patient", "row"] = "patient"
    seed: Seed | None = None

    def __post_init__(self):
        _check_shares((self.train, self.validation, self.test))


class ByClient(Record, frozen=True, tag_field="kind", tag="by_client"):
    """Whole clients held out: hospitals that the detector never trained on.

    Attributes:
      train: share of the rows of the clients that train.
      validation: share of those that validate; it does not count where they are named,
        and the other shares are then those of the rest.
      test: the same for those that test.
      validation_clients: names of the clients that validate; drawn where it is empty.
      test_clients: names of the clients that test; drawn where it is empty.
      seed: of the draw; the run's seed where it is left out.
    """

    train: AboveZero = 0.6
    validation: AboveZero = 0.1
    test: AboveZero = 0.3
    validation_clients: tuple[str, ...] = ()
    test_clients: tuple[str, ...] = ()
    seed: Seed | None = None

    def __post_init__(self):
        _check_shares((self.train, self.validation, self.test))


class LeaveOneOut(Record, frozen=True, tag_field="kind", tag="leave_one_out"):
    """One client tests; patients of the others train and validate.

    Attributes:
      client: name of the client that is held out.
      validation: share of the other clients' patients that validate.
      unit: what is dealt whole: a patient, or each row of a table of records that do
        not depend on each other.
      seed: of the draw; the run's seed where it is left out.
    """

    client: str = ""
    validation: OpenShare = 0.1
    unit: Literal["patient", "row"] = "patient"
    seed: Seed | None = None


Split = Chronological | EpisodeBlocks | Stratified | ByClient | LeaveOneOut


class Root(Record, frozen=True):
    """The server's own data: a share of one site's training part, held out of it.

    Attributes:
      client: name of the site; one that trains and is honest.
      share: share of its training rows, stays or records.
    """

    client: str = ""
    share: OpenShare = 0.1


class Window(Record, frozen=True):
    """What one example is.

    Attributes:
      length: time steps of an example; 1 makes every row an example by itself.
      stride: rows from the start of one training window to that of the next.
    """

    length: Positive = 20
    stride: Positive = 5


class Summarise(Record, frozen=True):
    """Stays as records: statistics of each variable in place of its course.

    Attributes:
      statistics: which, of last, first, mean, min, max, std, slope, late (the mean over
        the later half), count (log(1 + observations)) and since (log(1 + rows) from the
        last observation to the end).
      modalities: which are summarised; those whose values are carried forward where it
        is empty. Of the others the last values stay.
      log: names of columns with a long tail, * and ? as wildcards; they are taken as
        sign(x) log(1 + |x|) first.
    """

    statistics: tuple[
        Literal[
            "last",
            "first",
            "mean",
            "min",
            "max",
            "std",
            "slope",
            "late",
            "count",
            "since",
        ],
        ...,
    ] = ("last", "mean", "std", "count", "slope", "late", "since")
    modalities: tuple[str, ...] = ()
    log: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.statistics:
            raise ValueError('statistics is empty: name at least one, such as "mean"')
        if len(set(self.statistics)) < len(self.statistics):
            raise ValueError(f"statistics={list(self.statistics)}: one occurs twice")


class Scaling(Record, frozen=True):
    """Standardisation, fitted on the training part.

    Attributes:
      scope: fitted in each client by itself, or once over all of them.
      clip: bound on the magnitude of a scaled value, in standard deviations.
      log: names of columns with a long tail, * and ? as wildcards; they are taken as
        sign(x) log(1 + |x|) first.
    """

    scope: Literal["client", "pooled"] = "client"
    clip: AboveZero = 8.0
    log: tuple[str, ...] = ()


class Outliers(Record, frozen=True):
    """Values far outside of a client's training values.

    Attributes:
      action: such a value becomes the fence ("clip"), or counts as not observed
        ("missing"), which needs a modality with missing values.
      width: distance of the fences from the quartiles, in interquartile ranges.
      modalities: which are filtered; all of them where it is empty.
    """

    action: Literal["clip", "missing"] = "clip"
    width: AboveZero = 3.0
    modalities: tuple[str, ...] = ()


Components = dict[str, Positive | OpenShare]


def _check_shares(shares: tuple[float, ...]):
    total = sum(shares)
    if not abs(total - 1) < 1e-6:
        parts = " + ".join(f"{share:g}" for share in shares)
        raise ValueError(f"{parts} is {total:g}: the three parts must add up to 1")
