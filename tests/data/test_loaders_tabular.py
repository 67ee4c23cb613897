"""Every way in which a table can be wrong gives one line that names the place."""

import gzip
import os
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from fedjax_health.data.loaders.tabular import (
    ColumnRoles,
    dataset_from_frame,
    load_table,
)
from fedjax_health.data.schema import DataError, segment_starts


def write(folder: Path, text: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path, **roles) -> str:
    with pytest.raises(DataError) as caught:
        load_table(path, ColumnRoles(**{"label": "y", **roles}))
    message = str(caught.value)
    assert "\n" not in message
    return message


STREAM = """\
site,device,t,hr,bp,mac,y,kind
B,2,3,1.5,10,aa,0,ok
A,1,2,2.5,20,bb,1,dos
A,1,1,3.5,30,aa,0,ok
B,1,9,4.5,40,aa,1,spoof
A,1,2,5.5,50,aa,0,ok
"""
STREAM_ROLES = ColumnRoles(
    label="y",
    attack="kind",
    normal="ok",
    client="site",
    entity="device",
    time="t",
    drop=("mac",),
    modalities={"vitals": ("hr",), "other": "rest"},
)


def check_stream(data):
    assert data.client_names == ("A", "B")
    assert data.attack_names == ("normal", "dos", "spoof")
    assert data.feature_names == {"vitals": ("hr",), "other": ("bp",)}
    assert data.client.tolist() == [0, 0, 0, 1, 1]
    assert data.entity.tolist() == [0, 0, 0, 0, 1]
    assert data.time.tolist() == [1, 2, 2, 9, 3]
    # Rows of equal time keep the order of the file.
    assert data.features["vitals"][:, 0].tolist() == [3.5, 2.5, 5.5, 4.5, 1.5]
    assert data.features["other"][:, 0].tolist() == [30, 20, 50, 40, 10]
    assert data.label.tolist() == [0, 1, 0, 1, 0]
    assert data.attack.tolist() == [0, 1, 0, 2, 0]
    assert segment_starts(data).tolist() == [0, 3, 4]
    for array, dtype in (
        (data.label, np.float32),
        (data.attack, np.int32),
        (data.client, np.int32),
        (data.entity, np.int64),
        (data.time, np.float64),
        (data.features["vitals"], np.float32),
    ):
        assert array.dtype == dtype


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "frame"])
def test_roles_sort_and_name_the_columns(tmp_path, kind):
    if kind == "csv":
        path = write(tmp_path, STREAM)
    elif kind == "csv.gz":
        path = write(tmp_path, gzip.compress(STREAM.encode()), "table.csv.gz")
    else:
        frame = pd.read_csv(write(tmp_path, STREAM))
        if kind == "frame":
            check_stream(dataset_from_frame(frame, STREAM_ROLES))
            return
        path = tmp_path / "table.parquet"
        frame.to_parquet(path)
    check_stream(load_table(path, STREAM_ROLES))
    check_stream(load_table(str(path), STREAM_ROLES))


def test_kind_is_told_from_content_not_name(tmp_path):
    path = write(tmp_path, gzip.compress(STREAM.encode()), "table.csv")
    check_stream(load_table(path, STREAM_ROLES))


def test_roles_come_from_configuration():
    roles = msgspec.convert(
        {"label": "num", "positive": [1, 2], "modalities": {"a": ["x"], "b": "rest"}},
        ColumnRoles,
    )
    assert roles.modalities == {"a": ("x",), "b": "rest"}
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"label": "y", "lable": "y"}, ColumnRoles)
    with pytest.raises(msgspec.ValidationError, match="two roles"):
        msgspec.convert({"label": "y", "drop": ["y"]}, ColumnRoles)


