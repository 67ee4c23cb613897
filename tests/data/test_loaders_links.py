"""Linked tables against a slow search row by row."""

import numpy as np
import pandas as pd
import pytest

from fedjax_health.data.loaders.tabular import (
    ColumnRoles,
    Link,
    load_table,
    read_table,
)
from fedjax_health.data.schema import DataError, DataWarning


def slow_join(main, other, columns, tolerance):
    joined = np.full((len(main), len(columns)), np.nan)
    for i, row in main.iterrows():
        for c, column in enumerate(columns):
            best = None
            for j, link in other.iterrows():
                if link.patient != row.patient or np.isnan(link[column]):
                    continue
                age = row.t - link.charted
                if age < 0 or (tolerance is not None and age > tolerance):
                    continue
                if best is None or (link.charted, j) >= best[0]:
                    best = ((link.charted, j), link[column])
            if best is not None:
                joined[i, c] = best[1]
    return joined


def tables(seed, rows=40):
    rng = np.random.default_rng(seed)
    main = pd.DataFrame(
        {
            "row": np.arange(rows),
            "patient": rng.choice(["p1", "p2", "p3"], rows),
            "t": rng.integers(0, 12, rows).astype(float),
            "bytes": rng.normal(size=rows),
            "y": rng.integers(0, 2, rows),
        }
    )
    other = pd.DataFrame(
        {
            "patient": rng.choice(["p1", "p2", "p9"], rows),
            "charted": rng.integers(0, 12, rows).astype(float),
            "hr": rng.normal(80, 5, rows),
            "spo2": rng.normal(97, 1, rows),
        }
    )
    other.loc[rng.random(rows) < 0.4, "hr"] = np.nan
    other.loc[rng.random(rows) < 0.4, "spo2"] = np.nan
    return main, other


def link(**fields):
    fields = {"modality": "emr", "on": ("patient",), "time": "charted", **fields}
    return Link(**fields)


def roles(*links, **fields):
    return ColumnRoles(
        label="y",
        time="t",
        modalities={"iot": ("bytes",), "row": ("row",)},
        links=links,
        **fields,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [None, 0.0, 4.0])
def test_history_joins_what_was_known_then(tmp_path, seed, tolerance):
    main, other = tables(seed)
    main.to_csv(tmp_path / "main.csv", index=False)
    other.to_parquet(tmp_path / "emr.parquet")
    path = str(tmp_path / "emr.parquet")
    data = load_table(
        tmp_path / "main.csv", roles(link(path=path, tolerance=tolerance))
    )
    wanted = slow_join(main, other, ["hr", "spo2"], tolerance)
    order = data.features["row"][:, 0].astype(int)
    got = data.features["emr"]
    assert data.feature_names["emr"] == ("hr", "spo2")
    assert data.masked == {"emr"}
    assert 0.1 < np.isnan(wanted).mean() < 0.99
    np.testing.assert_allclose(got, wanted[order].astype(np.float32))


def test_a_table_without_time_has_one_row_for_a_key(tmp_path):
    (tmp_path / "main.csv").write_text(
        "site,patient,t,bytes,row,y\nA,07,1,1,0,0\nA,7,2,1,1,1\nB,07,3,1,2,0\nB,,4,1,3,0\n"
    )
    (tmp_path / "static.csv").write_text(
        "where,who,age,sex\nA,07,50,f\nA,7,60,m\nB,07,70,\nB,,80,f\nC,1,9,x\n"
    )
    joined = link(
        path=str(tmp_path / "static.csv"),
        on={"site": "where", "patient": "who"},
        time=None,
        categorical=("sex",),
    )
    data = load_table(tmp_path / "main.csv", roles(joined, client="site"))
    np.testing.assert_array_equal(
        data.features["emr"], np.float32([[50, 0], [60, 1], [70, np.nan], [np.nan] * 2])
    )
    assert data.categories == {"emr": {"sex": ("f", "m", "x")}}
    assert "patient" not in data.feature_names["iot"]
    with (tmp_path / "static.csv").open("a") as file:
        file.write("A,7,61,m\n")
    with pytest.raises(
        DataError, match=r"line 7, column 'where': a second row for A, 7"
    ):
        load_table(tmp_path / "main.csv", roles(joined, client="site"))


