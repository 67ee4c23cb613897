"""The eICU demo from made tables, whole and broken, and from the real ones."""

import gzip

import numpy as np
import pandas as pd
import pytest

from fedjax_health.data.loaders.eicu import (
    CONDITION_RANGES,
    PHYSIOLOGY_RANGES,
    SCORE_RANGES,
    SERIES_RANGES,
    files,
    load_eicu,
    read_eicu,
)
from fedjax_health.data.schema import (
    DataError,
    DataWarning,
    check_dataset,
    examples_of,
)

OUTCOMES = ("actualhospitalmortality", "predictedhospitalmortality", "actualiculos")


def tables():
    patient = pd.DataFrame(
        {
            "patientunitstayid": [10, 11, 12, 13],
            "uniquepid": ["p1", "p1", "p2", "p3"],
            "hospitalid": [7, 9, 7, 10],
            "age": ["> 89", "61", "", "17"],
            "gender": ["Female", "Male", "", "Male"],
            "ethnicity": ["Caucasian", "", "Asian", "Asian"],
            "admissionheight": [157.5, "", 33.6, 180],
            "admissionweight": [60, 70, 80, ""],
            "hospitaladmitoffset": [-120, -60, 30, 0],
            "unittype": ["MICU", "SICU", "MICU", "MICU"],
            "unitadmitsource": ["Floor", "", "ICU", "Floor"],
            "unitstaytype": ["admit", "readmit", "admit", "admit"],
            "hospitaldischargestatus": ["Alive", "Expired", "", "Alive"],
            "unitdischargestatus": ["Alive", "Expired", "Alive", "Alive"],
        }
    )
    aps = pd.DataFrame(
        {name: [low, high] for name, (low, high) in PHYSIOLOGY_RANGES.items()}
    ).assign(patientunitstayid=[11, 10])
    aps.loc[0, "ph"] = -1
    aps.loc[1, "ph"] = 7.3
    pred = pd.DataFrame(
        {name: [low, high] for name, (low, high) in CONDITION_RANGES.items()}
    ).assign(patientunitstayid=[13, 99], diedinhospital=[1, 0])
    result = pd.DataFrame(
        {
            "patientunitstayid": [10, 10, 11],
            "apacheversion": ["IV", "IVa", "IVa"],
            "acutephysiologyscore": [20, 21, -1],
            "apachescore": [30, 31, 40],
            **dict.fromkeys(OUTCOMES, 1),
        }
    )
    dx = pd.DataFrame(
        {
            "patientunitstayid": [10, 10, 11, 12],
            "admitdxpath": [
                "admission diagnosis|Elective|Yes",
                "admission diagnosis|Operative Organ Systems|Organ System|Trauma",
                "admission diagnosis|Non-operative Organ Systems|Organ System|Neuro",
                "admission diagnosis|Non-operative Organ Systems|Organ System|Late",
            ],
            "admitdxenteredoffset": [5, 5, -3, 5000],
        }
    )
    vitals = pd.DataFrame(
        {
            "patientunitstayid": [10, 10, 10, 10, 11, 99],
            "observationoffset": [70, 10, 50, -5, 1440, 10],
            "noninvasivesystolic": [120, 110, 111, 99, 130, 1],
            "noninvasivediastolic": [80, 0, "", 9, 81, 1],
            "noninvasivemean": [90, 70, 75, 9, "", 1],
        }
    )
    hospital = pd.DataFrame(
        {"hospitalid": [7, 9], "region": ["South", "Midwest"], "numbedscategory": 1}
    )
    return {
        "patient": patient,
        "apacheapsvar": aps,
        "apachepredvar": pred,
        "apachepatientresult": result,
        "admissiondx": dx,
        "vitalaperiodic": vitals,
        "hospital": hospital,
    }


def write(folder, **changes):
    for name, table in {**tables(), **changes}.items():
        if table is not None:
            packed = gzip.compress(table.to_csv(index=False).encode())
            (folder / f"{name}.csv.gz").write_bytes(packed)
    return folder


def load(folder, **settings):
    with pytest.warns(DataWarning, match=r"1 of 4 stays have no hospitaldischarge"):
        return load_eicu(folder, **settings)