@pytest.mark.parametrize(
    ("positive", "cells", "expected"),
    [
        ((), ["0", "1", "1.0"], [0, 1, 1]),
        ((), ["false", "True", "FALSE"], [0, 1, 0]),
        ((1, 2), ["0", "2", "1.0"], [0, 1, 1]),
        (("yes",), ["yes", "no", " yes "], [1, 0, 1]),
    ],
)
def test_label_values(tmp_path, positive, cells, expected):
    rows = "".join(f"{index},{cell}\n" for index, cell in enumerate(cells))
    path = write(tmp_path, "a,y\n" + rows)
    data = load_table(path, ColumnRoles(label="y", positive=positive))
    assert data.label.tolist() == expected
    assert data.attack.tolist() == expected
    assert data.attack_names == ("normal", "attack")
    assert data.client_names == ("all",)
    assert data.time.tolist() == [0, 1, 2]


def test_client_names_are_text_and_sorted_as_numbers(tmp_path):
    path = write(tmp_path, "a,y,c\n1,0,10\n2,1,9\n3,1,007\n")
    data = load_table(path, ColumnRoles(label="y", client="c"))
    assert data.client_names == ("007", "9", "10")
    assert data.features["features"][:, 0].tolist() == [3, 2, 1]
    frame = pd.DataFrame({"a": [1.0, 2.0], "y": [0, 1], "c": [2.0, 1.0]})
    data = dataset_from_frame(frame, ColumnRoles(label="y", client="c"))
    assert data.client_names == ("1", "2")