def test_keys_do_not_become_features_of_the_rest(tmp_path):
    main, other = tables(0)
    main.to_csv(tmp_path / "main.csv", index=False)
    other.to_csv(tmp_path / "emr.csv", index=False)
    data = load_table(
        tmp_path / "main.csv",
        ColumnRoles(label="y", time="t", links=(link(path=str(tmp_path / "emr.csv")),)),
    )
    assert data.feature_names["features"] == ("row", "bytes")


def test_nothing_joined_is_said(tmp_path):
    main, other = tables(0)
    main.to_csv(tmp_path / "main.csv", index=False)
    other.assign(patient="nobody").to_csv(tmp_path / "emr.csv", index=False)
    with pytest.warns(DataWarning, match="no column of modality 'emr' holds a value"):
        load_table(tmp_path / "main.csv", roles(link(path=str(tmp_path / "emr.csv"))))


@pytest.mark.parametrize(
    ("change", "fields", "text"),
    [
        ({"charted": "2020-01-01 00:00"}, {}, "times of the table are numbers"),
        ({"hr": "high"}, {}, "'high' is not a number"),
        ({"charted": "soon"}, {}, "column 'charted': 'soon'"),
        ({}, {"on": ("patience",)}, "no column 'patience' (links.on)"),
        ({}, {"on": {"patient": "who"}}, "no column 'who'"),
        ({}, {"time": "when"}, "no column 'when'"),
        ({}, {"columns": ("pulse",)}, "no column 'pulse'"),
        ({}, {"drop": ("hr", "spo2")}, "no column is left for modality 'emr'"),
        ({}, {"path": "nowhere.csv"}, "nowhere.csv does not exist"),
    ],
)
def test_linked_tables_that_do_not_fit(tmp_path, change, fields, text):
    main, other = tables(0)
    main.to_csv(tmp_path / "main.csv", index=False)
    other.assign(**change).to_csv(tmp_path / "emr.csv", index=False)
    joined = link(**{"path": str(tmp_path / "emr.csv"), **fields})
    with pytest.raises(DataError) as caught:
        load_table(tmp_path / "main.csv", roles(joined))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("columns", ["rest", ("hr", "spo2", "unit")])
def test_columns_that_a_table_to_score_lacks_are_not_observed(tmp_path, columns):
    main, other = tables(0)
    main.to_csv(tmp_path / "main.csv", index=False)
    whole = other.assign(unit="icu", number=1)
    whole.to_csv(tmp_path / "emr.csv", index=False)
    joined = link(
        path=str(tmp_path / "emr.csv"),
        columns=columns,
        categorical=("unit",),
        drop=("number",),
    )
    trained = load_table(tmp_path / "main.csv", roles(joined))
    names = trained.feature_names["emr"]
    assert names == ("hr", "spo2", "unit")
    other.drop(columns="hr").to_csv(tmp_path / "emr.csv", index=False)
    with pytest.warns(DataWarning, match="has no columns 'hr', 'unit' of modality"):
        loaded = read_table(
            tmp_path / "main.csv",
            roles(joined),
            feature_names=trained.feature_names,
        )
    data = loaded.dataset
    assert data.feature_names["emr"] == names
    assert data.categories["emr"] == {"unit": ()}
    assert np.isnan(data.features["emr"][:, [0, 2]]).all()
    np.testing.assert_array_equal(
        data.features["emr"][:, 1], trained.features["emr"][:, 1]
    )
    with pytest.raises(DataError, match=r"emr.csv has no column"):
        load_table(tmp_path / "main.csv", roles(joined))
    other.drop(columns="charted").to_csv(tmp_path / "emr.csv", index=False)
    with pytest.raises(DataError, match="no column 'charted'"):
        read_table(tmp_path / "main.csv", roles(joined))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"on": ()}, "on is ()"),
        ({"columns": "all"}, "columns is 'all'"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"tolerance": 1.0, "time": None}, "tolerance needs time"),
    ],
)
def test_links_that_contradict(fields, text):
    with pytest.raises(DataError) as caught:
        link(path="x.csv", **fields)
    assert text in str(caught.value)


def test_roles_that_contradict_links():
    with pytest.raises(DataError, match="joined by time, but the table has no time"):
        ColumnRoles(label="y", links=(link(path="x"),))
    with pytest.raises(DataError, match="two modalities named 'features'"):
        ColumnRoles(label="y", time="t", links=(link(path="x", modality="features"),))
    two = (link(path="x"), link(path="z"))
    with pytest.raises(DataError, match="two modalities named 'emr'"):
        ColumnRoles(label="y", time="t", links=two)
