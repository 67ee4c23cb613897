"""Membership inference: which examples a detector was trained on.

The loss threshold of Yeom et al., 2018 (arXiv:1709.01604): an example is taken for a
member where its loss lies below the mean loss of training. The likelihood ratio attack
of Carlini et al., 2022 (arXiv:2112.03570): shadow models say how confident a detector
is of each example with and without it; with fewer than 64 shadows one variance is
estimated for all examples, as the paper advises.
"""

import numpy as np


def loss_scores(loss: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Returns scores that are 0 or above where Yeom's attacker says "member".

    Args:
      loss: float ``[examples]``.
      member: bool ``[examples]``; the attacker knows the mean loss of training alone.
    """
    return np.mean(loss[member]) - loss


def online_scores(
    logit: np.ndarray, member: np.ndarray, target: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the log likelihood ratio of one model's answers by the others' (online).

    Args:
      logit: float ``[models, examples]``, confidence of the true label.
      member: bool ``[models, examples]``.
      target: the model that is attacked.

    Returns:
      Scores ``[examples]``, and which of them count: examples that at least two of the
      other models were trained on, and two were not. Where a model has nothing to be
      told apart by, scores are 0.
    """
    others = np.arange(len(logit)) != target
    inside = _fit(logit[others], member[others])
    outside = _fit(logit[others], ~member[others])
    usable = (inside[2] >= 2) & (outside[2] >= 2)
    score = _log_normal(logit[target], *inside[:2]) - _log_normal(
        logit[target], *outside[:2]
    )
    return np.where(usable, score, 0.0), usable


def offline_scores(
    answer: np.ndarray, logit: np.ndarray, member: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how far answers lie above those of models without the example (offline).

    Args:
      answer: float ``[examples]``, confidence of the model that is attacked.
      logit: float ``[shadows, examples]``.
      member: bool ``[shadows, examples]``, which examples each shadow was trained on.

    Returns:
      Scores ``[examples]`` in standard deviations, and which of them count.
    """
    mean, spread, count = _fit(logit, ~member)
    return (answer - mean) / spread, count >= 2


def _fit(logit: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Returns mean by example, one standard deviation for all, and counts."""
    count = chosen.sum(axis=0)
    mean = np.where(chosen, logit, 0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(chosen, (logit - mean) ** 2, 0).sum(axis=0)
    freedom = np.maximum(count - 1, 0).sum()
    spread = float(np.sqrt(squares.sum() / max(freedom, 1)))
    # Equal models say nothing; any positive spread leaves their scores equal.
    return mean, max(spread, 1e-9), count


def _log_normal(value: np.ndarray, mean: np.ndarray, spread: float) -> np.ndarray:
    return -0.5 * ((value - mean) / spread) ** 2 - np.log(spread)
