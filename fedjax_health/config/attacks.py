"""What malicious clients do to their data and to what they send."""

from typing import Literal

from fedjax_health.config.common import (
    AboveZero,
    Count,
    Custom,
    NonNegative,
    Positive,
    Record,
    Share,
)

Knowledge = Literal["honest", "colluders"]


class SignFlip(Record, frozen=True, tag_field="kind", tag="sign_flip"):
    """Sends the opposite of the mean message or of the own one.

    Attributes:
      of: the "mean" message, or the "own" one.
      scale: how many times the opposite.
      knowledge: whose messages make the mean: the "honest" ones, or those that the
        malicious "colluders" would have sent.
    """

    of: Literal["mean", "own"] = "mean"
    scale: NonNegative = 1.0
    knowledge: Knowledge = "honest"


class Ipm(Record, frozen=True, tag_field="kind", tag="ipm"):
    """Inner product manipulation: a negative multiple of the mean (Xie et al. 2020).

    Attributes:
      scale: how many times the opposite of the mean.
      knowledge: whose messages make the mean: "honest" or "colluders".
    """

    scale: NonNegative = 2.0
    knowledge: Knowledge = "honest"


class Alie(Record, frozen=True, tag_field="kind", tag="alie"):
    """A little is enough: the mean moved by some deviations (Baruch et al. 2019).

    Attributes:
      z: how many standard deviations; from the numbers of clients where it is left out.
      sign: 1 adds them, -1 subtracts them.
      num_malicious: attackers that are assumed; counted where it is left out.
      ddof: the deviation divides by the number of messages less this.
      knowledge: whose messages are seen: "honest" or "colluders".
    """

    z: float | None = None
    sign: Literal[1, -1] = 1
    num_malicious: Count | None = None
    ddof: NonNegative = 1.0
    knowledge: Knowledge = "honest"


class Optimized(Record, frozen=True, tag_field="kind", tag="optimized"):
    """ALIE or IPM of the strength that moves the actual defence's output farthest.

    Attributes:
      direction: "alie" or "ipm".
      limit: greatest strength that is tried.
      sign: 1 or -1, of the deviations of "alie".
    """

    direction: Literal["alie", "ipm"] = "alie"
    limit: AboveZero = 10.0
    sign: Literal[1, -1] = 1


class Mimic(Record, frozen=True, tag_field="kind", tag="mimic"):
    """Copies the honest client that stands out most (Karimireddy et al. 2022).

    Attributes:
      warmup: rounds in which it is learnt who that is.
    """

    warmup: Count = 20


class MinMax(Record, frozen=True, tag_field="kind", tag="min_max"):
    """As far from the mean as two honest messages are apart (Shejwalkar et al. 2021).

    Attributes:
      deviation: direction: the mean at "unit" length, the "std", or its "sign".
      knowledge: whose messages are seen: "honest" or "colluders".
    """

    deviation: Literal["unit", "std", "sign"] = "unit"
    knowledge: Knowledge = "honest"


class MinSum(Record, frozen=True, tag_field="kind", tag="min_sum"):
    """The same with sums of squared distances (Shejwalkar et al. 2021).

    Attributes:
      deviation: direction: the mean at "unit" length, the "std", or its "sign".
      knowledge: whose messages are seen: "honest" or "colluders".
    """

    deviation: Literal["unit", "std", "sign"] = "unit"
    knowledge: Knowledge = "honest"


class Fang(Record, frozen=True, tag_field="kind", tag="fang"):
    """Crafted for Krum, or for the trimmed mean and the median (Fang et al. 2020).

    Attributes:
      form: the rule that is attacked: "krum" or "trimmed_mean".
      num_malicious: attackers that Krum assumes; counted where it is left out.
      threshold: strength at which the search against Krum ends.
      spread: how far beyond the honest values the trimmed mean's form draws.
      knowledge: whose messages are seen: "honest", or "colluders" with "trimmed_mean".
    """

    form: Literal["krum", "trimmed_mean"] = "krum"
    num_malicious: Count | None = None
    threshold: AboveZero = 1e-5
    spread: NonNegative = 2.0
    knowledge: Knowledge = "honest"


class Gaussian(Record, frozen=True, tag_field="kind", tag="gaussian"):
    """Normal noise.

    Attributes:
      std: standard deviation of each coordinate.
      center: around the "mean" of the honest messages, "zero", or the "own" message.
    """

    std: NonNegative = 1.0
    center: Literal["mean", "zero", "own"] = "mean"


class Nonfinite(Record, frozen=True, tag_field="kind", tag="nonfinite"):
    """A message that holds no finite number.

    Attributes:
      value: "nan", "inf" or "-inf".
    """

    value: Literal["nan", "inf", "-inf"] = "nan"


