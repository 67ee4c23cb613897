"""How the messages of a cohort become one: rules, and what comes before them."""

from fedjax_health.config.common import (
    AboveZero,
    Count,
    Custom,
    NonNegative,
    Positive,
    Record,
    Share,
)


class Mean(Record, frozen=True, tag_field="kind", tag="mean"):
    """The weighted mean of the messages."""


class Median(Record, frozen=True, tag_field="kind", tag="median"):
    """The median of each coordinate."""


class TrimmedMean(Record, frozen=True, tag_field="kind", tag="trimmed_mean"):
    """The mean of each coordinate without its extremes.

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says. As many of the lowest and of the highest values
        are dropped.
    """

    num_malicious: Count | None = None


class MeanAroundMedian(Record, frozen=True, tag_field="kind", tag="mean_around_median"):
    """The mean of the values nearest the median of each coordinate (MeaMed).

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says. As many values are dropped.
    """

    num_malicious: Count | None = None


class Krum(Record, frozen=True, tag_field="kind", tag="krum"):
    """The message closest to its nearest others (Blanchard et al. 2017).

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says.
      neighbors: others that are counted; cohort less num_malicious less 2 where it is
        left out.
    """

    num_malicious: Count | None = None
    neighbors: Positive | None = None


class MultiKrum(Record, frozen=True, tag_field="kind", tag="multi_krum"):
    """The mean of the messages closest to their nearest others (Blanchard et al. 2017).

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says.
      keep: messages that are averaged; cohort less num_malicious where it is left out.
      neighbors: others that are counted; cohort less num_malicious less 2 where it is
        left out.
    """

    num_malicious: Count | None = None
    keep: Positive | None = None
    neighbors: Positive | None = None


class Bulyan(Record, frozen=True, tag_field="kind", tag="bulyan"):
    """Messages picked by Krum, then a mean around their median (El Mhamdi et al. 2018).

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says.
    """

    num_malicious: Count | None = None


class Mda(Record, frozen=True, tag_field="kind", tag="mda"):
    """The mean of the messages of least diameter; small cohorts only.

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says.
    """

    num_malicious: Count | None = None


class Smea(Record, frozen=True, tag_field="kind", tag="smea"):
    """The mean of the messages that spread least; small cohorts only.

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says.
    """

    num_malicious: Count | None = None


class Caf(Record, frozen=True, tag_field="kind", tag="caf"):
    """Messages weighed down along the direction of most spread (Allouah et al. 2025).

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says.
    """

    num_malicious: Count | None = None


class GeometricMedian(Record, frozen=True, tag_field="kind", tag="geometric_median"):
    """The point of least weighted distance to all messages (RFA, Pillutla et al. 2022).

    Attributes:
      steps: Weiszfeld steps.
      smoothing: distance below which a message weighs no more.
    """

    steps: Positive = 8
    smoothing: AboveZero = 1e-6


class CenteredClip(Record, frozen=True, tag_field="kind", tag="centered_clip"):
    """The last aggregate moved by clipped differences to it (Karimireddy et al. 2021).

    Attributes:
      radius: norm to which differences are clipped.
      steps: clipping steps of a round.
    """

    radius: AboveZero = 10.0
    steps: Positive = 1


class Monna(Record, frozen=True, tag_field="kind", tag="monna"):
    """The mean of the messages nearest a trusted client's (Farhadkhani et al. 2023).

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says.
      trusted: the id of a client that is honest; rounds without it make no step.
    """

    num_malicious: Count | None = None
    trusted: Count = 0


class Cge(Record, frozen=True, tag_field="kind", tag="cge"):
    """The mean of the messages of smallest norm (Gupta and Vaidya 2020).

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says.
    """

    num_malicious: Count | None = None


class SignMajority(Record, frozen=True, tag_field="kind", tag="sign_majority"):
    """The sign of most messages, coordinate by coordinate (Bernstein et al. 2019)."""


class RobustLearningRate(
    Record, frozen=True, tag_field="kind", tag="robust_learning_rate"
):
    """The mean, turned where too few signs agree (Ozdayi et al. 2021).

    Attributes:
      threshold: sum of signs that is enough.
    """

    threshold: AboveZero = 4.0


class Dnc(Record, frozen=True, tag_field="kind", tag="dnc"):
    """Drops what stands out on random coordinates (Shejwalkar and Houmansadr 2021).

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says.
      iterations: how often coordinates are drawn.
      subdimension: share of the coordinates that is drawn.
      fraction: messages that an iteration drops, in multiples of num_malicious.
    """

    num_malicious: Count | None = None
    iterations: Positive = 5
    subdimension: Share = 0.2
    fraction: AboveZero = 1.0


class FlTrust(Record, frozen=True, tag_field="kind", tag="fltrust"):
    """Messages weighted by their cosine with the server's own (Cao et al. 2021)."""


class FoolsGold(Record, frozen=True, tag_field="kind", tag="foolsgold"):
    """Weighs clients by how little their updates resemble others' (Fung et al. 2020).

    Attributes:
      population: number of all clients, whose accumulated updates are then kept; each
        round is judged by itself where it is left out.
    """

    population: Positive | None = None


class Flame(Record, frozen=True, tag_field="kind", tag="flame"):
    """A majority's cluster, clipped to the median norm, noised (Nguyen et al. 2022).

    Attributes:
      noise: its standard deviation in median norms.
    """

    noise: NonNegative = 0.001


class SignGuard(Record, frozen=True, tag_field="kind", tag="signguard"):
    """Messages of ordinary norm and signs, clipped and averaged (Xu et al. 2022).

    Attributes:
      low: least norm of a message that is kept, in median norms.
      high: largest.
    """

    low: AboveZero = 0.1
    high: AboveZero = 3.0


class Nnm(Record, frozen=True, tag_field="kind", tag="nnm"):
    """Every message becomes the mean of its nearest ones (Allouah et al. 2023).

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says.
    """

    num_malicious: Count | None = None


class Bucketing(Record, frozen=True, tag_field="kind", tag="bucketing"):
    """Means of messages dealt out at random (Karimireddy et al. 2022).

    Attributes:
      size: messages of a bucket.
    """

    size: Positive = 2


class ClipNorms(Record, frozen=True, tag_field="kind", tag="clip_norms"):
    """Messages scaled down to a bound on their norm.

    Attributes:
      max_norm: the bound.
    """

    max_norm: AboveZero = 1.0


class Arc(Record, frozen=True, tag_field="kind", tag="arc"):
    """The largest messages clipped to the next norm (Allouah et al. 2025).

    Attributes:
      num_malicious: clients of a cohort that are taken to be malicious; left out, as
        many as assumed_malicious says.
    """

    num_malicious: Count | None = None


Aggregator = (
    Mean
    | Median
    | TrimmedMean
    | MeanAroundMedian
    | Krum
    | MultiKrum
    | Bulyan
    | Mda
    | Smea
    | Caf
    | GeometricMedian
    | CenteredClip
    | Monna
    | Cge
    | SignMajority
    | RobustLearningRate
    | Dnc
    | FlTrust
    | FoolsGold
    | Flame
    | SignGuard
    | Custom
)
Mixing = Nnm | Bucketing | ClipNorms | Arc | Custom
