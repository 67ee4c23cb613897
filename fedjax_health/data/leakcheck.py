"""What gives the label away without detecting anything.

Five questions, asked of the raw data and of its split before anything is trained. Does
one column separate the label by itself? Do rows repeat? Do test rows occur in training
to the bit? Can a model tell the label from client, entity, order and time alone? Is the
label the same for all that a client has? None of the answers changes the data or stops
a run: a column that separates the classes may be honest, and only a person can tell.

Everything is drawn from a seed, and large data are looked at in samples.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_health.data.schema import (
    Dataset,
    examples_of,
    last_rows,
    patients_of,
    segment_ids,
    segment_starts,
)
from fedjax_health.data.splits import Part

# Real signals of an attack seldom order nearly every pair of rows; addresses do.
COLUMN_LIMIT = 0.98
# Coincidence of continuous measurements is rarer than this.
DUPLICATE_LIMIT = 0.01
# Split by time, identifiers and time reach .50 on WUSTL-EHMS and .54 on the embedded
# data, whose hospitals differ in prevalence; with rows of WUSTL dealt at random .90.
IDENTIFIER_LIMIT = 0.65
# More than half of the examples: knowing the client is then mostly knowing the label.
SINGLE_CLASS_LIMIT = 0.5

# Examples on which columns are looked at, or trees are trained, or tested.
_SAMPLE = 20_000
_FOLDS = 5
# Values of a column that are told apart; of more, as many quantiles.
_BINS = 64
_CHUNK = 65_536
_SECONDS_OF_DAY = 86_400.0

_STREAMS = "keep time and ids out of the features, and split by time or patient"
# Records of which each stands alone have nothing to be split by.
_RECORDS = (
    "the order of the file or who holds a record goes with the label: keep ids and row "
    "numbers out of the features, and trust figures inside each client more than those "
    "over all"
)


class Check(NamedTuple):
    """The answer to one question.

    Attributes:
      check: its name.
      value: what was measured, or None where it cannot be.
      limit: above which the check fails, or None.
      passed: whether there is nothing to warn of.
      message: one line for a person.
    """

    check: str
    value: float | None
    limit: float | None
    passed: bool
    message: str


class ColumnLeak(NamedTuple):
    """How well one column separates the label by itself.

    Attributes:
      column: its name.
      role: its modality, or what else it is used as, such as "drop".
      auroc: 0.5 to 1, or None where there is one class.
      suspicious: whether that is too good.
    """

    column: str
    role: str
    auroc: float | None
    suspicious: bool


class LeakReport(NamedTuple):
    """All answers.

    Attributes:
      passed: whether every check passed.
      checks: the answers.
      columns: every column, the best separating first.
    """

    passed: bool
    checks: tuple[Check, ...]
    columns: tuple[ColumnLeak, ...]


def leakcheck(
    dataset: Dataset,
    split: np.ndarray,
    *,
    unused: Dataset | None = None,
    names: Mapping[str, str] | None = None,
    timed: bool = True,
    classes: np.ndarray | None = None,
    seed: int = 0,
) -> LeakReport:
    """Searches raw data and its split for what gives the label away.

    Columns and models are judged over examples: rows, or entities where the label
    belongs to the entity, each by the last value of a column that it observed.

    Args:
      dataset: the rows as they were loaded.
      split: ``[rows]`` of ``Part``.
      unused: the same rows with the columns that no detector sees; its modalities
        are their roles. They are shown and not judged.
      names: "client", "entity", "patient", "time", "label" or "attack" -> its column;
        shown and not judged one by one.
      timed: whether the rows have a time, other than their order in a file.
      classes: ``[clients, 2]`` negative and positive examples of each client, where a
        partition makes others than those of the data.
      seed: of samples and folds.

    Returns:
      The answers.
    """
    used = _columns(dataset, seed=seed)
    kept_out = [] if unused is None else _columns(unused, seed=seed)
    kept_out += _named(dataset, names or {}, seed=seed)
    classes = count_classes(dataset) if classes is None else classes
    checks = [
        _single_columns(used, kept_out),
        _repeated_rows(dataset, unused, names or {}, timed=timed),
        _duplicates(dataset, split),
        _identifiers_and_time(dataset, split, timed=timed, seed=seed),
        _single_class_clients(classes),
    ]
    if dataset.target == "entity":
        checks.append(_shared_patients(dataset, split))
    passed = all(check.passed for check in checks)
    return LeakReport(passed, tuple(checks), tuple(_sorted([*used, *kept_out])))


def as_record(report: LeakReport) -> dict[str, Any]:
    """Returns the report as JSON holds it."""
    return {
        "passed": report.passed,
        "checks": [check._asdict() for check in report.checks],
        "columns": [column._asdict() for column in report.columns],
    }


def column_auroc(
    values: np.ndarray, label: np.ndarray, *, ordered: bool = True, seed: int = 0
) -> float | None:
    """Returns how well one column separates the label, 0.5 to 1.

    The best of three: the values in their order, whichever end is positive; the mean
    label of equal values, or of 64 quantiles, learned on other folds; and whether there
    is a value at all.

    Args:
      values: ``[n]``, NaN for a missing one.
      label: ``[n]``, 0 or 1.
      ordered: whether the order of the values means anything.
      seed: of the folds.

    Returns:
      The AUROC, or None where the label is of one class.
    """
    positive = label > 0
    if positive.all() or not positive.any():
        return None
    missing = np.isnan(values)
    gap = np.mean(missing[positive]) - np.mean(missing[~positive])
    areas = [
        0.5 + gap / 2,
        _auroc(_by_folds(values, positive, ordered, seed), positive),
    ]
    if ordered and not missing.all():
        # A gap says nothing of the order: it stands in the middle.
        filled = np.where(missing, np.median(values[~missing]), values)
        areas.append(_auroc(filled, positive))
    return float(max(max(area, 1 - area) for area in areas))


def _columns(dataset: Dataset, *, seed: int) -> list[ColumnLeak]:
    """Judges every feature of a dataset by itself."""
    label = examples_of(dataset).label
    picked = _sample(len(label), seed)
    found = []
    for modality, values in dataset.features.items():
        kinds = dataset.categories.get(modality, {})
        for position, name in enumerate(dataset.feature_names[modality]):
            column = _of_examples(values[:, position], dataset)[picked]
            ordered = name not in kinds
            if not ordered:
                column, ordered = _numbers_of(column, kinds[name])
            area = column_auroc(column, label[picked], ordered=ordered, seed=seed)
            found.append(_leak(name, modality, area))
    return found


def _named(
    dataset: Dataset, names: Mapping[str, str], *, seed: int
) -> list[ColumnLeak]:
    """Judges who and when; what is the label itself has no figure."""
    examples = examples_of(dataset)
    picked = _sample(examples.num_rows, seed)
    label = examples.label[picked]
    values: dict[str, list[tuple[np.ndarray, bool]]] = {
        "client": [(examples.client, False)],
        # Entities of two clients are two, whatever their numbers; but those may have
        # been given in an order that tells.
        "entity": [(segment_ids(examples), False), (examples.entity, True)],
        "patient": [(patients_of(examples), False), (patients_of(examples), True)],
        "time": [(examples.time, True)],
    }
    found = []
    for role, name in names.items():
        if role not in values:
            found.append(_leak(name, role, None))
            continue
        areas = [
            column_auroc(
                column[picked].astype(np.float64), label, ordered=ordered, seed=seed
            )
            for column, ordered in values[role]
        ]
        found.append(_leak(name, role, max(areas, key=lambda area: area or 0)))
    return found


def _leak(name: str, role: str, area: float | None) -> ColumnLeak:
    return ColumnLeak(name, role, area, area is not None and area > COLUMN_LIMIT)


def _sorted(columns: list[ColumnLeak]) -> list[ColumnLeak]:
    return sorted(columns, key=lambda leak: -(leak.auroc or 0))


def _numbers_of(codes: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, bool]:
    """Returns (values, whether they are ordered): numbers where all names are."""
    try:
        numbers = np.asarray([*map(float, names), np.nan])
    except ValueError:
        return codes, False
    index = np.where(np.isnan(codes), len(names), codes).astype(np.int64)
    return numbers[index], True


def _single_columns(used: list[ColumnLeak], kept_out: list[ColumnLeak]) -> Check:
    name, limit = "single column", COLUMN_LIMIT
    ranked = [column for column in _sorted(used) if column.auroc is not None]
    if not ranked:
        return Check(name, None, limit, True, "the label is of one class")
    bad = [column for column in ranked if column.suspicious]
    if bad:
        text = f"columns give the label away: {_listed(bad)}; list them in drop"
    else:
        text = (
            f"none of {len(ranked)} columns separates the label by itself; the nearest "
            f"is {_listed(ranked[:1])}"
        )
    caught = [column for column in _sorted(kept_out) if column.suspicious]
    if caught:
        text += f"; kept out of training: {_listed(caught)}"
    return Check(name, ranked[0].auroc, limit, not bad, text)


def _listed(columns: list[ColumnLeak]) -> str:
    shown = ", ".join(f"{c.column} (AUROC {c.auroc:.3f})" for c in columns[:5])
    return shown + (f" and {len(columns) - 5} more" if len(columns) > 5 else "")


def repeated_times(dataset: Dataset, names: Mapping[str, str]) -> str | None:
    """Returns one line on rows of one entity and one time, None where there are none.

    Args:
      dataset: the rows.
      names: "client", "entity" and "time" -> their columns.
    """
    again = _same_time(dataset)
    count = int(again.sum())
    if not count:
        return None
    place = names.get("entity", names.get("client"))
    key = ", ".join(name for name in (place, names.get("time", "time")) if name)
    text = f"{count:,} rows repeat ({key})"
    copies = int((again & ~_distinct(_digest(dataset)[0], dataset)).sum())
    if copies:
        text += f", {copies:,} of them with equal features"
    text += ": windows and delays, which are counted in rows, shift; "
    if "entity" not in names:
        return text + "name the column of the stream in entity, or remove copies"
    return text + ("remove the copies" if copies else "keep one row for a time")


def _same_time(dataset: Dataset) -> np.ndarray:
    """Returns bool [rows]: not the first of its time in its entity."""
    again = np.zeros(dataset.num_rows, bool)
    again[1:] = (np.diff(dataset.time) == 0) & (np.diff(segment_ids(dataset)) == 0)
    return again


def _distinct(digest: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Returns bool [rows]: the first of its features, label, entity and time."""
    keys = np.stack(
        [
            digest,
            segment_ids(dataset).astype(np.uint64),
            dataset.time.view(np.uint64),
            dataset.label.astype(np.uint64),
        ],
        axis=1,
    )
    first = np.zeros(dataset.num_rows, bool)
    first[np.unique(keys, axis=0, return_index=True)[1]] = True
    return first