class FreeRider(Record, frozen=True, tag_field="kind", tag="free_rider"):
    """The last aggregate in place of training (Lin et al. 2019, Fraboni et al. 2021).

    Attributes:
      replay: factor on the last aggregate.
      noise: standard deviation of noise on it in the first round.
      decay: the noise falls with the round to this power.
    """

    replay: float = 1.0
    noise: NonNegative = 0.0
    decay: NonNegative = 0.0


class Sybil(Record, frozen=True, tag_field="kind", tag="sybil"):
    """One message, the mean of the malicious clients' own, under many names.

    Attributes:
      scale: factor on it.
      jitter: norm of each copy's noise, in norms of the message.
    """

    scale: float = 1.0
    jitter: NonNegative = 0.0


class ModelReplacement(Record, frozen=True, tag_field="kind", tag="model_replacement"):
    """The own update, scaled to replace the model (Bagdasaryan et al. 2020).

    Attributes:
      scale: factor on the update; from the weights where it is left out.
      server_learning_rate: the server's, by which that factor is divided.
      max_norm: largest norm of the message; none where it is left out.
    """

    scale: float | None = None
    server_learning_rate: AboveZero = 1.0
    max_norm: AboveZero | None = None


class Neurotoxin(Record, frozen=True, tag_field="kind", tag="neurotoxin"):
    """The own update where the last aggregate hardly moved (Zhang et al. 2022).

    Attributes:
      masked: share of coordinates, those that moved most, that are left out.
      scale: factor on the rest.
      max_norm: largest norm of the message; none where it is left out.
    """

    masked: Share = 0.05
    scale: float = 1.0
    max_norm: AboveZero | None = None


UpdateAttack = (
    SignFlip
    | Ipm
    | Alie
    | Optimized
    | Mimic
    | MinMax
    | MinSum
    | Fang
    | Gaussian
    | Nonfinite
    | FreeRider
    | Sybil
    | ModelReplacement
    | Neurotoxin
    | Custom
)


class LabelFlip(Record, frozen=True, tag_field="kind", tag="label_flip"):
    """Calls attacks normal and normal records attacks."""


class TargetedLabelFlip(
    Record, frozen=True, tag_field="kind", tag="targeted_label_flip"
):
    """Calls records of one class the other (Tolpegin et al. 2020).

    Attributes:
      source: label that is changed: 1 for attacks, 0 for normal records.
      target: label that it is changed to.
      share: share of the examples in which that is done.
    """

    source: Count = 1
    target: Count = 0
    share: Share = 1.0


class LabelNoise(Record, frozen=True, tag_field="kind", tag="label_noise"):
    """Labels that are wrong at random, each for good.

    Attributes:
      rate: share of wrong labels.
    """

    rate: Share = 0.5


class Backdoor(Record, frozen=True, tag_field="kind", tag="backdoor"):
    """Records that carry a trigger and the label that it shall mean (Gu et al. 2017).

    Attributes:
      columns: columns of the input that carry the trigger, such as "traffic.rate".
      values: the value of each, in scaled units.
      steps: time steps of a window, negative ones from its end; all where left out.
      target: label that a record with the trigger shall be given.
      share: share of the examples that are poisoned.
    """

    columns: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    steps: tuple[int, ...] | None = None
    target: Count = 0
    share: Share = 0.5

    def __post_init__(self):
        _check_values(self.columns, self.values)


class DistributedBackdoor(
    Record, frozen=True, tag_field="kind", tag="distributed_backdoor"
):
    """The same in parts, of which each malicious client uses one (Xie et al. 2020).

    Attributes:
      columns: columns of the input that carry the trigger, such as "traffic.rate".
      values: the value of each, in scaled units.
      steps: time steps of a window, negative ones from its end; all where left out.
      target: label that a record with the trigger shall be given.
      share: share of the examples that are poisoned.
      parts: parts into which the columns (with steps: columns at steps) are cut.
    """

    columns: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    steps: tuple[int, ...] | None = None
    target: Count = 0
    share: Share = 0.5
    parts: Positive = 4

    def __post_init__(self):
        _check_values(self.columns, self.values)


def _check_values(columns: tuple[str, ...], values: tuple[float, ...]):
    if len(columns) != len(values):
        raise ValueError(
            f"{len(columns)} columns and {len(values)} values: give one value for each"
        )


DataAttack = (
    LabelFlip | TargetedLabelFlip | LabelNoise | Backdoor | DistributedBackdoor | Custom
)


class Attackers(Record, frozen=True):
    """When malicious clients attack, and how many of them at a time.

    Attributes:
      start: first round of the attack.
      end: the round after its last one; the run's end where it is left out.
      share: probability that a malicious client attacks in a round.
    """

    start: Count = 0
    end: Count | None = None
    share: Share = 1.0

    def __post_init__(self):
        if self.end is not None and self.end < self.start:
            raise ValueError(f"end={self.end} lies before start={self.start}")
