"""Several files, categories, patients, stays and rows to score."""

import warnings

import numpy as np
import pandas as pd
import pytest

from fedjax_health.data.loaders.tabular import (
    ColumnRoles,
    find_tables,
    load_table,
    read_table,
)
from fedjax_health.data.schema import DataError, DataWarning, check_dataset, last_rows


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def refused(path, **roles) -> str:
    with pytest.raises(DataError) as caught:
        load_table(path, ColumnRoles(**{"label": "y", **roles}))
    message = str(caught.value)
    assert "\n" not in message
    return message


A, B = "t,a,y\n1,10,0\n0,11,1\n", "y,a,t\n0,20,5\n1,21,4\n"


def test_each_file_is_a_client(tmp_path):
    write(tmp_path, ward_10=B, ward_9=A)
    (tmp_path / ".hidden.csv").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "ward_*.csv", str(tmp_path / "*.csv")):
        data = load_table(path, ColumnRoles(label="y", time="t"))
        check_dataset(data)
        assert data.client_names == ("ward_10", "ward_9")
        assert data.entity_names == ("ward_10", "ward_9")
        assert data.features["features"][:, 0].tolist() == [21, 20, 11, 10]
        assert data.client.tolist() == data.entity.tolist() == [0, 0, 1, 1]
        # Sorted by time; counted through both files.
        assert data.row.tolist() == [1, 0, 3, 2]
    names = [file.name for file in find_tables(tmp_path, ColumnRoles(label="y"))]
    assert names == ["ward_10.csv", "ward_9.csv"]


def test_files_as_parts_of_one_table(tmp_path):
    write(tmp_path, one=A, two=B)
    data = load_table(tmp_path, ColumnRoles(label="y", time="t", files="rows"))
    assert data.client_names == ("all",)
    # Rows of two files are two streams, unless a column says otherwise.
    assert data.entity_names == ("one", "two")
    device = "t,a,y,d,c\n{},10,0,d1,c1\n{},11,1,d1,c2\n"
    write(tmp_path, one=device.format(1, 3), two=device.format(0, 2))
    roles = ColumnRoles(label="y", time="t", entity="d", client="c")
    data = load_table(tmp_path, roles)
    assert data.client_names == ("c1", "c2")
    assert data.entity_names == ("d1",)
    assert data.time.tolist() == [0, 1, 2, 3]


def test_files_of_several_kinds_and_types(tmp_path):
    write(tmp_path, one="a,y,k\n1,0,x\n2,1,\n")
    pd.DataFrame({"k": ["y", "x"], "a": [3.5, np.nan], "y": [True, False]}).to_parquet(
        tmp_path / "two.parquet"
    )
    roles = ColumnRoles(label="y", categorical=("k",), allow_missing=True)
    data = load_table(tmp_path, roles)
    np.testing.assert_array_equal(
        data.features["features"],
        np.float32([[1, 0], [2, np.nan], [3.5, 1], [np.nan, 0]]),
    )
    assert data.label.tolist() == [0, 1, 1, 0]
    assert data.categories == {"features": {"k": ("x", "y")}}


def test_places_name_the_file(tmp_path):
    write(tmp_path, one=A, two=B + "\n0,x,3\n")
    message = refused(tmp_path, time="t")
    assert "two.csv, line 5, column 'a': 'x' is not a number" in message
    assert "categorical" in message


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"one": A, "two": "t,b,y\n1,1,1\n"}, "two.csv has other columns than"),
        ({"one": A, "two": "t,a\n1,1\n"}, "two.csv has no column 'y' (label)"),
        ({"one": A, "two": "t,a,y\n"}, "two.csv has a header but no rows"),
        ({"one": "t,a,y\n1,1,0\n", "two": "t,a,y\n1,1,0\n"}, "all 2 rows are negative"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, files, text):
    assert text in refused(write(tmp_path, **files), time="t")


def test_folders_and_patterns_without_tables(tmp_path):
    assert "folder without tables" in refused(tmp_path)
    assert "no file is named like" in refused(tmp_path / "*.csv")
    write(tmp_path, one=A)
    pd.read_csv(tmp_path / "one.csv").to_parquet(tmp_path / "one.parquet")
    assert "two files are named 'one'" in refused(tmp_path)