def _repeated_rows(
    dataset: Dataset,
    unused: Dataset | None,
    names: Mapping[str, str],
    *,
    timed: bool,
) -> Check:
    name = "repeated rows"
    if timed:
        text = repeated_times(dataset, names)
        value = float(_same_time(dataset).mean()) if dataset.num_rows else 0.0
        said = text or "no entity has two rows of one time"
        return Check(name, value, 0.0, text is None, said)
    digest, limit = _digest(dataset)[0], DUPLICATE_LIMIT
    if unused is not None and unused.num_rows == dataset.num_rows:
        digest = _mix(digest) + _digest(unused)[0]
    # Such rows have a number for a time.
    alike = dataset._replace(time=np.zeros(dataset.num_rows))
    count = int((~_distinct(digest, alike)).sum())
    value = count / max(dataset.num_rows, 1)
    text = f"{count:,} rows repeat another one in every column"
    if value > limit:
        text += ": what they say counts twice; remove the copies"
    return Check(name, value, limit, value <= limit, text)


def _duplicates(dataset: Dataset, split: np.ndarray) -> Check:
    name, limit = "duplicates", DUPLICATE_LIMIT
    digest, observed = _digests(dataset)
    part = _of_examples(split, dataset)
    train = digest[observed & (part == Part.TRAIN)]
    test = digest[observed & (part == Part.TEST)]
    if len(test) == 0 or (digest == digest[0]).all():
        return Check(name, None, limit, True, "there is nothing to compare")
    value = float(np.isin(test, train).mean())
    what = "stays" if dataset.target == "entity" else "rows"
    text = f"{100 * value:.1f} % of the test {what} occur in training to the bit"
    if value > limit:
        text += "; remove copies, or keep them in one part"
    return Check(name, value, limit, value <= limit, text)


