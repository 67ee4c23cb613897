"""Observations in long form against a slow loop, and all that can be wrong."""

import numpy as np
import pandas as pd
import pytest

from fedjax_health.data.loaders.events import EventRoles, load_events, read_events
from fedjax_health.data.schema import (
    DataError,
    DataWarning,
    check_dataset,
    examples_of,
)

ROLES = EventRoles(
    entity="stay",
    label="died",
    client="ward",
    patient="person",
    bin_seconds=3600,
    length=4,
    static=("age", "sex"),
    categorical=("sex",),
    modalities=("series", "static"),
)


def stays():
    return pd.DataFrame(
        {
            "stay": ["s10", "s9", "s11"],
            "ward": ["B", "A", "B"],
            "person": ["p1", "p2", "p1"],
            "age": [50.0, 60, np.nan],
            "sex": ["f", "m", ""],
            "came": [100.0, 0, 0],
            "died": [0, 1, 0],
        }
    )


def observations():
    rows = [
        ("s10", 3700, "hr", 80),
        ("s10", 100, "hr", 70),
        ("s10", 100, "hr", 71),
        ("s10", 4000, "ph", 7.4),
        ("s10", 100 + 4 * 3600, "hr", 99),
        ("s10", 101 + 4 * 3600, "ph", 7.1),
        ("s9", 50, "hr", 60),
        ("s9", 7300, "ph", ""),
        ("s9", 7400, "ph", 7.2),
    ]
    return pd.DataFrame(rows, columns=["stay", "time", "variable", "value"])


def write(folder, events=None, entities=None):
    events = observations() if events is None else events
    entities = stays() if entities is None else entities
    events.to_csv(folder / "events.csv", index=False)
    entities.to_csv(folder / "stays.csv", index=False)
    return folder / "events.csv", folder / "stays.csv"


def refused(folder, roles=ROLES, **tables) -> str:
    with pytest.raises(DataError) as caught:
        load_events(*write(folder, **tables), roles)
    message = str(caught.value)
    assert "\n" not in message
    return message


def series(data, stay):
    return data.features["series"][data.entity == data.entity_names.index(stay)]


def change(roles=ROLES, **fields):
    names = roles.__struct_fields__
    return EventRoles(**{**{n: getattr(roles, n) for n in names}, **fields})


def test_entities_become_a_grid(tmp_path):
    data = load_events(*write(tmp_path), ROLES)
    check_dataset(data)
    assert data.target == "entity"
    assert data.client_names == ("A", "B")
    assert data.entity_names == ("s10", "s11", "s9")
    examples = examples_of(data)
    assert [data.entity_names[n] for n in examples.entity] == ["s9", "s10", "s11"]
    assert examples.label.tolist() == [1, 0, 0]
    assert examples.patient is not None
    assert examples.patient.tolist() == [1, 0, 0]
    assert data.feature_names == {"series": ("hr", "ph"), "static": ("age", "sex")}
    assert data.categories == {"static": {"sex": ("f", "m")}}
    assert data.carried == {"series"}
    assert data.step_seconds == 3600
    nan = np.nan
    # The grid begins at the first observation; of one time the later row counts.
    np.testing.assert_array_equal(
        series(data, "s10"),
        np.float32([[71, nan], [80, 7.4], [nan, nan], [99, nan]]),
    )
    np.testing.assert_array_equal(
        series(data, "s9"), np.float32([[60, nan], [nan, nan], [nan, 7.2], [nan, nan]])
    )
    # An entity without observations is kept.
    assert np.isnan(series(data, "s11")).all()


def test_origin_unit_and_mean(tmp_path):
    paths = write(tmp_path)
    data = load_events(*paths, change(origin="came"))
    nan = np.nan
    np.testing.assert_array_equal(
        series(data, "s10")[:, 0], np.float32([71, 80, nan, 99])
    )
    data = load_events(
        *paths, change(origin="came", unit_seconds=0.5, aggregate="mean")
    )
    np.testing.assert_allclose(series(data, "s10")[:, 0], [221 / 3, nan, 99, nan])
    late = stays().assign(came=[1000.0, 0, 0])
    data = load_events(*write(tmp_path, entities=late), change(origin="came"))
    np.testing.assert_array_equal(
        series(data, "s10")[:, 0], np.float32([80, nan, nan, 99])
    )