def test_dates_become_seconds(tmp_path):
    path = write(tmp_path, "a,y,t\n1,0,1970-01-02 00:00:01\n2,1,1970-01-01\n")
    data = load_table(path, ColumnRoles(label="y", time="t"))
    assert data.time.tolist() == [0, 86_401]
    path = write(tmp_path, "a,y,t\n1,0,02/01/1970\n2,1,01/01/1970\n")
    roles = ColumnRoles(label="y", time="t", time_format="%d/%m/%Y")
    assert load_table(path, roles).time.tolist() == [0, 86_400]
    frame = pd.DataFrame(
        {
            "a": [1, 2],
            "y": [0, 1],
            "t": pd.to_datetime(["1970-01-01T01:00+01:00", "1970-01-01T01:01+01:00"]),
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    data = load_table(tmp_path / "t.parquet", ColumnRoles(label="y", time="t"))
    assert data.time.tolist() == [0, 60]


def test_byte_order_mark_line_ends_and_delimiter(tmp_path):
    path = write(tmp_path, "\ufeffa;y\r\n1;0\r\n\r\n2;1\r\n")
    data = load_table(path, ColumnRoles(label="y", delimiter=";"))
    assert data.features["features"][:, 0].tolist() == [1, 2]


def test_missing_values_are_allowed_only_when_told(tmp_path):
    path = write(tmp_path, "a,b,y\n1,NA,0\n,2,1\nnan,?,1\n")
    message = refused(path, drop=("b",))
    assert "line 3, column 'a'" in message
    assert "allow_missing" in message
    data = load_table(path, ColumnRoles(label="y", drop=("b",), allow_missing=True))
    np.testing.assert_array_equal(
        data.features["features"], np.float32([[1], [np.nan], [np.nan]])
    )
    assert data.masked == {"features"}
    whole = write(tmp_path, "a,y\n1,0\n2,1\n", "whole.csv")
    assert load_table(whole, ColumnRoles(label="y")).masked == frozenset()
    allowed = ColumnRoles(label="y", allow_missing=True)
    assert load_table(whole, allowed).masked == {"features"}
    # A question mark is not a known way to write "no value".
    assert "line 4, column 'b': '?'" in refused(path, drop=("a",), allow_missing=True)


def test_paths(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.csv")
    assert "is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refused(tmp_path / "pipe")


def test_unreadable(tmp_path):
    path = write(tmp_path, STREAM)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        message = refused(path)
    finally:
        if root:
            os.seteuid(0)
    assert "cannot be read" in message
    assert "denied" in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n\n", "is empty"),
        ("a.csv", b"a,y\n", "no rows"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.csv.gz", b"a,y\n1,0\n2,1\n", "not gzipped"),
        ("a.csv", b"a,y\n1,0\n\n2\n3,1\n", "line 4: 1 cells where the header has 2"),
        ("a.csv", b"a,y\n1,0\n2,1,7\n", "line 3: 3 cells where the header has 2"),
        ("a.csv", b'a,y\n1,0\n"2,1\n3,1\n', "line 3"),
        ("a.csv", b"a,y\n1,0\n\xff\xfe,1\n", "UTF-8"),
        ("a.csv", "a,y\n1,0\n".encode("utf-16"), "neither text nor Parquet"),
        ("a.xlsx", b"PK\x03\x04\x00\x00", "neither text nor Parquet"),
        ("a.parquet", b"hello", "corrupt Parquet"),
    ],
)
def test_broken_files(tmp_path, name, content, expected):
    assert expected in refused(write(tmp_path, content, name))


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path, cut):
    table = "a,y\n" + "".join(f"{row * 0.37:.5f},{row % 2}\n" for row in range(9000))
    packed = gzip.compress(table.encode())
    path = write(tmp_path, packed[: int(len(packed) * cut)], "a.csv.gz")
    assert "truncated or corrupt gzip" in refused(path)
    frame = pd.DataFrame({"a": np.arange(9000.0), "y": np.arange(9000) % 2})
    frame.to_parquet(tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    path = write(tmp_path, whole[: int(len(whole) * cut)], "cut.parquet")
    assert "truncated or corrupt Parquet" in refused(path)


def test_flipped_bytes_of_gzip(tmp_path):
    packed = bytearray(gzip.compress(STREAM.encode() * 50))
    packed[len(packed) // 2] ^= 0x55
    path = write(tmp_path, bytes(packed), "a.csv.gz")
    assert "truncated or corrupt gzip" in refused(path)


def test_damaged_parquet_body(tmp_path):
    frame = pd.DataFrame({"a": np.arange(9000.0), "y": np.arange(9000) % 2})
    frame.to_parquet(tmp_path / "a.parquet")
    damaged = bytearray((tmp_path / "a.parquet").read_bytes())
    damaged[4:2000] = bytes(1996)
    path = write(tmp_path, bytes(damaged), "b.parquet")
    assert "corrupt Parquet" in refused(path)


def test_columns_that_are_not_there(tmp_path):
    wide = ",".join(f"column_{index}" for index in range(40)) + ",y\n"
    path = write(tmp_path, wide + ",".join(["1"] * 41) + "\n")
    message = refused(path, drop=("colum_7",))
    assert "'colum_7' (drop)" in message
    assert "did you mean 'column_7'" in message
    assert "29 more" in message
    assert "no column 'Y' (label), did you mean 'y'" in refused(path, label="Y")
    assert "(modalities.m)" in refused(path, modalities={"m": ("none",)})
    assert "two columns named 'a'" in refused(write(tmp_path, "a,y,a\n1,0,2\n"))
    path = write(tmp_path, "y,c\n0,1\n1,2\n")
    assert "no column is left for modalities.features" in refused(path, client="c")


def test_columns_are_checked_before_the_body(tmp_path):
    path = write(tmp_path, "a,y\n1,0\nabc\n")
    assert "no column 'z'" in refused(path, label="z")


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ({"client": "y"}, "'y' has two roles, label and client"),
        ({"drop": ("a", "a")}, "'a' has two roles, drop and drop"),
        ({"drop": ("a",), "modalities": {"m": ("a",)}}, "drop and modalities.m"),
        ({"modalities": {"m": ("a",), "n": ("a",)}}, "modalities.m and modalities.n"),
        ({"modalities": {"m": "rest", "n": "rest"}}, 'only one modality can be "rest"'),
        ({"modalities": {}}, "modalities is empty"),
        ({"modalities": {"m": ()}}, "modalities.m has no column"),
        ({"modalities": {"m": "all"}}, "modalities.m is 'all'"),
        ({"drop": "a"}, "drop is 'a'"),
        ({"positive": "yes"}, "positive is 'yes'"),
        ({"delimiter": ""}, "delimiter is ''"),
    ],
)
def test_roles_that_contradict(roles, expected):
    with pytest.raises(DataError) as caught:
        ColumnRoles(label="y", **roles)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "roles", "expected"),
    [
        ("a,y\n1,0\n2,2\n", {}, "line 3, column 'y': label '2' is not 0 or 1"),
        ("a,y\n1,0\n2,no\n", {}, "line 3, column 'y': label 'no' is not 0 or 1"),
        ("a,y\n1,0\n\n2,\n", {}, "line 4, column 'y': no label"),
        ("a,y\n1,0\n2,nan\n", {}, "line 3, column 'y': no label"),
        ("a,y\n1,0\n2,0\n", {}, "one class, all 2 rows are negative"),
        ("a,y\n1,1\n2,1\n", {}, "one class, all 2 rows are positive"),
        ("a,y\n1,no\n2,n\n", {"positive": ("yes",)}, "values 'no', 'n'"),
        ("a,y\n1,0\nabc,1\n", {}, "line 3, column 'a': 'abc' is not a number"),
        ('a,b,y\n1,"x\ny",0\nz,w,1\n', {"drop": ("b",)}, "line 4, column 'a': 'z'"),
        ("a,y\n2020-01-01,0\n2020-01-02,1\n", {}, "2020-01-01 is not a number"),
        ("a,b,y\n1,5,0\n2,-inf,1\n", {}, "line 3, column 'b': -inf is infinite"),
        ("a,y\n1,0\n1e39,1\n", {}, "line 3, column 'a': 1e+39 is infinite or too"),
        ("a,c,y\n1,A,0\n2,,1\n", {"client": "c"}, "line 3, column 'c': no value"),
        ("a,e,y\n1,A,0\n2, ,1\n", {"entity": "e"}, "line 3, column 'e': no value"),
        ("a,t,y\n1,5,0\n2,,1\n", {"time": "t"}, "line 3, column 't'"),
        ("a,t,y\n1,5,0\n2,6,1\n3,x,1\n", {"time": "t"}, "line 4, column 't': 'x'"),
        ("a,t,y\n1,2020-01-01,0\n2,x,1\n", {"time": "t"}, "line 3, column 't': 'x'"),
        ("a,t,y\n1,12:00,0\n2,13:00,1\n", {"time": "t"}, "line 2, column 't'"),
        ("a,t,y\n1,1,0\n2,inf,1\n", {"time": "t"}, "line 3, column 't': inf"),
        (
            "a,t,y\n1,01.02.2020,0\n2,2020,1\n",
            {"time": "t", "time_format": "%d.%m.%Y"},
            "line 3, column 't': '2020' is not a time of format '%d.%m.%Y'",
        ),
        (
            "a,k,y\n1,Normal,0\n2,dos,1\n",
            {"attack": "k"},
            "no value 'normal' (normal), did you mean 'Normal'",
        ),
        (
            "a,k,y\n1,normal,0\n2,dos,0\n3,dos,1\n",
            {"attack": "k"},
            "line 3, column 'k': attack 'dos' on a row with a negative label",
        ),
        (
            "a,k,y\n1,normal,0\n2,normal,1\n3,dos,1\n",
            {"attack": "k"},
            "line 3, column 'k': attack 'normal' on a row with a positive label",
        ),
        ("a,k,y\n1,ok,0\n2,normal,1\n", {"attack": "k", "normal": "ok"}, "one"),
    ],
)
def test_cells_that_cannot_be_used(tmp_path, text, roles, expected):
    assert expected in refused(write(tmp_path, text), **roles)


def test_bad_cell_far_down_a_long_file(tmp_path):
    # Beyond pyarrow's first block, whose types are inferred first.
    lines = [f"{row}.5,{row % 2}" for row in range(200_000)]
    lines[150_000] = "oops,0"
    path = write(tmp_path, "a,y\n" + "\n".join(lines) + "\n")
    assert "line 150002, column 'a': 'oops'" in refused(path)


def test_parquet_rows_are_counted_from_one(tmp_path):
    pd.DataFrame({"a": [1.0, np.inf], "y": [0, 1]}).to_parquet(tmp_path / "a.parquet")
    assert "row 2, column 'a'" in refused(tmp_path / "a.parquet")


def test_two_columns_of_one_name_in_a_frame():
    frame = pd.DataFrame([[1, 0, 2]], columns=["a", "y", "a"])
    with pytest.raises(DataError, match="two columns named 'a'"):
        dataset_from_frame(frame, ColumnRoles(label="y"))