def test_a_file_named_like_a_pattern_is_a_file(tmp_path):
    write(tmp_path, **{"a[1]": A})
    assert load_table(tmp_path / "a[1].csv", ColumnRoles(label="y")).num_rows == 2


def test_categories(tmp_path):
    text = "a,k,y\n1,10,0\n2, 9 ,1\n3,,0\n4,9,0\n"
    write(tmp_path, one=text)
    roles = ColumnRoles(label="y", categorical=("k",), allow_missing=True)
    data = load_table(tmp_path / "one.csv", roles)
    check_dataset(data)
    # Sorted, numbers as numbers; blanks around a name do not matter.
    assert data.categories == {"features": {"k": ("9", "10")}}
    np.testing.assert_array_equal(
        data.features["features"][:, 1], np.float32([1, 0, np.nan, 0])
    )
    assert "line 4, column 'k': no value" in refused(
        tmp_path / "one.csv", categorical=("k",)
    )
    assert "'kind' (categorical)" in refused(
        tmp_path / "one.csv", categorical=("kind",)
    )
    assert "'k' (categorical) in any" in refused(
        tmp_path / "one.csv", categorical=("k",), modalities={"m": ("a",)}
    )
    assert "client and categorical" in refused(
        tmp_path / "one.csv", categorical=("k",), client="k"
    )


def test_categories_are_the_same_however_they_are_written(tmp_path):
    roles = ColumnRoles(label="y", categorical=("k", "flag"), allow_missing=True)
    write(tmp_path, one="k,flag,y\n1,TRUE,0\n2,FALSE,1\n,,1\n")
    first = load_table(tmp_path / "one.csv", roles)
    frame = pd.read_csv(tmp_path / "one.csv")
    frame.to_csv(tmp_path / "two.csv", index=False)
    assert "1.0,True" in (tmp_path / "two.csv").read_text()
    frame.to_parquet(tmp_path / "two.parquet")
    for name in ("two.csv", "two.parquet"):
        again = load_table(tmp_path / name, roles)
        assert again.categories == first.categories
        np.testing.assert_array_equal(
            again.features["features"], first.features["features"]
        )
    assert first.categories["features"] == {"k": ("1", "2"), "flag": ("false", "true")}


def test_patients_entities_and_steps(tmp_path):
    rows = [
        "site,who,stay,when,a,y",
        "A,p2,s10,2020-01-01 00:00,1,0",
        "A,p2,s10,2020-01-01 00:05,1,0",
        "A,p1,s9,2020-01-01 01:00,1,1",
        "A,p1,s9,2020-01-01 01:10,1,1",
        "A,p1,s9,2020-01-01 01:10,1,1",
        "B,p2,s11,2020-01-01 00:00,1,0",
        "B,p2,s11,2020-01-01 00:05,1,0",
    ]
    write(tmp_path, one="\n".join(rows) + "\n")
    roles = {
        "label": "y",
        "client": "site",
        "entity": "stay",
        "patient": "who",
        "time": "when",
        "target": "entity",
    }
    data = load_table(tmp_path / "one.csv", ColumnRoles(**roles))
    check_dataset(data)
    assert data.target == "entity"
    assert data.entity_names == ("s10", "s11", "s9")
    assert data.patient is not None
    assert data.patient[last_rows(data)].tolist() == [1, 0, 1]
    assert data.step_seconds == 300
    given = ColumnRoles(**roles, step_seconds=60)
    assert load_table(tmp_path / "one.csv", given).step_seconds == 60
    mixed = "\n".join(rows).replace("01:10,1,1", "01:10,1,0", 1)
    write(tmp_path, one=mixed)
    message = refused(tmp_path / "one.csv", **roles)
    assert "label of entity 's9' of client 'A' changes" in message


def test_numbers_that_order_rows_give_no_step(tmp_path):
    write(tmp_path, one=A)
    assert (
        load_table(tmp_path / "one.csv", ColumnRoles(label="y", time="t")).step_seconds
        is None
    )