def refused(folder, **settings) -> str:
    with pytest.raises(DataError) as caught:
        load_eicu(folder, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def facts(data, stay):
    row = data.features["static"][data.entity == data.entity_names.index(stay)][0]
    found = dict(zip(data.feature_names["static"], row.tolist(), strict=True))
    for name, kinds in data.categories["static"].items():
        if not np.isnan(found[name]):
            found[name] = kinds[int(found[name])]
    return found


@pytest.mark.filterwarnings("ignore:.*(without value|unit changed):UserWarning")
def test_a_stay_is_a_row(tmp_path):
    data = load(write(tmp_path))
    check_dataset(data)
    assert data.target == "row"
    assert data.client_names == ("7", "9", "10")
    names = [data.entity_names[number] for number in data.entity]
    assert names == ["10", "11", "13"]
    assert data.label.tolist() == [0, 1, 0]
    assert data.patient is not None
    assert data.patient[0] == data.patient[1] != data.patient[2]
    first, second = facts(data, "10"), facts(data, "11")
    assert first["age"] == 90
    assert first["gender"] == "Female"
    assert first["hours_in_hospital"] == 2
    assert first["ph"] == pytest.approx(7.3)
    assert first["meanbp"] == 300
    assert first["operative"] == 1
    assert first["organ_system"] == "Trauma"
    assert np.isnan(second["ph"])
    assert second["meanbp"] == 5
    assert second["operative"] == 0
    assert np.isnan([second["admissionheight"], second["unitadmitsource"]]).all()
    assert np.isnan(second["diabetes"])
    third = facts(data, "13")
    assert third["diabetes"] == 0
    assert np.isnan([third["admissionweight"], third["operative"], third["ph"]]).all()


@pytest.mark.filterwarnings("ignore:.*(without value|unit changed):UserWarning")
def test_no_outcome_and_no_identifier_is_a_feature(tmp_path):
    data = load(write(tmp_path), apache_score=True)
    names = set(data.feature_names["static"])
    known_later = {
        "diedinhospital",
        "dischargelocation",
        "unitdischargestatus",
        "hospitaldischargestatus",
        "patientunitstayid",
        "hospitalid",
        "wardid",
        "bedcount",
        "uniquepid",
        *OUTCOMES,
    }
    assert not names & known_later
    assert set(SCORE_RANGES) <= names
    assert facts(data, "10")["apachescore"] == 31
    assert np.isnan(facts(data, "11")["acutephysiologyscore"])
    assert not set(SCORE_RANGES) & set(load(tmp_path).feature_names["static"])


def test_the_series_is_a_grid(tmp_path):
    data = load(write(tmp_path), modalities=("series",))
    check_dataset(data)
    assert data.target == "entity"
    assert data.num_rows == 3 * 24
    assert data.carried == {"series"}
    assert data.feature_names["series"] == tuple(SERIES_RANGES)
    rows = data.features["series"][data.entity == data.entity_names.index("10")]
    nan = np.nan
    np.testing.assert_array_equal(
        rows[:3], np.float32([[111, nan, 75], [120, 80, 90], [nan] * 3])
    )
    other = data.features["series"][data.entity == data.entity_names.index("11")]
    np.testing.assert_array_equal(other[23], np.float32([130, 81, nan]))
    means = load(tmp_path, modalities=("series",), aggregate="mean", hours=2)
    rows = means.features["series"][means.entity == means.entity_names.index("10")]
    np.testing.assert_allclose(rows, [[110.5, nan, 72.5], [120, 80, 90]])


@pytest.mark.filterwarnings("ignore:.*(without value|unit changed):UserWarning")
def test_both_modalities_and_regions(tmp_path):
    data = load(write(tmp_path), modalities=("series", "static"), client="region")
    check_dataset(data)
    assert data.client_names == ("Midwest", "South", "unknown region")
    examples = examples_of(data)
    assert examples.label.tolist() == [1, 0, 0]
    assert list(data.features) == ["series", "static"]
    assert data.masked == {"series", "static"}


def test_what_is_entered_after_the_hours_is_not_seen(tmp_path):
    changed = tables()["patient"].assign(hospitaldischargestatus="Alive")
    changed.loc[1, "hospitaldischargestatus"] = "Expired"
    write(tmp_path, patient=changed)
    data = load_eicu(tmp_path)
    assert np.isnan(facts(data, "12")["operative"])
    data = load_eicu(tmp_path, hours=100)
    assert facts(data, "12")["organ_system"] == "Late"


@pytest.mark.parametrize(
    "name", ["patient", "apacheapsvar", "apachepredvar", "admissiondx"]
)
def test_tables_that_are_not_there(tmp_path, name):
    write(tmp_path, **{name: None})
    assert f"holds no {name}.csv.gz" in refused(tmp_path)


def test_other_tables_are_read_only_where_they_are_needed(tmp_path):
    write(tmp_path, vitalaperiodic=None, hospital=None, apachepatientresult=None)
    load(tmp_path)
    assert "holds no vitalaperiodic" in refused(tmp_path, modalities=("series",))
    assert "holds no hospital" in refused(tmp_path, client="region")
    assert "holds no apachepatientresult" in refused(tmp_path, apache_score=True)
    names = [file.name for file in files(tmp_path)]
    assert names == [
        "patient.csv.gz",
        "apacheapsvar.csv.gz",
        "apachepredvar.csv.gz",
        "admissiondx.csv.gz",
    ]


@pytest.mark.parametrize(
    ("table", "change", "text"),
    [
        ("patient", {"patientunitstayid": [10, 11, 10, 13]}, "line 4, column"),
        ("patient", {"uniquepid": ["", "a", "b", "c"]}, "'uniquepid': no value"),
        ("patient", {"hospitalid": ["", "1", "1", "1"]}, "'hospitalid': no value"),
        ("patient", {"age": ["old", "1", "1", "1"]}, "'age': 'old' is not a number"),
        ("patient", {"hospitaldischargestatus": "Gone"}, "'Gone' is neither Alive"),
        ("patient", {"hospitaldischargestatus": "Alive"}, "one class"),
        ("patient", {"hospitaldischargestatus": ""}, "has no labels"),
        ("apacheapsvar", {"patientunitstayid": 10}, "a second row for stay 10"),
        ("apacheapsvar", {"ph": "acid"}, "'ph': 'acid' is not a number"),
        (
            "vitalaperiodic",
            {"observationoffset": "soon"},
            "'observationoffset': 'soon'",
        ),
    ],
)
def test_tables_that_do_not_fit(tmp_path, table, change, text):
    write(tmp_path, **{table: tables()[table].assign(**change)})
    message = refused(tmp_path, modalities=("series", "static"))
    assert text in message


@pytest.mark.parametrize("column", ["gender", "uniquepid", "hospitaldischargestatus"])
def test_columns_that_are_not_there(tmp_path, column):
    write(tmp_path, patient=tables()["patient"].drop(columns=column))
    message = refused(tmp_path)
    assert "patient.csv.gz has no column" in message
    assert repr(column) in message


def test_settings_out_of_range(tmp_path):
    write(tmp_path)
    assert "bin_minutes" in refused(tmp_path, bin_minutes=7)
    assert "bin_minutes" in refused(tmp_path, bin_minutes=-1)
    assert "'ward'" in refused(tmp_path, client="ward")
    assert "'notes'" in refused(tmp_path, modalities=("notes",))
    assert "is no folder" in refused(tmp_path / "patient.csv.gz")
    assert "does not exist" in refused(tmp_path / "nowhere")


def test_truncated_tables(tmp_path):
    write(tmp_path)
    file = tmp_path / "apacheapsvar.csv.gz"
    file.write_bytes(file.read_bytes()[:-9])
    assert "truncated or corrupt gzip" in refused(tmp_path)


def test_stays_to_score(tmp_path):
    patient = tables()["patient"].drop(columns="hospitaldischargestatus")
    write(tmp_path, patient=patient, apacheapsvar=None, vitalaperiodic=None)
    with pytest.warns(DataWarning) as caught:
        loaded = read_eicu(tmp_path, modalities=("static", "series"))
    said = " ".join(str(one.message) for one in caught)
    assert "holds no table apacheapsvar" in said
    assert "holds no table vitalaperiodic" in said
    assert not loaded.has_labels
    assert examples_of(loaded.dataset).num_rows == 4
    assert np.isnan(loaded.dataset.features["series"]).all()
    write(tmp_path)
    loaded = read_eicu(tmp_path)
    assert dict(
        zip(
            [loaded.dataset.entity_names[n] for n in loaded.dataset.entity],
            loaded.known,
            strict=True,
        )
    ) == {"10": True, "11": True, "12": False, "13": True}
    fewer = {
        "patient": tables()["patient"].drop(columns=["age", "gender"]),
        "apacheapsvar": tables()["apacheapsvar"].drop(columns="ph"),
        "vitalaperiodic": tables()["vitalaperiodic"].drop(columns="noninvasivemean"),
    }
    whole = read_eicu(tmp_path, modalities=("static", "series")).dataset
    write(tmp_path, **fewer)
    with pytest.warns(DataWarning) as caught:
        data = read_eicu(tmp_path, modalities=("static", "series")).dataset
    said = " ".join(str(one.message) for one in caught)
    for text in ("'age', 'gender'", "no column 'ph'", "no column 'noninvasivemean'"):
        assert text in said
    assert data.feature_names == whole.feature_names
    for name, gone in {
        "static": ("age", "gender", "ph"),
        "series": ("noninvasivemean",),
    }.items():
        for position, column in enumerate(data.feature_names[name]):
            values = data.features[name][:, position]
            before = whole.features[name][:, position]
            np.testing.assert_array_equal(
                values, np.full_like(before, np.nan) if column in gone else before
            )
    assert "no column" in refused(tmp_path)
    write(tmp_path)
    alive = tables()["patient"].iloc[[0]]
    write(tmp_path, patient=alive)
    assert read_eicu(tmp_path, modalities=("series",)).has_labels


@pytest.mark.realdata
class TestRealDemo:
    def test_sizes(self, data_root):
        folder = data_root / "eicu_demo"
        if not folder.is_dir():
            pytest.skip(f"the eICU demo is not in {data_root}")
        with pytest.warns(DataWarning, match="20 of 1,545 stays"):
            data = load_eicu(folder)
        check_dataset(data)
        assert data.num_rows == 1525
        assert data.num_clients == 116
        assert data.label.sum() == 121
        assert np.isnan(data.features["static"]).mean() < 0.3
        for name, kinds in data.categories["static"].items():
            assert len(kinds) <= 12, name
