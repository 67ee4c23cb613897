"""Scores of a detector on the host, in float64: what reports are made of.

All functions take ``score [rows]`` (higher is more suspect) and ``label [rows]`` of 0
and 1, and raise ``ValueError`` for input that has no answer.
"""

from typing import NamedTuple

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


def per_row(values: ArrayLike, rows: int, *, name: str) -> np.ndarray:
    """Returns one value for each row as an array.

    Args:
      values: ``[rows]``.
      rows: how many there must be.
      name: what they are, for the message.

    Raises:
      ValueError: for another shape.
    """
    array = np.asarray(values)
    if array.shape != (rows,):
        raise ValueError(f"{name} {array.shape} must fit scores ({rows},)")
    return array


def auroc(score: ArrayLike, label: ArrayLike) -> float:
    """Returns the probability that a positive outranks a negative, ties half."""
    true, false = ranking_counts(*checked(score, label))
    width = np.diff(false, prepend=0)
    height = true + np.concatenate([[0], true[:-1]])
    return float(np.sum(width * height) / (2 * true[-1] * false[-1]))


def auprc(score: ArrayLike, label: ArrayLike) -> float:
    """Returns the average precision: precision summed over steps of recall."""
    true, false = ranking_counts(*checked(score, label))
    step = np.diff(true, prepend=0) / true[-1]
    return float(np.sum(step * true / (true + false)))