def test_columns_without_values_are_said_where_they_may_be_missing(tmp_path):
    write(tmp_path, one="a,b,c,y\n1,,,0\n2,,,1\n")
    with pytest.warns(
        DataWarning, match="columns 'b', 'c' of modality 'features' without value"
    ):
        load_table(tmp_path / "one.csv", ColumnRoles(label="y", allow_missing=True))
    assert "line 2, column 'b': no value" in refused(tmp_path / "one.csv")


def test_carried_needs_missing_values():
    roles = ColumnRoles(label="y", allow_missing=True, carried=("features",))
    assert roles.carried == ("features",)
    with pytest.raises(DataError, match="carried names 'features'"):
        ColumnRoles(label="y", carried=("features",))


ROLES = ColumnRoles(
    label="y",
    attack="kind",
    drop=("mac",),
    client="site",
    modalities={"iot": ("a", "b"), "emr": ("c", "k")},
    categorical=("k",),
    allow_missing=True,
)


def test_rows_to_score_have_what_they_have(tmp_path):
    write(tmp_path, one="site,a,b,extra\nX,1,2,text\nX,3,4,text\n")
    with pytest.warns(DataWarning, match="no column of modality 'emr'"):
        loaded = read_table(tmp_path / "one.csv", ROLES)
    assert not loaded.has_labels
    data = loaded.dataset
    assert data.label.tolist() == [0, 0]
    assert data.client_names == ("X",)
    assert np.isnan(data.features["emr"]).all()
    assert data.categories == {"emr": {"k": ()}}
    assert data.features["iot"].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(DataError, match="'y' \\(label\\)"):
        load_table(tmp_path / "one.csv", ROLES)


@pytest.mark.parametrize(
    ("labels", "found"),
    [(["0", "0"], True), (["1", "1"], True), (["", "NA"], False), (["0", "1"], True)],
)
def test_labels_to_score_may_be_few(tmp_path, labels, found):
    rows = "".join(f"X,1,2,3,z,{label}\n" for label in labels)
    write(tmp_path, one="site,a,b,c,k,y\n" + rows)
    loaded = read_table(tmp_path / "one.csv", ROLES)
    assert loaded.has_labels == found
    wanted = [float(label) for label in labels] if found else [0, 0]
    assert loaded.dataset.label.tolist() == wanted


def test_rows_without_a_label_are_scored_and_known_for_it(tmp_path):
    rows = "X,1,2,3,z,1,dos\nX,1,2,3,z,,\nX,1,2,3,z,0,normal\nX,1,2,3,z,NA,x\n"
    write(tmp_path, one="site,a,b,c,k,y,kind\n" + rows)
    loaded = read_table(tmp_path / "one.csv", ROLES)
    assert loaded.has_labels
    assert loaded.known.tolist() == [True, False, True, False]
    assert loaded.dataset.label.tolist() == [1, 0, 0, 0]
    assert loaded.dataset.attack.tolist() == [1, 0, 0, 0]
    assert loaded.dataset.attack_names == ("normal", "dos")
    write(tmp_path, one="site,a,b,c,k,y,mac,kind\nX,1,2,3,z,1,m,dos\nX,1,2,3,z,,m,\n")
    with pytest.raises(DataError, match="line 3, column 'y': no label"):
        load_table(tmp_path / "one.csv", ROLES)


def test_what_is_known_is_sorted_with_the_rows(tmp_path):
    write(tmp_path, one="site,a,b,c,k,y\nZ,1,2,3,z,1\nX,1,2,3,z,\nX,1,2,3,z,0\n")
    loaded = read_table(tmp_path / "one.csv", ROLES)
    assert loaded.dataset.client_names == ("X", "Z")
    assert loaded.known.tolist() == [False, True, True]
    assert loaded.dataset.label.tolist() == [0, 0, 1]


