"""Figures of parts of the rows: by client, by type of attack, by what was observed.

All of them are taken at the thresholds of the whole; a part has none of its own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedjax_health.metrics import host
from fedjax_health.metrics.delay import find_episodes
from fedjax_health.metrics.summary import Scored, Thresholds
from fedjax_health.metrics.threshold import confusion, f1


def client_figures(
    test: Scored,
    thresholds: Thresholds,
    *,
    client: ArrayLike,
    names: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Returns the figures of every client and how they are spread.

    Args:
      test: rows that are measured.
      thresholds: where alarms are given.
      client: ``[rows]``, indices into the names, or any integers without names.
      names: of all clients; those without rows are listed and excluded.

    Returns:
      A list with ``client``, ``rows``, ``positives``, ``auroc`` and ``auprc`` (None for
      one class), ``f1`` (0 without alarms and positives) and ``achieved_far`` (None
      without a delay threshold or normal rows); and for ``auroc`` and ``auprc``
      ``mean``, ``worst``, ``worst_decile``, ``std`` over the ranked clients (None if
      there are none) with the numbers ``ranked`` and ``excluded``.

    Raises:
      ValueError: for NaN, shapes that differ or a client without a name.
    """
    score, positive = host.checked(test.score, test.label, name="test", classes=1)
    number, names = _named(client, names, len(score), what="client")
    rankings = host.client_rankings(score, positive, number, num_clients=len(names))
    found = score >= thresholds.threshold
    hits = np.bincount(number[found & positive], minlength=len(names))
    alarms = np.bincount(number[found], minlength=len(names))
    f1 = 2 * hits / np.maximum(alarms + rankings.positives, 1)
    normal = rankings.rows - rankings.positives
    far = np.zeros(len(names))
    known = np.zeros(len(names), bool)
    if thresholds.delay_threshold is not None:
        false = (score >= thresholds.delay_threshold) & ~positive
        far = np.bincount(number[false], minlength=len(names)) / np.maximum(normal, 1)
        known = normal > 0
    listed = [
        {
            "client": name,
            "rows": int(rankings.rows[i]),
            "positives": int(rankings.positives[i]),
            "auroc": float(rankings.auroc[i]) if rankings.ranked[i] else None,
            "auprc": float(rankings.auprc[i]) if rankings.ranked[i] else None,
            "f1": float(f1[i]),
            "achieved_far": float(far[i]) if known[i] else None,
        }
        for i, name in enumerate(names)
    ]
    ranked = rankings.ranked
    return listed, {
        "auroc": _spread(rankings.auroc[ranked], excluded=int(np.sum(~ranked))),
        "auprc": _spread(rankings.auprc[ranked], excluded=int(np.sum(~ranked))),
    }