@pytest.mark.parametrize("kind", ["text", "parquet", "format"])
def test_dates(tmp_path, kind):
    when = pd.to_datetime(observations().time, unit="s", origin="2020-02-01")
    came = pd.to_datetime(stays().came, unit="s", origin="2020-02-01")
    style = "%d/%m/%Y %H:%M:%S" if kind == "format" else None
    if style:
        when, came = when.dt.strftime(style), came.dt.strftime(style)
    events = observations().assign(time=when)
    events["value"] = pd.to_numeric(events["value"])
    paths = write(tmp_path, events, stays().assign(came=came))
    if kind == "parquet":
        paths = (tmp_path / "e.parquet", tmp_path / "s.parquet")
        events.to_parquet(paths[0])
        stays().assign(came=came).to_parquet(paths[1])
    # unit_seconds is of numbers alone.
    roles = change(origin="came", unit_seconds=60.0, time_format=style)
    data = load_events(*paths, roles)
    wrong = tmp_path / "wrong.csv"
    stays().to_csv(wrong, index=False)
    if kind != "format":
        with pytest.raises(DataError, match="times are dates and column 'came'"):
            load_events(paths[0], wrong, roles)
    plain = load_events(*write(tmp_path), change(origin="came"))
    np.testing.assert_array_equal(data.features["series"], plain.features["series"])


def test_variables_are_named_or_seen_often_enough(tmp_path):
    paths = write(tmp_path)
    data = load_events(*paths, change(variables=("ph",)))
    assert data.feature_names["series"] == ("ph",)
    more = pd.concat(
        [
            observations(),
            pd.DataFrame([("s9", 1, "rare", 1.0)], columns=observations().columns),
        ]
    )
    paths = write(tmp_path, more)
    assert load_events(*paths, ROLES).feature_names["series"] == ("hr", "ph", "rare")
    never = change(ranges=dict.fromkeys(("hr", "ph", "rare"), (500.0, 600.0)))
    with pytest.raises(DataError, match="no variable is observed with a value in rang"):
        load_events(*paths, never)
    with pytest.raises(DataError, match=r"'pH' \(variables\), did you mean 'ph'"):
        load_events(*paths, change(variables=("pH",)))


def test_values_out_of_range_are_not_observed(tmp_path):
    data = load_events(*write(tmp_path), change(ranges={"hr": (60.0, 75.0)}))
    hr = data.features["series"][:, 0]
    assert sorted(hr[~np.isnan(hr)].tolist()) == [60, 71]


def test_modalities_alone(tmp_path):
    paths = write(tmp_path)
    only = load_events(*paths, change(modalities=("series",)))
    assert list(only.features) == ["series"]
    table = load_events(*paths, change(modalities=("static",)))
    check_dataset(table)
    assert table.target == "row"
    assert table.num_rows == 3


def test_two_values_at_one_time(tmp_path):
    message = refused(tmp_path, change(duplicates="refuse"))
    assert "line 4: a second value of 'hr' for entity 's10' at one time" in message