def test_one_label_of_an_entity_is_that_of_all_its_rows(tmp_path):
    roles = ColumnRoles(label="y", entity="s", target="entity", attack="kind")
    text = "s,a,y,kind\np,1,,\np,2,1,dos\nq,3,,\nq,4,,\nr,5,0,normal\nr,6,,\n"
    loaded = read_table(write(tmp_path, one=text) / "one.csv", roles)
    assert loaded.known.tolist() == [True, True, False, False, True, True]
    assert loaded.dataset.label.tolist() == [1, 1, 0, 0, 0, 0]
    assert loaded.dataset.attack.tolist() == [1, 1, 0, 0, 0, 0]
    mixed = text.replace("r,6,,", "r,6,1,dos")
    with pytest.raises(DataError, match=r"entity 'r'.*changes"):
        read_table(write(tmp_path, one=mixed) / "one.csv", roles)


def test_the_word_none_is_a_category_and_no_number(tmp_path):
    words = ("none", "NA", "null", "nan", "N/A", "", "NULL")
    text = "".join(f"{n},{word},{n % 2}\n" for n, word in enumerate(words))
    write(tmp_path, one="a,k,y\n" + text)
    roles = ColumnRoles(label="y", categorical=("k",), allow_missing=True)
    data = load_table(tmp_path / "one.csv", roles)
    check_dataset(data)
    names = data.categories["features"]["k"]
    assert set(names) == {*words} - {""}
    codes = data.features["features"][:, 1]
    assert ["" if np.isnan(c) else names[int(c)] for c in codes] == list(words)
    complete = ColumnRoles(label="y", categorical=("k",))
    with pytest.raises(DataError, match="line 7, column 'k': no value"):
        load_table(tmp_path / "one.csv", complete)
    numbers = ColumnRoles(label="y", allow_missing=True)
    with pytest.warns(DataWarning, match="column 'k' of modality 'features'"):
        data = load_table(tmp_path / "one.csv", numbers)
    assert np.isnan(data.features["features"][:, 1]).all()


def test_a_file_alone_has_the_name_that_it_had_among_others(tmp_path):
    write(tmp_path, ward_b=B)
    roles = ColumnRoles(label="y", time="t")

    def names(*trained, roles=roles):
        path = tmp_path / "ward_b.csv"
        return read_table(path, roles, client_names=trained).dataset.client_names

    assert names("ward_a", "ward_b") == ("ward_b",)
    assert names("ward_a", "ward_c") == ("ward_b",)
    # One file alone was trained on, or nothing is known of it.
    assert names("all") == names() == ("all",)
    rows = ColumnRoles(label="y", time="t", files="rows")
    assert names("client 0", "client 1", roles=rows) == ("all",)


def test_the_rest_is_what_it_was_in_training(tmp_path):
    write(tmp_path, one="a,new,b\n1,text,2\n")
    roles = ColumnRoles(label="y")
    loaded = read_table(
        tmp_path / "one.csv", roles, feature_names={"features": ("b", "a")}
    )
    assert loaded.dataset.feature_names == {"features": ("b", "a")}
    assert loaded.dataset.features["features"].tolist() == [[2, 1]]
    with pytest.raises(DataError, match="no column 'c'"):
        read_table(tmp_path / "one.csv", roles, feature_names={"features": ("c",)})
    masked = ColumnRoles(label="y", allow_missing=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        loaded = read_table(
            tmp_path / "one.csv", masked, feature_names={"features": ("c", "a")}
        )
    np.testing.assert_array_equal(
        loaded.dataset.features["features"], np.float32([[np.nan, 1]])
    )


def test_what_was_complete_in_training_must_be_there(tmp_path):
    write(tmp_path, one="a\n1\n")
    roles = ColumnRoles(label="y", modalities={"m": ("a", "b")})
    with pytest.raises(DataError, match=r"no column 'b' \(modalities.m\)"):
        read_table(tmp_path / "one.csv", roles)


def test_all_attacks_may_be_scored(tmp_path):
    write(tmp_path, one="a,y,kind\n1,1,dos\n2,1,spoof\n")
    roles = ColumnRoles(label="y", attack="kind")
    loaded = read_table(tmp_path / "one.csv", roles)
    assert loaded.dataset.attack_names == ("normal", "dos", "spoof")
    assert loaded.dataset.attack.tolist() == [1, 2]