def ranking_counts(
    score: np.ndarray, positive: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many positives and negatives lie at or above each distinct score.

    Args:
      score: float64 ``[rows]`` without NaN.
      positive: bool ``[rows]``.

    Returns:
      Two float64 vectors ``[distinct scores]``, from the highest score to the lowest.
    """
    order = np.argsort(-score, kind="stable")
    falling = score[order]
    last = np.append(falling[1:] != falling[:-1], True)
    true = np.cumsum(positive[order], dtype=np.float64)[last]
    return true, np.flatnonzero(last) + 1.0 - true


def brier(probability: ArrayLike, label: ArrayLike) -> float:
    """Returns the mean squared difference of probability and label."""
    probabilities, positive = probabilities_of(probability, label)
    return float(np.mean((probabilities - positive) ** 2))


class CalibrationBins(NamedTuple):
    """Bins of rows of neighbouring probabilities, from the lowest.

    Attributes:
      predicted: float64 ``[bins]``, the mean probability of the rows of a bin.
      observed: float64 ``[bins]``, their share of positives.
      rows: int64 ``[bins]``.
    """

    predicted: np.ndarray
    observed: np.ndarray
    rows: np.ndarray


def calibration_bins(
    probability: ArrayLike, label: ArrayLike, *, bins: int = 15
) -> CalibrationBins:
    """Returns bins of equal mass, as a reliability diagram shows them.

    Rows are ordered by probability and cut into bins whose sizes differ by one at
    most. Rows of one probability that fall into two bins count in both with their
    common share of positives, so that the order of the rows does not matter.

    Args:
      probability: ``[rows]`` in [0, 1].
      label: ``[rows]``.
      bins: number of bins, 1 or more; fewer where there are fewer rows.

    Raises:
      ValueError: for ``bins`` below 1 or probabilities outside [0, 1].
    """
    probabilities, positive = probabilities_of(probability, label)
    values, group = np.unique(probabilities, return_inverse=True)
    share = np.bincount(group, positive) / np.bincount(group)
    order = np.sort(group)
    edges = bin_edges(len(order), bins)
    sizes = np.diff(edges)
    return CalibrationBins(
        np.add.reduceat(values[order], edges[:-1]) / sizes,
        np.add.reduceat(share[order], edges[:-1]) / sizes,
        sizes,
    )


def bin_edges(rows: int, bins: int) -> np.ndarray:
    """Returns where bins of equal mass begin and end among ordered rows, int64.

    Args:
      rows: how many there are, 1 or more.
      bins: number of bins, 1 or more; fewer where there are fewer rows.

    Raises:
      ValueError: for ``bins`` below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, not {bins}")
    return np.linspace(0, rows, min(bins, rows) + 1).astype(np.int64)


def calibration_error(
    probability: ArrayLike, label: ArrayLike, *, bins: int = 15
) -> float:
    """Returns the expected calibration error over bins of equal mass.

    It is the mean over rows of the distance between their bin's mean probability and
    its share of positives.

    Args:
      probability: ``[rows]`` in [0, 1].
      label: ``[rows]``.
      bins: as in ``calibration_bins``.

    Raises:
      ValueError: for ``bins`` below 1 or probabilities outside [0, 1].
    """
    binned = calibration_bins(probability, label, bins=bins)
    gap = np.abs(binned.predicted - binned.observed)
    return float(np.sum(gap * binned.rows) / np.sum(binned.rows))


class ClientRankings(NamedTuple):
    """How well each client's rows are ranked, one entry for each client.

    Attributes:
      auroc: float64 ``[clients]``; 0 where not ranked, never NaN.
      auprc: float64 ``[clients]``; 0 where not ranked, never NaN.
      ranked: bool ``[clients]``, whether the client holds both classes.
      rows: int64 ``[clients]``.
      positives: int64 ``[clients]``.
    """

    auroc: np.ndarray
    auprc: np.ndarray
    ranked: np.ndarray
    rows: np.ndarray
    positives: np.ndarray


def client_rankings(
    score: ArrayLike, label: ArrayLike, client: ArrayLike, *, num_clients: int
) -> ClientRankings:
    """Returns AUROC and AUPRC of every client's own rows; all rows are sorted once.

    Args:
      score: ``[rows]``.
      label: ``[rows]``.
      client: ``[rows]``, integers in [0, num_clients).
      num_clients: clients, those without rows included.

    Raises:
      ValueError: for shapes that differ, NaN or a client outside the range.
    """
    scores, positive = checked(score, label, classes=1)
    clients = per_row(client, len(scores), name="clients")
    if clients.min() < 0 or clients.max() >= num_clients:
        raise ValueError(
            f"clients must lie in [0, {num_clients}), not in "
            f"[{clients.min()}, {clients.max()}]"
        )
    rows = np.bincount(clients, minlength=num_clients)
    positives = np.bincount(clients[positive], minlength=num_clients)
    negatives = rows - positives
    order = np.lexsort((-scores, clients))
    falling, owner = scores[order], clients[order]
    change = (falling[1:] != falling[:-1]) | (owner[1:] != owner[:-1])
    last = np.flatnonzero(np.append(change, True))
    owner = owner[last]
    true = np.cumsum(positive[order])[last]
    false = last + 1 - true
    # Counts over all rows become counts inside the client.
    true = (true - (np.cumsum(positives) - positives)[owner]).astype(np.float64)
    false = (false - (np.cumsum(negatives) - negatives)[owner]).astype(np.float64)
    inside = np.append(False, owner[1:] == owner[:-1])
    true_before = np.where(inside, np.append(0, true[:-1]), 0)
    false_before = np.where(inside, np.append(0, false[:-1]), 0)
    ranked = (positives > 0) & (negatives > 0)
    pairs = np.where(ranked, 2.0 * positives * negatives, 1)
    area = np.bincount(
        owner, (false - false_before) * (true + true_before), num_clients
    )
    precision = np.bincount(
        owner, (true - true_before) * true / (true + false), num_clients
    )
    return ClientRankings(
        np.where(ranked, area / pairs, 0),
        np.where(ranked, precision / np.where(ranked, positives, 1), 0),
        ranked,
        rows,
        positives,
    )


class Spread(NamedTuple):
    """How a metric is spread over the clients that have it.

    Attributes:
      mean: of the ranked clients, each counted once.
      worst: the lowest.
      worst_decile: the mean of the lowest tenth, rounded down, of at least one client.
      std: standard deviation over clients (of a population, not of a sample).
    """

    mean: float
    worst: float
    worst_decile: float
    std: float


def spread(values: ArrayLike) -> Spread | None:
    """Returns how values, one for each ranked client, are spread; None for none."""
    ordered = np.sort(np.asarray(values, np.float64))
    if not len(ordered):
        return None
    lowest = ordered[: max(1, len(ordered) // 10)]
    return Spread(
        float(ordered.mean()),
        float(ordered[0]),
        float(lowest.mean()),
        float(ordered.std()),
    )


def client_spread(
    score: ArrayLike, label: ArrayLike, client: ArrayLike
) -> dict[str, float]:
    """Returns how the AUROC is spread over clients.

    Clients that hold one class only have no AUROC; they are left out and counted.

    Args:
      score: ``[rows]``.
      label: ``[rows]``.
      client: ``[rows]``, any integers.

    Returns:
      ``mean_client_auroc``, ``worst_client_auroc``, ``worst_decile_client_auroc`` and
      ``std_client_auroc`` (absent if no client has both classes), ``ranked_clients``
      and ``excluded_clients``.

    Raises:
      ValueError: for shapes that differ or NaN.
    """
    names, number = np.unique(np.asarray(client), return_inverse=True)
    rankings = client_rankings(
        score, label, number.reshape(np.shape(client)), num_clients=len(names)
    )
    ranked = int(rankings.ranked.sum())
    result = {
        "ranked_clients": float(ranked),
        "excluded_clients": float(len(names) - ranked),
    }
    over = spread(rankings.auroc[rankings.ranked])
    if over is not None:
        result |= {f"{name}_client_auroc": v for name, v in over._asdict().items()}
    return result


def probabilities_of(
    probability: ArrayLike, label: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what ``checked`` returns, of one class or two, for scores in [0, 1].

    Raises:
      ValueError: as ``checked``, and for probabilities outside [0, 1].
    """
    probabilities, positive = checked(probability, label, classes=1)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(
            "probabilities must lie in [0, 1], not in "
            f"[{probabilities.min():.4g}, {probabilities.max():.4g}]: apply a sigmoid "
            "to logits first"
        )
    return probabilities, positive