def _digests(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns (uint64 [examples] of all features, whether any was observed)."""
    digest, observed = _digest(dataset)
    if dataset.target == "row" or dataset.num_rows == 0:
        return digest, observed
    starts = segment_starts(dataset)
    place = (np.arange(dataset.num_rows) - starts[segment_ids(dataset)]).astype(
        np.uint64
    )
    # A row counts by where in its stay it stands.
    digest = _mix(digest + place * np.uint64(0x9E3779B97F4A7C15))
    whole = np.add.reduceat(digest, starts, dtype=np.uint64)
    return whole, np.logical_or.reduceat(observed, starts)


def _digest(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns (uint64 [rows] of all features, whether any was observed)."""
    generator = np.random.default_rng(0)
    digest = np.zeros(dataset.num_rows, np.uint64)
    observed = np.zeros(dataset.num_rows, bool)
    for values in dataset.features.values():
        factors = generator.integers(1, 2**64, values.shape[1], np.uint64) | np.uint64(
            1
        )
        for start in range(0, dataset.num_rows, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            # Adding 0 makes -0 the 0 that it equals; every NaN is the same one.
            part = values[chunk] + np.float32(0)
            missing = np.isnan(part)
            part[missing] = np.nan
            observed[chunk] |= ~missing.all(axis=1)
            bits = np.ascontiguousarray(part).view(np.uint32).astype(np.uint64)
            digest[chunk] += _mix((bits + np.uint64(1)) * factors).sum(
                axis=1, dtype=np.uint64
            )
    return digest, observed


def _mix(value: np.ndarray) -> np.ndarray:
    """Spreads every bit over all (the finaliser of splitmix64, Steele et al. 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _identifiers_and_time(
    dataset: Dataset, split: np.ndarray, *, timed: bool, seed: int
) -> Check:
    """Trains trees on who and when alone."""
    # Imported here: a second that help and resumed runs need not wait.
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    name, limit = "identifiers and time", IDENTIFIER_LIMIT
    examples, part = examples_of(dataset), _of_examples(split, dataset)
    known = _who_and_when(dataset)
    positive = examples.label > 0
    train, test = (
        rows[_sample(len(rows), seed)]
        for rows in (np.flatnonzero(part == p) for p in (Part.TRAIN, Part.TEST))
    )
    if any(len(np.unique(positive[rows])) < 2 for rows in (train, test)):
        return Check(name, None, limit, True, "a part holds one class alone")
    trees = HistGradientBoostingClassifier(
        max_iter=50,
        max_leaf_nodes=15,
        early_stopping=False,  # pyright: ignore[reportArgumentType]
        random_state=seed,
    )
    # On a busy machine, threads that wait for each other take a hundred times longer.
    with threadpool_limits(1):
        trees.fit(known[train], positive[train])
        score = trees.predict_proba(known[test])[:, 1]
    value = _auroc(score, positive[test])
    text = f"client, entity, order and time alone reach AUROC {value:.3f} on the test"
    if value > limit:
        alone = len(segment_starts(dataset)) == dataset.num_rows
        text += "; " + (_RECORDS if alone and not timed else _STREAMS)
    return Check(name, value, limit, value <= limit, text)


def _who_and_when(dataset: Dataset) -> np.ndarray:
    """Returns float64 [examples, 5 or 6]: client, entity, places, time, hour."""
    rows = np.arange(dataset.num_rows)
    segment, starts = segment_ids(dataset), segment_starts(dataset)
    first_of_client = np.searchsorted(dataset.client, dataset.client)
    columns = [
        dataset.client,
        segment - segment[first_of_client],
        rows - starts[segment],
        rows - first_of_client,
        dataset.time,
    ]
    # Seconds since 1970 tell the hour of the day.
    if dataset.num_rows and dataset.time.min() > 1e8:
        columns.append(dataset.time % _SECONDS_OF_DAY)
    table = np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
    return table if dataset.target == "row" else table[last_rows(dataset)]


def count_classes(dataset: Dataset) -> np.ndarray:
    """Returns [clients, 2], negative and positive examples of each."""
    examples = examples_of(dataset)
    cell = 2 * examples.client.astype(np.int64) + (examples.label > 0)
    return np.bincount(cell, minlength=2 * dataset.num_clients).reshape(-1, 2)


def _single_class_clients(held: np.ndarray) -> Check:
    name, limit = "single-class clients", SINGLE_CLASS_LIMIT
    present = held.sum(axis=1) > 0
    if present.sum() < 2:
        return Check(name, None, limit, True, "there is one client")
    single = present & (held.min(axis=1) == 0)
    value = float(held[single].sum() / held.sum())
    text = (
        f"{int(single.sum())} of {int(present.sum())} clients hold one class, "
        f"{100 * value:.1f} % of the examples"
    )
    if value > limit:
        text += "; the client gives the label away: choose other clients"
    return Check(name, value, limit, value <= limit, text)


def _shared_patients(dataset: Dataset, split: np.ndarray) -> Check:
    examples, part = examples_of(dataset), _of_examples(split, dataset)
    patient = patients_of(examples)
    test = patient[part == Part.TEST]
    shared = np.isin(test, patient[part == Part.TRAIN])
    value = float(shared.mean()) if len(shared) else 0.0
    text = f"{100 * value:.1f} % of the test stays are of patients in training"
    if value > 0:
        text += "; use split stratified, by_client or leave_one_out"
    return Check("shared patients", value, 0.0, value == 0, text)


def _of_examples(column: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Returns the value of each example: of an entity the last that was observed."""
    if dataset.target == "row" or dataset.num_rows == 0:
        return column
    last = last_rows(dataset)
    if not np.issubdtype(column.dtype, np.floating):
        return column[last]
    row = np.arange(dataset.num_rows)
    latest = np.maximum.accumulate(np.where(np.isnan(column), -1, row))[last]
    own = latest >= segment_starts(dataset)
    return np.where(own, column[np.maximum(latest, 0)], np.nan)


def _sample(count: int, seed: int) -> np.ndarray:
    if count <= _SAMPLE:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, _SAMPLE, replace=False))