def attack_figures(
    test: Scored,
    thresholds: Thresholds,
    *,
    attack: ArrayLike,
    window: int,
    names: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Returns the figures of every type of attack among the rows.

    Ranks are those of the rows of a type against all normal rows. Types whose share of
    the rows differs have different AUPRC for equal skill: compare AUROC and recall.

    Args:
      test: rows that are measured.
      thresholds: where alarms are given.
      attack: ``[rows]``, 0 on normal rows; an episode is of the type of its onset.
      window: the detector's window in steps; see ``metrics.delay``.
      names: that ``attack`` is an index into, the first for normal rows.

    Returns:
      For each type with rows ``attack``, ``rows``, ``auroc`` and ``auprc`` (None
      without normal rows), ``recall`` at the threshold, and for streams ``episodes``,
      ``missed_episodes`` and ``mean_delay`` in steps (None for records; the last also
      for a type at whose rows no episode begins).

    Raises:
      ValueError: for NaN, shapes that differ, an attack without a name or a normal row
        with an attack.
    """
    score, positive = host.checked(test.score, test.label, name="test", classes=1)
    kind, names = _kinds(attack, names, positive)
    found = score >= thresholds.threshold
    normal = score[~positive]
    episodes = None
    if thresholds.delay_threshold is not None and test.segment is not None:
        alarm = score >= thresholds.delay_threshold
        episodes = find_episodes(alarm, positive, test.segment, window=window)
    listed = []
    for index in np.unique(kind[positive & (kind > 0)]):
        here = positive & (kind == index)
        figures: dict[str, Any] = {
            "attack": names[index],
            "rows": int(here.sum()),
            "auroc": None,
            "auprc": None,
            "recall": float(found[here].mean()),
            "episodes": None,
            "missed_episodes": None,
            "mean_delay": None,
        }
        if len(normal):
            both = np.append(normal, score[here])
            label = np.arange(len(both)) >= len(normal)
            figures["auroc"] = host.auroc(both, label)
            figures["auprc"] = host.auprc(both, label)
        if episodes is not None:
            of_kind = kind[episodes.onset] == index
            figures["episodes"] = int(of_kind.sum())
            figures["missed_episodes"] = int(episodes.missed[of_kind].sum())
            if of_kind.any():
                figures["mean_delay"] = float(episodes.delay[of_kind].mean())
        listed.append(figures)
    return listed


def pattern_figures(
    test: Scored,
    thresholds: Thresholds,
    *,
    present: ArrayLike,
    modalities: Sequence[str],
) -> list[dict[str, Any]]:
    """Returns the figures of the rows that have the same modalities.

    Args:
      test: rows that are measured.
      thresholds: where alarms are given.
      present: bool ``[rows, modalities]``.
      modalities: their names.

    Returns:
      For each pattern with rows ``pattern``, ``rows``, ``positives``, ``auroc``,
      ``auprc`` and ``f1`` (None for rows of one class), in the order of ``patterns``.

    Raises:
      ValueError: for NaN or shapes that differ.
    """
    score, positive = host.checked(test.score, test.label, name="test", classes=1)
    if len(np.asarray(present)) != len(score):
        raise ValueError(
            f"present has {len(np.asarray(present))} rows, scores have {len(score)}"
        )
    number, names = patterns(present, modalities)
    listed = []
    for index, name in enumerate(names):
        here = number == index
        label, scores = positive[here], score[here]
        both = 0 < label.sum() < len(label)
        listed.append(
            {
                "pattern": name,
                "rows": len(label),
                "positives": int(label.sum()),
                "auroc": host.auroc(scores, label) if both else None,
                "auprc": host.auprc(scores, label) if both else None,
                "f1": f1(confusion(scores, label, threshold=thresholds.threshold))
                if both
                else None,
            }
        )
    return listed


def patterns(
    present: ArrayLike, modalities: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Returns each row's pattern of availability, and the names of the patterns.

    Those with more modalities come first, then those with earlier ones. A pattern is
    called "traffic + vitals", "vitals only" or "none"; that of the only modality there
    is by its name alone.

    Args:
      present: bool ``[rows, modalities]``.
      modalities: their names.

    Raises:
      ValueError: for another number of modalities.
    """
    flags = np.asarray(present, bool)
    if flags.ndim != 2 or flags.shape[1] != len(modalities):
        raise ValueError(
            f"present has shape {flags.shape}: it must be [rows, {len(modalities)}]"
        )
    found, number = np.unique(flags, axis=0, return_inverse=True)
    order = sorted(
        range(len(found)), key=lambda i: (-int(found[i].sum()), *(~found[i]).tolist())
    )
    place = np.empty(len(found), np.int64)
    place[order] = np.arange(len(found))
    names = []
    for i in order:
        has = [
            name
            for name, is_there in zip(modalities, found[i], strict=True)
            if is_there
        ]
        lone = len(has) == 1 < len(modalities)
        names.append(f"{has[0]} only" if lone else " + ".join(has) or "none")
    return place[number.reshape(-1)], names


def _spread(values: np.ndarray, *, excluded: int) -> dict[str, Any]:
    over = host.spread(values)
    figures = dict.fromkeys(host.Spread._fields) if over is None else over._asdict()
    return {**figures, "ranked": len(values), "excluded": excluded}


def _named(values, names, rows, *, what) -> tuple[np.ndarray, list[str]]:
    """Returns indices into names; without names, each number is one."""
    number = host.per_row(values, rows, name=f"{what}s")
    if not names:
        found, number = np.unique(number, return_inverse=True)
        return number, [str(value) for value in found]
    if number.min() < 0 or number.max() >= len(names):
        raise ValueError(
            f"{what}s must be indices into {len(names)} names, not in "
            f"[{number.min()}, {number.max()}]"
        )
    return number, [str(name) for name in names]


def _kinds(attack, names, positive) -> tuple[np.ndarray, list[str]]:
    kind = host.per_row(attack, len(positive), name="attacks")
    if not names:
        names = [str(value) for value in range(int(kind.max()) + 1)]
    kind, names = _named(kind, names, len(positive), what="attack")
    if (kind[~positive] > 0).any():
        row = int(np.flatnonzero(~positive & (kind > 0))[0])
        raise ValueError(f"row {row} is normal by its label and {names[kind[row]]!r}")
    return kind, names
