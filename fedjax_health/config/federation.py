"""Who takes part and what happens to their messages."""

from typing import Annotated, Literal

import msgspec

from fedjax_health.config.common import (
    AboveZero,
    BelowOne,
    Positive,
    Record,
)


class Fixed(Record, frozen=True, tag_field="kind", tag="fixed"):
    """That many distinct clients in every round.

    Attributes:
      cohort_size: clients of a round; all of them where it is left out.
    """

    cohort_size: Positive | None = None


class Poisson(Record, frozen=True, tag_field="kind", tag="poisson"):
    """Each client takes part by itself with the same probability.

    Attributes:
      cohort_size: expected clients of a round; all of them where it is left out.
      cap: most clients of a round; a draw beyond it is cut.
    """

    cohort_size: Positive | None = None
    cap: Positive | None = None

    def __post_init__(self):
        if self.cap is not None and self.cap < (self.cohort_size or 1):
            raise ValueError(
                f"cap={self.cap} lies below the expected cohort "
                f"cohort_size={self.cohort_size}"
            )


class Cyclic(Record, frozen=True, tag_field="kind", tag="cyclic"):
    """Poisson inside the block of clients whose turn it is.

    Attributes:
      cohort_size: expected clients of a round; the whole block where it is left out.
      cap: most clients of a round; a draw beyond it is cut.
      cycle: rounds until the same block of clients has its turn again.
    """

    cohort_size: Positive | None = None
    cap: Positive | None = None
    cycle: Positive = 2

    def __post_init__(self):
        if self.cap is not None and self.cap < (self.cohort_size or 1):
            raise ValueError(
                f"cap={self.cap} lies below the expected cohort "
                f"cohort_size={self.cohort_size}"
            )


Sampling = Fixed | Poisson | Cyclic


class Head(Record, frozen=True, tag_field="kind", tag="head"):
    """Personal layers by their path (FedPer, Arivazhagan et al. 2019).

    Attributes:
      paths: globs of parameter paths, parts joined by "/", that stay on the client.
    """

    paths: tuple[str, ...] = ("head/*",)

    def __post_init__(self):
        if not self.paths:
            raise ValueError("paths is empty: name a parameter, such as ['head/*']")


class Norm(Record, frozen=True, tag_field="kind", tag="norm"):
    """Personal normalisation layers (FedBN, Li et al. 2021)."""


Personal = Head | Norm


class Evaluation(Record, frozen=True):
    """When the global model is scored, and when that ends the run.

    Attributes:
      every: rounds between two evaluations on the validation part.
      patience: evaluations without a better one after which the run ends; never where
        it is left out.
      metric: what "better" means, on the validation part.
      false_alarm_rate: share of normal validation steps above the alarm threshold.
      average: decay of a running average of the global model over the rounds, which is
        then what is scored and kept; 0 for the model of the round itself.
    """

    every: Positive = 5
    patience: Positive | None = None
    metric: Literal["auroc", "auprc"] = "auroc"
    false_alarm_rate: AboveZero = 0.01
    average: BelowOne = 0.0

    def __post_init__(self):
        if self.false_alarm_rate >= 1:
            raise ValueError(
                f"false_alarm_rate={self.false_alarm_rate}: must lie in (0, 1)"
            )


class Checkpoint(Record, frozen=True):
    """When the state is saved, and how many saves are kept.

    Attributes:
      every: rounds between two checkpoints; the last round is always saved.
      keep: newest checkpoints that stay on disk, 2 or more: one may be damaged.
    """

    every: Positive = 10
    keep: Annotated[int, msgspec.Meta(ge=2)] = 3
