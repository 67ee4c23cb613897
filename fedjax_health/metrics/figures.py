"""Everything that a report shows of one detector, as plain numbers for JSON.

What each figure means is written in ``docs/metrics.md``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedjax_health.metrics import curves, host
from fedjax_health.metrics.delay import alarms_per_day, delay_curve, detection_delay
from fedjax_health.metrics.groups import (
    attack_figures,
    client_figures,
    pattern_figures,
)
from fedjax_health.metrics.intervals import blocks, bootstrap_intervals
from fedjax_health.metrics.summary import (
    METRICS,
    Scored,
    Thresholds,
    choose_thresholds,
    measure_scores,
)
from fedjax_health.metrics.threshold import confusion, threshold_at_far

FORMAT = 1
# Fewer patients with attacks than this do not carry an interval; blocks of rows do.
PATIENTS = 20
BLOCK = 60


def figures(
    validation: Scored,
    test: Scored,
    *,
    window: int,
    false_alarm_rate: float = 0.01,
    client: ArrayLike | None = None,
    client_names: Sequence[str] = (),
    attack: ArrayLike | None = None,
    attack_names: Sequence[str] = (),
    patient: ArrayLike | None = None,
    entity: ArrayLike | None = None,
    step_seconds: float | None = None,
    present: ArrayLike | None = None,
    modalities: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
    oracle: ArrayLike | None = None,
) -> dict[str, Any]:
    """Returns the figures of a detector with thresholds from its validation rows.

    Args:
      validation: rows of both classes that thresholds are chosen on.
      test: rows that are measured.
      window: the detector's window in steps; see ``metrics.delay``.
      false_alarm_rate: the validation rate at which alarms of streams are given.
      client: as in ``figures_at``, like all that follow.
      client_names: names of the clients.
      attack: types of attack.
      attack_names: names of the types.
      patient: persons.
      entity: streams or records that belong together.
      step_seconds: time between two rows of an entity.
      present: which modalities rows have.
      modalities: their names.
      resamples: of the intervals.
      seed: of the intervals and of the random scores.
      oracle: log-odds of an observer that knows how the data was generated.

    Returns:
      What ``figures_at`` returns.

    Raises:
      ValueError: as ``figures_at``, and for validation rows of one class.
    """
    chosen = choose_thresholds(
        validation,
        false_alarm_rate=false_alarm_rate,
        streams=test.segment is not None,
    )
    return figures_at(
        test,
        threshold=chosen.threshold,
        delay_threshold=chosen.delay_threshold,
        window=window,
        reference=validation,
        client=client,
        client_names=client_names,
        attack=attack,
        attack_names=attack_names,
        patient=patient,
        entity=entity,
        step_seconds=step_seconds,
        present=present,
        modalities=modalities,
        resamples=resamples,
        seed=seed,
        oracle=oracle,
    )


def figures_at(
    test: Scored,
    *,
    threshold: float,
    delay_threshold: float | None = None,
    window: int,
    reference: Scored | None = None,
    client: ArrayLike | None = None,
    client_names: Sequence[str] = (),
    attack: ArrayLike | None = None,
    attack_names: Sequence[str] = (),
    patient: ArrayLike | None = None,
    entity: ArrayLike | None = None,
    step_seconds: float | None = None,
    present: ArrayLike | None = None,
    modalities: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
    oracle: ArrayLike | None = None,
) -> dict[str, Any]:
    """Returns the figures of a detector at thresholds that are given.

    Args:
      test: rows that are measured, of one class or two. Without segments they are
        records: without delays and without a delay threshold.
      threshold: where F1, accuracy and MCC are taken.
      delay_threshold: where false alarms and delays of streams are taken.
      window: the detector's window in steps; see ``metrics.delay``.
      reference: validation rows that the thresholds of the delay curve are taken from;
        None takes them from the rows that are measured, for comparison only.
      client: ``[rows]``, indices into the names, or any integers without names.
      client_names: names of the clients, those without rows included.
      attack: ``[rows]``, 0 on normal rows.
      attack_names: that ``attack`` is an index into, the first for normal rows.
      patient: ``[rows]``, equal for rows of one person; only where the data names
        persons. See ``bootstrap_units``.
      entity: ``[rows]``, equal for records of one thing inside a client; they are
        drawn together where there are neither streams nor patients.
      step_seconds: time between two rows of an entity, for false alarms a day.
      present: bool ``[rows, modalities]``, which modalities were observed.
      modalities: their names.
      resamples: how many of the intervals; 0 for no intervals.
      seed: of the intervals and of the random scores.
      oracle: float ``[rows]``, log-odds of an attack by an observer that knows how the
        data was generated. It is measured at 0, and its delays at the false-alarm rate
        that the detector achieved.

    Returns:
      The content of ``figures.json``; None stands for what has no answer.

    Raises:
      ValueError: for NaN, scores outside [0, 1], or shapes that differ.
    """
    score, label = host.probabilities_of(test.score, test.label)
    rows = len(score)
    streams = test.segment is not None and delay_threshold is not None
    thresholds = Thresholds(float(threshold), delay_threshold if streams else None)
    measured = measure_scores(test, thresholds, window=window)
    normal = rows - int(label.sum())
    alarm_at = (
        thresholds.threshold
        if thresholds.delay_threshold is None
        else thresholds.delay_threshold
    )
    false_alarms = int(np.sum((score >= alarm_at) & ~label))
    far = false_alarms / normal if normal else None

    clients, spread = [], {name: _no_spread() for name in ("auroc", "auprc")}
    if client is not None:
        clients, spread = client_figures(
            test, thresholds, client=client, names=client_names
        )
    attacks = []
    if attack is not None:
        attacks = attack_figures(
            test, thresholds, attack=attack, window=window, names=attack_names
        )
    found_patterns = []
    if present is not None:
        found_patterns = pattern_figures(
            test, thresholds, present=present, modalities=modalities
        )
    unit, unit_name = bootstrap_units(
        label,
        segment=test.segment,
        patient=patient,
        entity=entity,
        client=client,
        block=max(BLOCK, 3 * window),
    )
    bounds, left_out = {}, 0
    if resamples:
        drawn = bootstrap_intervals(
            score,
            label,
            unit,
            threshold=thresholds.threshold,
            delay_threshold=thresholds.delay_threshold,
            segment=test.segment,
            window=window,
            resamples=resamples,
            seed=seed,
        )
        bounds, left_out = drawn.bounds, drawn.left_out
    counts = confusion(score, label, threshold=thresholds.threshold)
    return {
        "format": FORMAT,
        "rows": rows,
        "positives": rows - normal,
        "prevalence": measured["prevalence"],
        "threshold": thresholds.threshold,
        "delay_threshold": thresholds.delay_threshold,
        "metrics": _shown(measured, streams=streams, normal=normal),
        "details": {n: value for n, value in measured.items() if n not in METRICS},
        "intervals": {name: list(bounds[name]) for name in METRICS if name in bounds},
        "interval_unit": unit_name,
        "resamples": resamples,
        "resamples_left_out": left_out,
        "confusion": counts._asdict(),
        "curves": {
            **_curves(score, label),
            "delay": _delay_curve(test, reference, window, step_seconds)
            if streams
            else None,
        },
        "clients": clients,
        "client_spread": spread,
        "attacks": attacks,
        "patterns": found_patterns,
        "control": {
            "random": _random_control(test, thresholds, far, window=window, seed=seed)
        },
        "false_alarms": {
            "per_1000_rows": 1000 * far if far is not None else None,
            "per_entity_day": alarms_per_day(far, step_seconds)
            if streams and far is not None and step_seconds is not None
            else None,
        },
        "oracle": None
        if oracle is None
        else _oracle(test, oracle, far if streams else None, window=window),
    }


def bootstrap_units(
    label: ArrayLike,
    *,
    segment: ArrayLike | None = None,
    patient: ArrayLike | None = None,
    entity: ArrayLike | None = None,
    client: ArrayLike | None = None,
    block: int = BLOCK,
) -> tuple[np.ndarray, str]:
    """Returns the units that a bootstrap draws, and what they are called.

    Patients, where the data names them and at least 20 of them hold positives: devices
    of one patient share its attacks. Otherwise blocks of consecutive rows of a stream.
    Records belong to their patients however few there are, else to their entities, and
    stand for themselves where they have neither.

    Args:
      label: ``[rows]``, 0 or 1.
      segment: ``[rows]``; equal neighbours belong to one stream. None for records.
      patient: ``[rows]``, equal for rows of one person, or None.
      entity: ``[rows]``, equal for records of one thing inside a client, or None.
      client: ``[rows]``, or None for one.
      block: the least rows of a block.

    Raises:
      ValueError: for shapes that differ.
    """
    positive = np.asarray(label) == 1
    rows = len(positive)
    if patient is not None:
        persons = host.per_row(patient, rows, name="patients")
        if segment is None or len(np.unique(persons[positive])) >= PATIENTS:
            return np.unique(persons, return_inverse=True)[1], "patients"
    if segment is not None:
        segments = host.per_row(segment, rows, name="segments")
        return blocks(segments, block), f"blocks of {block} rows"
    if entity is not None:
        things = host.per_row(entity, rows, name="entities")
        owner = np.zeros(rows) if client is None else client
        pairs = np.stack([host.per_row(owner, rows, name="clients"), things], axis=1)
        found, unit = np.unique(pairs, axis=0, return_inverse=True)
        if len(found) < rows:
            return unit.reshape(-1), "entities"
    return np.arange(rows), "records"


def _shown(measured, *, streams, normal) -> dict[str, float | None]:
    """Returns the metrics that go with the data, None where there is no answer."""
    of_streams = {"mean_delay", "median_delay", "missed_episodes", "achieved_far"}
    shown: dict[str, float | None] = {
        name: measured.get(name)
        for name in METRICS
        if streams or name not in of_streams
    }
    if streams and not normal:
        shown["achieved_far"] = None
    return shown


def _no_spread() -> dict[str, Any]:
    return {**dict.fromkeys(host.Spread._fields), "ranked": 0, "excluded": 0}


def _curves(score, label) -> dict[str, dict[str, list]]:
    roc, steps = curves.RocCurve(*_EMPTY), curves.PrecisionRecallCurve(*_EMPTY)
    if 0 < label.sum() < len(label):
        roc = curves.roc_curve(score, label)
        steps = curves.precision_recall_curve(score, label)
    return {
        "roc": _lists(roc),
        "pr": _lists(steps),
        "calibration": _lists(host.calibration_bins(score, label)),
    }


_EMPTY = (np.zeros(0), np.zeros(0))


def _lists(record) -> dict[str, list]:
    return {name: values.tolist() for name, values in record._asdict().items()}


def _delay_curve(test, reference, window, step_seconds) -> dict[str, Any] | None:
    curve = delay_curve(
        *test,
        window=window,
        reference=None if reference is None else reference[:2],
    )
    if curve is None:
        return None
    lists = _lists(curve)
    del lists["threshold"]
    a_day = None
    if step_seconds is not None:
        a_day = [alarms_per_day(far, step_seconds) for far in lists["achieved_far"]]
    return {**lists, "false_alarms_per_entity_day": a_day}


def _random_control(test, thresholds, far, *, window, seed) -> dict[str, float | None]:
    """Returns what uniform random scores reach with as many alarms as the detector.

    F1 is theirs with alarms on the same share of rows, the delay with the same share
    of false alarms among normal rows: what is left between the two is skill.
    """
    score, label = host.checked(test.score, test.label, classes=1)
    share = float(np.mean(score >= thresholds.threshold))
    streams = thresholds.delay_threshold is not None
    rate = (1 - far) if streams and far is not None else None
    # A stream of its own, apart from that of the resamples.
    uniform = np.random.default_rng([seed, 1]).random(len(score))
    measured = measure_scores(
        Scored(uniform, label, test.segment), Thresholds(1 - share, rate), window=window
    )
    names = ("auroc", "auprc", "f1", "mean_delay", "achieved_far")
    return {name: measured.get(name) for name in names}


def _oracle(test, oracle, far, *, window) -> dict[str, float]:
    log_odds = host.per_row(oracle, len(np.asarray(test.score)), name="oracle")
    exact = log_odds.astype(np.float64)
    probability = np.exp(-np.logaddexp(0, -exact))
    # Ranks and alarms are those of the log-odds: near 1, probabilities run together.
    measured = measure_scores(
        Scored(probability, test.label, None), Thresholds(0.5), window=window
    )
    if "auroc" in measured:
        measured["auroc"] = host.auroc(exact, test.label)
        measured["auprc"] = host.auprc(exact, test.label)
    if far is not None:
        # At a rate of 1, which no threshold above a row can give, all rows are alarms.
        at = threshold_at_far(exact, test.label, rate=far) if far < 1 else -np.inf
        measured |= detection_delay(
            exact, test.label, test.segment, threshold=at, window=window
        )
    return {name: measured[name] for name in METRICS if name in measured}
