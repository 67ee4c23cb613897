"""A lower bound on epsilon from one run with many canaries.

Steinke, Nasr and Jagielski, 2023, "Privacy Auditing with One (1) Training Run"
(arXiv:2305.08846), Theorem 5.2 and appendix D: m canaries are each in or out by a fair
coin, r of the coins are guessed after the run. Whatever an (epsilon, delta)-private
run releases, the number of correct guesses is hardly larger than that of a binomial
with chance ``exp(epsilon) / (1 + exp(epsilon))``; epsilons under which the number that
was seen is too unlikely are refuted.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

# Bisections of an epsilon: far below any digit that is shown.
_BISECTIONS = 40


class EpsilonBound(NamedTuple):
    """What the guesses refute.

    Attributes:
      epsilon: every smaller one is refuted; 0 where none is.
      most: the epsilon that would be refuted if every guess had been right.
      guesses: coins that were guessed.
      correct: of them, right.
      canaries: coins that were tossed.
      confidence: probability with which such a statement holds.
    """

    epsilon: float
    most: float
    guesses: int
    correct: int
    canaries: int
    confidence: float


def p_value(
    epsilon: float, delta: float, *, correct: int, guesses: int, canaries: int
) -> float:
    """Returns a bound on the probability of as many correct guesses, or more.

    Args:
      epsilon: of the hypothesis, 0 or more.
      delta: of the hypothesis, in [0, 1].
      correct: guesses that were right.
      guesses: coins that were guessed.
      canaries: coins that were tossed.

    Raises:
      ValueError: for numbers that do not fit one another.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"p_value: {correct} correct of {guesses} guesses on {canaries} canaries: "
            "must not rise from left to right"
        )
    if not epsilon >= 0 or not 0 <= delta <= 1:
        raise ValueError(f"p_value: epsilon={epsilon}, delta={delta}: out of range")
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, chance))
    # What delta may add: the largest mean of P[correct - i <= B < correct] over i.
    below = stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance)
    slope = 0.0
    if correct:
        slope = float(np.max(np.cumsum(below) / np.arange(1, correct + 1)))
    return min(tail + 2 * canaries * delta * slope, 1.0)


def refuted_epsilon(
    delta: float, *, correct: int, guesses: int, canaries: int, alpha: float
) -> float:
    """Returns the epsilon below which every one is refuted at level ``alpha``.

    Args:
      delta: that epsilon goes with.
      correct: see ``p_value``.
      guesses: see ``p_value``.
      canaries: see ``p_value``.
      alpha: probability of refuting a true epsilon, in (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"refuted_epsilon: alpha={alpha}: must lie in (0, 1)")

    def refuted(epsilon: float) -> bool:
        p = p_value(epsilon, delta, correct=correct, guesses=guesses, canaries=canaries)
        return p < alpha

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    # A binomial of chance 1 has every guess right: it is never refuted.
    while refuted(high) and high < 60:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def split(scores: np.ndarray) -> float:
    """Returns where scores part into two clusters: the least sum of squares within.

    Args:
      scores: float ``[canaries]``, 2 or more.
    """
    rising = np.sort(scores) - np.mean(scores)
    count = np.arange(1, len(rising))
    # Within two clusters it is the whole less what lies between their means.
    below = np.cumsum(rising)[:-1]
    between = below**2 / count + below**2 / (len(rising) - count)
    cut = int(np.argmax(between))
    return float(np.mean(scores) + (rising[cut] + rising[cut + 1]) / 2)


def epsilon_bound(
    scores: np.ndarray,
    is_in: np.ndarray,
    delta: float,
    *,
    confidence: float = 0.95,
    shares: Sequence[float] = (1.0, 0.5, 0.2),
) -> EpsilonBound:
    """Returns a lower bound on epsilon from the scores of canaries.

    Scores are split in two where two clusters of them part, which needs no coin; those
    above are guessed in, and the scores nearest to the split are not guessed. How many
    guesses are best depends on the noise, so several shares are tried and the error is
    split among them evenly (Bonferroni): the statement holds for the best of them.

    Args:
      scores: float ``[canaries]``, higher where a canary seems to be in.
      is_in: bool ``[canaries]``, how the coins fell.
      delta: that epsilon goes with.
      confidence: of the statement, in (0, 1).
      shares: of the canaries that are guessed, fixed beforehand.

    Raises:
      ValueError: without canaries, or for a score that is not a number.
    """
    scores, is_in = np.asarray(scores, float), np.asarray(is_in, bool)
    if scores.ndim != 1 or scores.shape != is_in.shape or len(scores) < 2:
        raise ValueError(
            "epsilon_bound: needs one score and one coin for each of 2 canaries or "
            f"more, not {scores.shape} and {is_in.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError("epsilon_bound: a score is not a number")
    canaries = len(scores)
    alpha = (1 - confidence) / len(shares)
    above = scores - split(scores)
    surest = np.argsort(-np.abs(above), kind="stable")
    right = (above > 0) == is_in
    best: EpsilonBound | None = None
    for share in shares:
        guesses = max(1, int(share * canaries))
        correct = int(np.sum(right[surest[:guesses]]))
        guessed = {"guesses": guesses, "canaries": canaries}
        low = refuted_epsilon(delta, correct=correct, alpha=alpha, **guessed)
        most = refuted_epsilon(delta, correct=guesses, alpha=alpha, **guessed)
        found = EpsilonBound(low, most, guesses, correct, canaries, confidence)
        if best is None or found.epsilon > best.epsilon:
            best = found
    assert best is not None
    return best
