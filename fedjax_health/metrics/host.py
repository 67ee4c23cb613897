"""Scores of a detector on the host, in float64: what reports are made of.

All functions take ``score [rows]`` (higher is more suspect) and ``label [rows]`` of 0
and 1, and raise ``ValueError`` for input that has no answer.
"""

import numpy as np
from numpy.typing import ArrayLike


def checked(
    score: ArrayLike, label: ArrayLike, *, name: str = "", classes: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores as float64 and labels as bool, after looking at them.

    Args:
      score: ``[rows]``.
      label: ``[rows]``.
      name: which rows they are, for the message.
      classes: how many classes must be present.

    Raises:
      ValueError: for shapes that differ, no rows, NaN, labels other than 0 and 1, or
        one class where both are needed.
    """
    where = f" of the {name} rows" if name else ""
    scores = np.asarray(score, np.float64)
    labels = np.asarray(label)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape}{where} must be two "
            "vectors of one length"
        )
    if not len(scores):
        raise ValueError(f"there are no scores{where}")
    if np.isnan(scores).any():
        raise ValueError(
            f"{int(np.isnan(scores).sum())} scores{where} are NaN, the first in row "
            f"{int(np.flatnonzero(np.isnan(scores))[0])}"
        )
    positive = labels == 1
    if not (positive | (labels == 0)).all():
        raise ValueError(f"labels{where} must be 0 or 1")
    if classes == 2 and positive.all() | (~positive).all():
        raise ValueError(
            f"all labels{where} are {int(positive[0])}: this metric needs both classes"
        )
    return scores, positive


def auroc(score: ArrayLike, label: ArrayLike) -> float:
    """Returns the probability that a positive outranks a negative, ties half."""
    true, false = _curve(*checked(score, label))
    width = np.diff(false, prepend=0)
    height = true + np.concatenate([[0], true[:-1]])
    return float(np.sum(width * height) / (2 * true[-1] * false[-1]))


def auprc(score: ArrayLike, label: ArrayLike) -> float:
    """Returns the average precision: precision summed over steps of recall."""
    true, false = _curve(*checked(score, label))
    step = np.diff(true, prepend=0) / true[-1]
    return float(np.sum(step * true / (true + false)))


def brier(probability: ArrayLike, label: ArrayLike) -> float:
    """Returns the mean squared difference of probability and label."""
    probabilities, positive = _probabilities(probability, label)
    return float(np.mean((probabilities - positive) ** 2))


def calibration_error(
    probability: ArrayLike, label: ArrayLike, *, bins: int = 15
) -> float:
    """Returns the expected calibration error over bins of equal mass.

    Rows are ordered by probability and cut into bins whose sizes differ by one at
    most; the error is the mean over rows of the distance between their bin's mean
    probability and its share of positives. Rows of one probability that fall into two
    bins count in both with their common share of positives, so that the order of the
    rows does not matter.

    Args:
      probability: ``[rows]`` in [0, 1].
      label: ``[rows]``.
      bins: number of bins, 1 or more; fewer where there are fewer rows.

    Raises:
      ValueError: for ``bins`` below 1 or probabilities outside [0, 1].
    """
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, not {bins}")
    probabilities, positive = _probabilities(probability, label)
    values, group = np.unique(probabilities, return_inverse=True)
    share = np.bincount(group, positive) / np.bincount(group)
    order = np.sort(group)
    gap = values[order] - share[order]
    rows = len(order)
    edges = np.linspace(0, rows, min(bins, rows) + 1).astype(np.int64)
    return float(np.abs(np.add.reduceat(gap, edges[:-1])).sum() / rows)


def client_auroc(
    score: ArrayLike, label: ArrayLike, client: ArrayLike
) -> dict[str, float]:
    """Returns how the AUROC is spread over clients.

    Clients that hold one class only have no AUROC; they are left out and counted.

    Args:
      score: ``[rows]``.
      label: ``[rows]``.
      client: ``[rows]``, any integers.

    Returns:
      ``mean_client_auroc`` and ``worst_client_auroc`` (both absent if no client has
      both classes), ``ranked_clients`` and ``excluded_clients``.

    Raises:
      ValueError: for shapes that differ or NaN.
    """
    scores, positive = checked(score, label, classes=1)
    clients = np.asarray(client)
    if clients.shape != scores.shape:
        raise ValueError(f"clients {clients.shape} must fit scores {scores.shape}")
    order = np.argsort(clients, kind="stable")
    starts = np.flatnonzero(np.diff(clients[order], prepend=clients[order][0] - 1))
    values = []
    excluded = 0
    for rows in np.split(order, starts[1:]):
        here = positive[rows]
        if here.all() or not here.any():
            excluded += 1
        else:
            values.append(auroc(scores[rows], here))
    spread = {
        "ranked_clients": float(len(values)),
        "excluded_clients": float(excluded),
    }
    if values:
        spread["mean_client_auroc"] = float(np.mean(values))
        spread["worst_client_auroc"] = float(np.min(values))
    return spread


def _curve(scores, positive):
    """Returns counts of positives and negatives at or above each distinct score."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.append(falling[1:] != falling[:-1], True)
    true = np.cumsum(positive[order], dtype=np.float64)[last]
    return true, np.flatnonzero(last) + 1.0 - true


def _probabilities(probability, label):
    probabilities, positive = checked(probability, label, classes=1)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(
            "probabilities must lie in [0, 1], not in "
            f"[{probabilities.min():.4g}, {probabilities.max():.4g}]: apply a sigmoid "
            "to logits first"
        )
    return probabilities, positive