@pytest.mark.parametrize(
    ("events", "entities", "text"),
    [
        ({"stay": "s1"}, {}, "the table of entities has no 's1'"),
        ({"value": "high"}, {}, "'value': 'high' is not a number"),
        ({"value": 1e39}, {}, "too large"),
        ({"time": ""}, {}, "column 'time'"),
        ({"variable": ""}, {}, "'variable': no value"),
        ({"stay": ""}, {}, "'stay': no value"),
        ({"value": ""}, {}, "no variable is observed"),
        ({}, {"stay": "s10"}, "line 3, column 'stay': entity 's10' occurs twice"),
        ({}, {"stay": ["s10", "s11", "s12"]}, "has no 's9'"),
        ({}, {"died": 0}, "one class"),
        ({}, {"died": ["0", "1", ""]}, "'died': no label"),
        ({}, {"died": ["0", "1", "maybe"]}, "'maybe' is not 0 or 1"),
        ({}, {"ward": ""}, "'ward': no value"),
        ({}, {"age": "old"}, "'age': 'old' is not a number"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, events, entities, text):
    tables = {
        "events": observations().assign(**events),
        "entities": stays().assign(**entities),
    }
    assert text in refused(tmp_path, **tables)


def test_columns_and_files_that_are_not_there(tmp_path):
    bare = observations().rename(columns={"value": "reading"})
    assert "no column 'value'" in refused(tmp_path, events=bare)
    assert "no column 'died'" in refused(
        tmp_path, entities=stays().drop(columns="died")
    )
    assert "no column 'age'" in refused(tmp_path, entities=stays().drop(columns="age"))
    events, entities = write(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_events(tmp_path / "none.csv", entities, ROLES)
    with pytest.raises(DataError, match="does not exist"):
        load_events(events, tmp_path / "none.csv", ROLES)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"length": 0}, "length is 0"),
        ({"bin_seconds": -1.0}, "bin_seconds is -1.0"),
        ({"modalities": ()}, "modalities is empty"),
        ({"modalities": ("notes",)}, "'notes' is unknown"),
        ({"modalities": ("static",), "static": (), "categorical": ()}, "needs static"),
        ({"categorical": ("ward",)}, "'ward' is not in static"),
        ({"origin": "age"}, "'age' of the entities has two roles"),
        ({"ranges": {"hr": (5.0, 1.0)}}, "the smallest first"),
    ],
)
def test_roles_that_contradict(fields, text):
    with pytest.raises(DataError) as caught:
        change(**fields)
    assert text in str(caught.value)


# Of two clients none can be told to be the one with the other unit.
def many(change_at=None, ward="B", seed=0):
    rng = np.random.default_rng(seed)
    entities = pd.DataFrame(
        {
            "stay": np.arange(60),
            "ward": np.repeat(["A", "B"], 30),
            "died": np.arange(60) % 2,
        }
    )
    events = pd.DataFrame(
        {
            "stay": np.repeat(np.arange(60), 3),
            # Stays come one after another.
            "time": np.repeat(np.arange(60) % 30 * 1e6, 3) + np.tile([0, 60, 120], 60),
            "variable": "glucose",
            "value": rng.lognormal(4.8, 0.3, 180),
        }
    )
    if change_at is not None:
        wards = np.repeat(entities.ward.to_numpy(), 3)
        events.loc[(wards == ward) & (events.time >= change_at * 1e6), "value"] /= 18
    return events.sample(frac=1, random_state=0), entities


@pytest.mark.parametrize(
    ("when", "place"), [(0, "at client 'A'"), (15, "half way in time")]
)
def test_a_change_of_unit_is_said(tmp_path, when, place):
    roles = EventRoles(entity="stay", label="died", client="ward")
    load_events(*write(tmp_path, *many()), roles)
    with pytest.warns(DataWarning, match=f"'glucose' of modality 'series'.*{place}"):
        load_events(*write(tmp_path, *many(when)), roles)


def test_entities_without_a_label_are_scored_and_known_for_it(tmp_path):
    entities = stays().assign(died=["1", "", "0"])
    loaded = read_events(*write(tmp_path, entities=entities), ROLES)
    names = [loaded.dataset.entity_names[n] for n in loaded.dataset.entity]
    unknown = {name for name, k in zip(names, loaded.known, strict=True) if not k}
    assert unknown == {"s9"}
    assert loaded.known.sum() == 2 * ROLES.length
    assert "no label" in refused(tmp_path, entities=entities)


def test_entities_to_score(tmp_path):
    events = observations()
    events = events[events.stay == "s9"]
    entities = stays().iloc[[1]].drop(columns=["died", "age"])
    with pytest.warns(DataWarning, match="column 'age' of modality 'static'"):
        loaded = read_events(*write(tmp_path, events, entities), ROLES)
    assert not loaded.has_labels
    assert loaded.dataset.feature_names["static"] == ("age", "sex")
    trained = {"series": ("other", "hr"), "static": ("age", "sex")}
    loaded = read_events(
        *write(tmp_path, events, stays().iloc[[1]]), ROLES, feature_names=trained
    )
    assert loaded.has_labels
    assert loaded.dataset.feature_names["series"] == ("other", "hr")
    assert np.isnan(loaded.dataset.features["series"][:, 0]).all()
    loaded = read_events(
        *write(tmp_path, events, stays().iloc[[1]]),
        change(variables=("other", "ph")),
        feature_names={"series": ("other", "ph")},
    )
    assert loaded.dataset.feature_names["series"] == ("other", "ph")