def _by_folds(
    values: np.ndarray, positive: np.ndarray, ordered: bool, seed: int
) -> np.ndarray:
    """Returns [n]: the mean label of the same values in the other folds."""
    bins = _bins(values, ordered)
    # Each class is dealt by itself, or a fold's mean would tell its own labels.
    generator = np.random.default_rng(seed)
    fold = np.empty(len(values), np.int64)
    for rows in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        fold[generator.permutation(rows)] = np.arange(len(rows)) % _FOLDS
    cell = bins * _FOLDS + fold
    size = (int(bins.max()) + 1, _FOLDS)
    rows = np.bincount(cell, minlength=size[0] * size[1]).reshape(size)
    hits = np.bincount(cell, positive, minlength=size[0] * size[1]).reshape(size)
    others = rows.sum(axis=1, keepdims=True) - rows
    other_hits = hits.sum(axis=1, keepdims=True) - hits
    # A rare value leans on the rate of all.
    mean = (other_hits + positive.mean()) / (others + 1)
    return mean[bins, fold]


def _bins(values: np.ndarray, ordered: bool) -> np.ndarray:
    """Returns int64 [n]: equal values, or values of one quantile; one for missing."""
    missing = np.isnan(values)
    distinct, index = np.unique(values[~missing], return_inverse=True)
    if ordered and len(distinct) > _BINS:
        edges = np.quantile(values[~missing], np.linspace(0, 1, _BINS + 1)[1:-1])
        index = np.searchsorted(np.unique(edges), values[~missing], side="right")
    bins = np.zeros(len(values), np.int64)
    bins[~missing] = index + 1
    return bins


def _auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Returns the share of pairs in the right order, ties counted half."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    # Mean rank of equal scores.
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    hits = int(positive.sum())
    pairs = hits * (len(positive) - hits)
    return float((rank[positive].sum() - hits * (hits + 1) / 2) / pairs)
