"""Planted leaks are found, clean data pass, and figures equal slow ones."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fedjax_health.data import leakcheck as leaks
from fedjax_health.data.leakcheck import (
    as_record,
    column_auroc,
    leakcheck,
    repeated_times,
)
from fedjax_health.data.schema import Dataset, check_dataset, take_rows
from fedjax_health.data.splits import Part, chronological, stratified


def streams(*, clients=4, rows=600, seed=0, rate=0.2):
    """Streams whose attacks come at random, in columns that say little of them."""
    generator = np.random.default_rng(seed)
    total = clients * rows
    label = (generator.random(total) < rate).astype(np.float32)
    values = generator.normal(size=(total, 3)) + 0.5 * label[:, None]
    colour = generator.integers(0, 3, total)
    data = Dataset(
        features={
            "flow": values.astype(np.float32),
            "notes": colour[:, None].astype(np.float32),
        },
        feature_names={"flow": ("a", "b", "c"), "notes": ("colour",)},
        label=label,
        attack=label.astype(np.int32),
        attack_names=("normal", "attack"),
        client=np.repeat(np.arange(clients), rows).astype(np.int32),
        client_names=tuple(f"ward {index}" for index in range(clients)),
        entity=np.zeros(total, np.int64),
        time=np.tile(np.arange(rows, dtype=np.float64), clients),
        masked=frozenset({"notes"}),
        categories={"notes": {"colour": ("red", "green", "blue")}},
    )
    check_dataset(data)
    return data


def split_of(data):
    return chronological(data, train=0.6, validation=0.1, test=0.3)


def named(report, check):
    (found,) = [one for one in report.checks if one.check == check]
    return found


def column(report, name):
    (found,) = [one for one in report.columns if one.column == name]
    return found


# Single columns


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    size=st.integers(2, 60),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_auroc_equals_scikit_learn(seed, size, levels):
    generator = np.random.default_rng(seed)
    score = generator.integers(0, levels, size) / levels
    positive = generator.random(size) < 0.4
    positive[:2] = (True, False)
    expected = roc_auc_score(positive, score)
    assert leaks._auroc(score, positive) == pytest.approx(expected, abs=1e-12)


def test_mean_labels_of_other_folds_equal_the_loop():
    generator = np.random.default_rng(3)
    values = generator.integers(0, 7, 200).astype(np.float64)
    values[generator.random(200) < 0.2] = np.nan
    positive = generator.random(200) < 0.3
    found = leaks._by_folds(values, positive, False, 5)
    fold = np.empty(200, int)
    draws = np.random.default_rng(5)
    for rows in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        fold[draws.permutation(rows)] = np.arange(len(rows)) % 5
    for row in range(200):
        same = np.isnan(values) if np.isnan(values[row]) else values == values[row]
        others = positive[same & (fold != fold[row])]
        expected = (others.sum() + positive.mean()) / (len(others) + 1)
        assert found[row] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "ordered", "low", "high"),
    [
        (lambda y, r: y * 2.0 - 1, True, 1, 1),
        (lambda y, r: 1.0 - y, True, 1, 1),
        # In the middle of the range, where no threshold finds it.
        (lambda y, r: np.where(y > 0, 0, r.choice([-1, 1], len(y))), True, 0.99, 1),
        # Of a category there are two kinds of attack.
        (lambda y, r: y + 2.0 * r.integers(0, 2, len(y)), False, 0.99, 1),
        # A gap that only attacks have.
        (lambda y, r: np.where(y > 0, np.nan, r.normal(size=len(y))), True, 1, 1),
        (lambda y, r: np.full(len(y), np.nan), True, 0.5, 0.55),
        (lambda y, r: r.normal(size=len(y)), True, 0.5, 0.56),
        (lambda y, r: np.zeros(len(y)), True, 0.5, 0.52),
        # A name of each record says nothing of another record.
        (lambda y, r: r.permutation(len(y)) * 1.0, False, 0.5, 0.52),
    ],
)
def test_columns_that_say_much_or_nothing(make, ordered, low, high):
    generator = np.random.default_rng(0)
    label = (generator.random(2000) < 0.3).astype(np.float32)
    found = column_auroc(make(label, generator), label, ordered=ordered)
    assert low <= found <= high


def test_one_class_has_no_auroc():
    assert column_auroc(np.arange(5.0), np.ones(5)) is None


def test_clean_data_pass():
    data = streams()
    report = leakcheck(data, split_of(data), names={"client": "site"})
    assert report.passed
    assert not any(one.suspicious for one in report.columns)
    assert [one.check for one in report.checks] == [
        "single column",
        "repeated rows",
        "duplicates",
        "identifiers and time",
        "single-class clients",
    ]
    assert {(one.column, one.role) for one in report.columns} == {
        ("a", "flow"),
        ("b", "flow"),
        ("c", "flow"),
        ("colour", "notes"),
        ("site", "client"),
    }
    assert named(report, "duplicates").value == 0


def test_a_column_that_is_the_label_is_found():
    data = streams()
    data.features["flow"][:, 1] = 7 - data.label
    report = leakcheck(data, split_of(data))
    assert not report.passed
    check = named(report, "single column")
    assert (check.passed, check.value, check.limit) == (False, 1.0, 0.98)
    assert "b (AUROC 1.000); list them in drop" in check.message
    assert column(report, "b").suspicious
    assert report.columns[0].column == "b"


def test_a_category_that_is_the_label_is_found():
    data = streams()
    data.features["notes"][:, 0] = np.where(data.label > 0, 1, data.time % 2 * 2)
    report = leakcheck(data, split_of(data))
    assert column(report, "colour").suspicious


def test_categories_that_are_numbers_have_an_order():
    data = streams()
    data.features["notes"][:, 0] = np.arange(data.num_rows) % 1000
    names = tuple(str(place) for place in range(1000))
    data = data._replace(categories={"notes": {"colour": names}})
    data = data._replace(label=(data.features["notes"][:, 0] > 800) * np.float32(1))
    report = leakcheck(data, split_of(data))
    assert column(report, "colour").auroc == 1


def test_columns_that_are_kept_out_are_shown_and_not_judged():
    data = streams()
    unused = data._replace(
        features={"drop": data.label[:, None]},
        feature_names={"drop": ("mac",)},
        categories={"drop": {"mac": ("aa", "bb")}},
    )
    report = leakcheck(data, split_of(data), unused=unused)
    assert report.passed
    assert column(report, "mac") == ("mac", "drop", 1.0, True)
    assert "kept out of training: mac" in named(report, "single column").message


def test_persons_are_judged_and_what_is_the_label_is_only_listed():
    data = stays()
    part = stratified(data, train=0.6, validation=0.2, test=0.2)
    names = {"patient": "person", "attack": "outcome", "label": "died"}
    report = leakcheck(data, part, names=names)
    assert column(report, "person").role == "patient"
    assert 0.5 <= column(report, "person").auroc <= 0.7
    assert column(report, "outcome") == ("outcome", "attack", None, False)
    assert column(report, "died") == ("died", "label", None, False)


# Repeated rows


def again(data, rows):
    """The data with some of its rows standing twice."""
    return take_rows(data, np.sort(np.append(np.arange(data.num_rows), rows)))


def test_rows_of_one_time_are_counted_and_named():
    data = again(streams(), np.arange(100, 150))
    check = named(
        leakcheck(data, split_of(data), names={"entity": "device_id", "time": "at"}),
        "repeated rows",
    )
    assert (check.passed, check.limit) == (False, 0)
    assert check.value == pytest.approx(50 / 2450)
    assert check.message == (
        "50 rows repeat (device_id, at), 50 of them with equal features: windows and "
        "delays, which are counted in rows, shift; remove the copies"
    )
    clean = streams()
    check = named(leakcheck(clean, split_of(clean)), "repeated rows")
    assert (check.value, check.passed) == (0, True)


def test_rows_of_one_time_that_differ_belong_to_other_streams_or_times():
    data = again(streams(), np.arange(100, 150))
    data.features["flow"][:] = np.random.default_rng(9).normal(
        size=data.features["flow"].shape
    )
    text = repeated_times(data, {"client": "ward", "time": "at"})
    assert text.startswith("50 rows repeat (ward, at): windows")
    assert "name the column of the stream in entity" in text
    text = repeated_times(data, {"entity": "device", "time": "at"})
    assert text.endswith("keep one row for a time")


def test_equal_times_of_two_streams_are_no_repetition():
    data = streams()
    halves = data._replace(
        entity=np.arange(2400) % 600 // 300, time=np.arange(2400) % 300 * 1.0
    )
    check_dataset(halves)
    assert repeated_times(halves, {}) is None


def test_rows_without_a_time_repeat_as_a_whole():
    data = streams()
    for values in data.features.values():
        values[1::30] = values[::30]
    data.label[1::30] = data.label[::30]
    part = split_of(data)

    def check(unused=None):
        report = leakcheck(data, part, timed=False, unused=unused)
        return named(report, "repeated rows")

    assert check().value == pytest.approx(80 / 2400)
    assert not check().passed
    assert check().message.startswith("80 rows repeat another one in every column")
    number = np.arange(2400, dtype=np.float32)[:, None]
    # A row number that is dropped tells them apart; one of pairs does not.
    for values, count in ((number, 0), (number // 30, 80)):
        unused = data._replace(
            features={"drop": values}, feature_names={"drop": ("id",)}, categories={}
        )
        assert check(unused).value == pytest.approx(count / 2400)


# Duplicates


def test_planted_copies_are_counted():
    data = streams()
    part = split_of(data)
    test, train = np.flatnonzero(part == Part.TEST), np.flatnonzero(part == Part.TRAIN)
    for name in data.features:
        data.features[name][test[:72]] = data.features[name][train[:72]]
    data.features["notes"][train[0]] = np.nan
    data.features["notes"][test[0]] = np.nan
    # A zero is a zero, whatever its sign.
    data.features["flow"][train[1], 0] = 0.0
    data.features["flow"][test[1], 0] = -0.0
    check = named(leakcheck(data, part), "duplicates")
    assert check.value == pytest.approx(72 / len(test))
    assert not check.passed


def test_duplicates_equal_the_loop():
    generator = np.random.default_rng(0)
    data = streams(rows=60)
    for values in data.features.values():
        values[:] = generator.integers(0, 3, values.shape)
    data.features["notes"][generator.random((240, 1)) < 0.3] = np.nan
    part = split_of(data)
    rows = [
        tuple(str(v) for name in data.features for v in data.features[name][row])
        for row in range(240)
    ]
    train = {rows[row] for row in np.flatnonzero(part == Part.TRAIN)}
    test = [rows[row] in train for row in np.flatnonzero(part == Part.TEST)]
    found = named(leakcheck(data, part), "duplicates").value
    assert found == pytest.approx(np.mean(test))
    assert 0.05 < found < 0.95


def test_rows_without_any_value_are_no_copies():
    data = streams()._replace(masked=frozenset({"flow", "notes"}))
    for values in data.features.values():
        values[::2] = np.nan
    assert named(leakcheck(data, split_of(data)), "duplicates").value == 0
    for values in data.features.values():
        values[:] = 1
    check = named(leakcheck(data, split_of(data)), "duplicates")
    assert (check.value, check.passed) == (None, True)


def test_stays_are_compared_as_a_whole():
    data = stays()
    part = stratified(data, train=0.6, validation=0.2, test=0.2)
    first, second = (np.flatnonzero(part == p)[:3] for p in (Part.TRAIN, Part.TEST))
    num_stays = (part == Part.TEST).sum() / 3
    data.features["x"][second] = data.features["x"][first][::-1]
    assert named(leakcheck(data, part), "duplicates").value == 0
    data.features["x"][second] = data.features["x"][first]
    check = named(leakcheck(data, part), "duplicates")
    assert check.value == pytest.approx(1 / num_stays)
    assert "test stays" in check.message


# Identifiers and time


@pytest.mark.parametrize("what", ["time", "hour", "client", "entity", "place"])
def test_a_label_that_follows_who_or_when_is_found(what):
    data = streams(clients=6, rows=400)
    if what == "hour":
        data = data._replace(time=1.7e9 + data.time * 1800)
    index = np.arange(data.num_rows)
    sure = {
        "time": data.time % 40 < 8,
        "hour": data.time % 86_400 < 20_000,
        "client": data.client % 2 > 0,
        "entity": index % 400 // 20 % 4 == 0,
        "place": index % 400 % 20 < 5,
    }[what]
    if what in ("entity", "place"):
        data = data._replace(entity=index % 400 // 20)
    generator = np.random.default_rng(1)
    label = np.where(generator.random(data.num_rows) < 0.1, 1 - sure, sure)
    data = data._replace(label=label.astype(np.float32))
    part = stratified(data, train=0.6, validation=0.1, test=0.3, unit="row")
    check = named(leakcheck(data, part), "identifiers and time")
    assert check.value > 0.75
    assert not check.passed


@pytest.mark.parametrize(
    ("alone", "timed", "advice"),
    [
        (False, True, "split by time or patient"),
        (True, True, "split by time or patient"),
        (True, False, "trust figures inside each client"),
    ],
)
def test_advice_fits_streams_and_records(alone, timed, advice):
    data = streams()
    label = (data.time % 40 < 8).astype(np.float32)
    data = data._replace(label=label)
    if alone:
        data = data._replace(entity=np.arange(data.num_rows))
    part = stratified(data, train=0.6, validation=0.1, test=0.3, unit="row")
    check = named(leakcheck(data, part, timed=timed), "identifiers and time")
    assert not check.passed
    assert advice in check.message


def test_parts_of_one_class_cannot_be_judged():
    data = streams()
    part = split_of(data)
    data.label[part == Part.TEST] = 0
    check = named(leakcheck(data, part), "identifiers and time")
    assert (check.value, check.passed) == (None, True)


# Clients and patients


def test_clients_of_one_class_are_found():
    data = streams(clients=4)
    data.label[:] = data.client % 2
    check = named(leakcheck(data, split_of(data)), "single-class clients")
    assert (check.value, check.passed) == (1, False)
    data = streams(clients=4)
    data.label[data.client == 3] = 0
    check = named(leakcheck(data, split_of(data)), "single-class clients")
    assert (check.value, check.passed) == (0.25, True)
    assert "1 of 4 clients" in check.message
    check = named(leakcheck(one := streams(clients=1), split_of(one)), check.check)
    assert (check.value, check.passed) == (None, True)


def test_clients_that_a_partition_makes_are_the_ones_that_count():
    data = streams(clients=1)
    classes = np.asarray([[100, 0], [50, 50], [0, 100]])
    report = leakcheck(data, split_of(data), classes=classes)
    check = named(report, "single-class clients")
    assert (check.value, check.passed) == (pytest.approx(200 / 300), False)
    assert "2 of 3 clients hold one class" in check.message


def stays(*, total=200, rows=3, seed=0):
    generator = np.random.default_rng(seed)
    label = np.repeat(generator.random(total) < 0.3, rows).astype(np.float32)
    return Dataset(
        features={"x": generator.normal(size=(total * rows, 2)).astype(np.float32)},
        feature_names={"x": ("pulse", "age")},
        label=label,
        attack=label.astype(np.int32),
        attack_names=("normal", "died"),
        client=np.repeat(np.arange(total) // (total // 2), rows).astype(np.int32),
        client_names=("north", "south"),
        entity=np.repeat(np.arange(total), rows).astype(np.int64),
        time=np.tile(np.arange(rows, dtype=np.float64), total),
        masked=frozenset({"x"}),
        target="entity",
        patient=np.repeat(np.arange(total) // 2, rows).astype(np.int64),
    )


def test_patients_in_training_and_test_are_found():
    data = stays()
    part = stratified(data, train=0.6, validation=0.2, test=0.2)
    check = named(leakcheck(data, part), "shared patients")
    assert (check.value, check.passed) == (0, True)
    by_stay = stratified(
        data._replace(patient=None), train=0.6, validation=0.2, test=0.2
    )
    check = named(leakcheck(data, by_stay), "shared patients")
    assert check.value > 0.3
    assert not check.passed
    assert not any(
        one.check == "shared patients"
        for one in leakcheck(streams(), split_of(streams())).checks
    )


def test_a_stay_counts_once_by_its_last_observed_value():
    data = stays()
    part = stratified(data, train=0.6, validation=0.2, test=0.2)
    data.features["x"][:, 0] = np.nan
    data.features["x"][1::3, 0] = data.label[1::3]
    data.features["x"][0::3, 0] = 1 - data.label[0::3]
    report = leakcheck(data, part, names={"entity": "stay"})
    assert column(report, "pulse").auroc == 1
    assert column(report, "stay").auroc < 0.6


# The report


def test_the_record_is_json_in_the_form_that_reports_read():
    data = streams()
    record = as_record(leakcheck(data, split_of(data)))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record) == {"passed", "checks", "columns"}
    for one in record["checks"]:
        assert set(one) == {"check", "value", "limit", "passed", "message"}
        assert type(one["passed"]) is bool
    for one in record["columns"]:
        assert set(one) == {"column", "role", "auroc", "suspicious"}
        assert type(one["suspicious"]) is bool


def test_large_data_are_looked_at_in_samples(monkeypatch):
    monkeypatch.setattr(leaks, "_SAMPLE", 300)
    data = streams()
    data.features["flow"][:, 1] = data.label
    part = split_of(data)
    report = leakcheck(data, part, seed=2)
    assert column(report, "b").auroc == 1
    assert report == leakcheck(data, part, seed=2)
    assert column(report, "a") != column(leakcheck(data, part, seed=3), "a")
