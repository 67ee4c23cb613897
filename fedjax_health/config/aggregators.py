"""How the messages of a cohort become one: rules, and what comes before them."""

from typing import Annotated, Literal

import msgspec

from fedjax_health.config.common import (
    AboveZero,
    BelowOne,
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


# A client with one neighbour is not hidden, and a group of one client is its message.
_TwoOrMore = Annotated[int, msgspec.Meta(ge=2)]
_Bits = Annotated[int, msgspec.Meta(ge=2, le=24)]

Rule = (
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
)


class SecureMean(Record, frozen=True, tag_field="kind", tag="secure_mean"):
    """The weighted mean of messages that the server sees as a sum alone.

    Attributes:
      bits: of a coordinate as fixed point, with its sign.
      value_range: largest magnitude of a coordinate; the bound of a clip before it
        where it is left out.
      max_weight: weight beyond which a client counts no more; with `weighting =
        "examples"` the largest count.
      fidelity: `"ideal"` forms the sum alone, `"view"` draws what the server sees,
        `"protocol"` runs the protocol; the sums are the same to the bit.
      threshold: fewest messages whose sum is released.
      degree: neighbours of a client in the protocol; left out, all up to 100 clients
        and computed beyond.
      corrupt: share of clients that work with the server, for the degree.
      dropout: share of clients that drop out, for the degree.
    """

    bits: _Bits = 20
    value_range: AboveZero | None = None
    max_weight: AboveZero = 1.0
    fidelity: Literal["ideal", "view", "protocol"] = "ideal"
    threshold: Positive = 1
    degree: _TwoOrMore | None = None
    corrupt: BelowOne = 0.1
    dropout: BelowOne = 0.1


class GroupedSecure(Record, frozen=True, tag_field="kind", tag="grouped_secure"):
    """A robust rule over the secure sums of groups of clients.

    Attributes:
      group_size: clients of a group on average.
      rule: over the groups' means, with its own fields; the malicious clients that are
        assumed count as one group each.
      bits: of a coordinate as fixed point, with its sign.
      value_range: largest magnitude of a coordinate; the bound of a clip before it
        where it is left out.
      max_weight: weight beyond which a client counts no more; with `weighting =
        "examples"` the largest count.
      fidelity: `"ideal"` forms the sums alone, `"view"` draws what the server sees,
        `"protocol"` runs the protocol in every group.
      min_group: fewest messages of a group whose sum is released.
      population: number of all clients, which are then dealt out evenly; left out, each
        client's group is drawn by itself.
      malicious: share of clients that is expected to be malicious; a group size that
        spoils most groups is warned of.
      degree: neighbours of a client in the protocol; left out, all up to 100 clients
        and computed beyond.
      corrupt: share of clients that work with the server, for the degree.
      dropout: share of clients that drop out, for the degree.
    """

    group_size: _TwoOrMore = 4
    rule: Rule | Custom = Median()
    bits: _Bits = 20
    value_range: AboveZero | None = None
    max_weight: AboveZero = 1.0
    fidelity: Literal["ideal", "view", "protocol"] = "ideal"
    min_group: _TwoOrMore = 2
    population: _TwoOrMore | None = None
    malicious: BelowOne = 0.0
    degree: _TwoOrMore | None = None
    corrupt: BelowOne = 0.1
    dropout: BelowOne = 0.1


Aggregator = Rule | SecureMean | GroupedSecure | Custom
Mixing = Nnm | Bucketing | ClipNorms | Arc | Custom
