"""How well an attack tells members from non-members."""

from typing import NamedTuple

import numpy as np

from fedjax_health.metrics import host

FALSE_ALARMS = 0.01
RESAMPLES = 500


class Rates(NamedTuple):
    """Figures of an attack; 0.5, 0.01 and 0.5 are what guessing reaches.

    Attributes:
      auroc: probability that a member outranks a non-member.
      tpr: share of members found where 1 % of the non-members are taken for members.
      balanced: mean of the shares found right of both kinds, at the attack's own
        threshold or, where it has none, at the median.
    """

    auroc: float
    tpr: float
    balanced: float


class Measured(NamedTuple):
    """Figures of an attack on one model or several.

    Attributes:
      rates: their mean over the models.
      intervals: name of a figure -> its 95 % interval.
      members: examples that were members, of all models together.
      others: examples that were not.
    """

    rates: Rates
    intervals: dict[str, tuple[float, float]]
    members: int
    others: int


def tpr_at(score: np.ndarray, member: np.ndarray, far: float = FALSE_ALARMS) -> float:
    """Returns the share of members above a threshold that few non-members reach.

    Args:
      score: float ``[examples]``, higher for members.
      member: bool ``[examples]``.
      far: the largest share of non-members at or above the threshold.
    """
    others = np.sort(score[~member])[::-1]
    allowed = int(np.floor(far * len(others)))
    # The next non-member must stay below: ties count as false alarms.
    return float(np.mean(score[member] > others[allowed]))


def balanced_accuracy(
    score: np.ndarray, member: np.ndarray, threshold: float | None = None
) -> float:
    """Returns the balanced accuracy of an attacker with a threshold of its own.

    Args:
      score: float ``[examples]``, higher for members.
      member: bool ``[examples]``.
      threshold: members are those at or above it; None takes the median, as who knows
        that half of the examples are members would.
    """
    found = score >= (np.median(score) if threshold is None else threshold)
    return float((np.mean(found[member]) + np.mean(~found[~member])) / 2)


def rates(
    score: np.ndarray, member: np.ndarray, threshold: float | None = None
) -> Rates:
    """Returns all figures; see ``Rates``."""
    return Rates(
        host.auroc(score, member.astype(float)),
        tpr_at(score, member),
        balanced_accuracy(score, member, threshold),
    )


def resampled(
    groups: list[tuple[np.ndarray, np.ndarray]],
    seed: int,
    *,
    threshold: float | None = None,
    resamples: int = RESAMPLES,
) -> Measured:
    """Returns the mean figures over models, and their 95 % intervals.

    Models are resampled, and the examples of each: the interval says how far the
    figures would move with other examples of the same kind and, where there are
    several models, with other trainings.

    Args:
      groups: one (score, member) a model.
      seed: of the resampling.
      threshold: see ``rates``.
      resamples: how many.
    """
    value = _mean([rates(s, m, threshold) for s, m in groups])
    rng = np.random.default_rng(seed)
    drawn = []
    resamples = max(1, resamples // len(groups)) if len(groups) > 1 else resamples
    resamples = max(resamples, 100)
    for _ in range(resamples):
        chosen = rng.integers(len(groups), size=len(groups))
        drawn.append(
            _mean([_once(*groups[i], rng=rng, threshold=threshold) for i in chosen])
        )
    low, high = np.quantile(np.array(drawn), (0.025, 0.975), axis=0)
    names = Rates._fields
    intervals = {
        n: (float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)
    }
    members = sum(int(np.sum(member)) for _, member in groups)
    others = sum(int(np.sum(~member)) for _, member in groups)
    return Measured(value, intervals, members, others)


def _once(score, member, *, rng, threshold) -> Rates:
    inside, outside = score[member], score[~member]
    inside = inside[rng.integers(len(inside), size=len(inside))]
    outside = outside[rng.integers(len(outside), size=len(outside))]
    flags = np.arange(len(inside) + len(outside)) < len(inside)
    return rates(np.concatenate([inside, outside]), flags, threshold)


def _mean(found: list[Rates]) -> Rates:
    return Rates(*(float(x) for x in np.mean(np.array(found), axis=0)))
