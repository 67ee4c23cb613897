"""TON_IoT telemetry from made files and from the real ones."""

import gzip

import numpy as np
import pytest

from fedjax_health.data.loaders.ton_iot import files, load_ton_iot, read_ton_iot
from fedjax_health.data.schema import DataError, DataWarning, check_dataset

DOOR = """\
\ufeffdate,time,door_state,sphone_signal,label,type
25-Apr-19, 14:42:33 ,closed,0,1,ddos
25-Apr-19, 14:42:33 ,closed,0,1,ddos
25-Apr-19, 14:42:33 ,closed,0,1,xss
31-Mar-19, 14:42:33 ,open ,true  ,0,normal
31-Mar-19, 14:42:38 ,closed  ,false  ,0,normal
"""
FRIDGE = """\
date,time,fridge_temperature,temp_condition,label,type
25-Apr-19, 19:19:40 ,9,high,1,ransomware
31-Mar-19, 19:19:40 ,3.25,low ,0,normal
31-Mar-19, 19:19:45 ,,low  ,0,normal
"""


def write(folder, door=DOOR, fridge=FRIDGE):
    for name, text in (("Garage_Door", door), ("Fridge", fridge)):
        if text is not None:
            packed = gzip.compress(text.encode())
            (folder / f"Train_Test_IoT_{name}.csv.gz").write_bytes(packed)
    return folder


def load(folder, **settings):
    with pytest.warns(DataWarning, match="1 of 8 rows repeat"):
        return load_ton_iot(folder, **settings)


def test_devices_are_clients_and_columns_are_joined(tmp_path):
    data = load(write(tmp_path))
    check_dataset(data)
    assert data.client_names == ("Fridge", "Garage_Door")
    assert data.client.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert data.label.tolist() == [1, 0, 0, 1, 1, 0, 0]
    # The second row of the door is a repeated one; the fridge's come before it.
    assert data.row.tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert data.attack_names == ("normal", "ddos", "ransomware", "xss")
    assert data.attack.tolist() == [2, 0, 0, 1, 3, 0, 0]
    assert data.feature_names == {
        "telemetry": (
            "fridge_temperature",
            "temp_condition",
            "door_state",
            "sphone_signal",
        )
    }
    nan = np.nan
    np.testing.assert_array_equal(
        data.features["telemetry"],
        np.float32(
            [
                [9, 0, nan, nan],
                [3.25, 1, nan, nan],
                [nan, 1, nan, nan],
                [nan, nan, 0, 0],
                [nan, nan, 0, 0],
                [nan, nan, 1, 1],
                [nan, nan, 0, 0],
            ]
        ),
    )
    assert data.categories == {
        "telemetry": {
            "temp_condition": ("high", "low"),
            "door_state": ("closed", "open"),
        }
    }


def test_rows_stand_alone_and_have_no_time(tmp_path):
    data = load(write(tmp_path))
    assert len(np.unique(data.entity)) == data.num_rows
    assert not data.time.any()
    assert data.step_seconds is None
    assert not {"date", "time", "type"} & set(data.feature_names["telemetry"])


def test_repeated_rows_are_said_or_kept(tmp_path):
    write(tmp_path)
    with pytest.warns(DataWarning, match=r"left out \(Garage_Door 1\)"):
        load_ton_iot(tmp_path)
    assert load_ton_iot(tmp_path, drop_duplicates=False).num_rows == 8
    assert read_ton_iot(tmp_path).dataset.num_rows == 8


def test_one_device_to_score(tmp_path):
    unlabelled = "\n".join(line.rsplit(",", 2)[0] for line in DOOR.splitlines()) + "\n"
    write(tmp_path, unlabelled, None)
    (path,) = files(tmp_path)
    loaded = read_ton_iot(path)
    assert not loaded.has_labels
    assert loaded.dataset.client_names == ("Garage_Door",)
    assert loaded.dataset.feature_names["telemetry"] == ("door_state", "sphone_signal")
    trained = ("fridge_temperature", "temp_condition", "door_state")
    loaded = read_ton_iot(path, feature_names=trained)
    assert loaded.dataset.feature_names["telemetry"] == trained
    assert np.isnan(loaded.dataset.features["telemetry"][:, :2]).all()
    # Its kind is known although it has no value here.
    assert loaded.dataset.categories["telemetry"]["temp_condition"] == ()
    with pytest.raises(DataError, match="no column 'label'"):
        load_ton_iot(path)


def test_a_device_without_labels_is_scored_beside_others(tmp_path):
    unlabelled = "\n".join(line.rsplit(",", 2)[0] for line in DOOR.splitlines()) + "\n"
    loaded = read_ton_iot(write(tmp_path, unlabelled, FRIDGE))
    data = loaded.dataset
    assert data.client_names == ("Fridge", "Garage_Door")
    np.testing.assert_array_equal(loaded.known, data.client == 0)
    assert data.label[loaded.known].any()
    with pytest.raises(DataError, match="no column 'label'"):
        load_ton_iot(tmp_path)


def test_devices_that_are_not_known_tell_their_kinds(tmp_path):
    (tmp_path / "Pump.csv").write_text(
        "flow,mode,label,type\n1,a,0,normal\n2,b,1,dos\n"
    )
    data = load_ton_iot(tmp_path)
    assert data.client_names == ("Pump",)
    assert data.categories == {"telemetry": {"mode": ("a", "b")}}
    (tmp_path / "Valve.csv").write_text("mode,label,type\n1,0,normal\n2,1,dos\n")
    with pytest.raises(DataError, match="'mode' holds numbers at Valve"):
        load_ton_iot(tmp_path)


@pytest.mark.parametrize(
    ("door", "fridge", "text"),
    [
        (DOOR.replace("false  ", "maybe"), FRIDGE, "line 6, column 'sphone_signal'"),
        (DOOR, FRIDGE.replace("3.25", "cold"), "line 3, column 'fridge_temperature'"),
        (DOOR.replace("0,normal", "1,normal"), FRIDGE, "attack 'normal' on a row"),
        (DOOR, FRIDGE.replace("0,normal", "2,normal"), "label '2' is not 0 or 1"),
        (DOOR, "date,time,label,type\na,b,0,normal\n", "no column of telemetry"),
        (DOOR, "date,fridge_temperature,type\na,1,normal\n", "no column 'label'"),
        (
            DOOR.replace("1,ddos", "0,normal").replace("1,xss", "0,normal"),
            None,
            "one class",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path, door, fridge, text):
    with pytest.raises(DataError) as caught:
        load_ton_iot(write(tmp_path, door, fridge), drop_duplicates=False)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_are_those_of_the_file_after_rows_were_left_out(tmp_path):
    write(tmp_path, DOOR.replace("false  ", "maybe"))
    with pytest.raises(DataError, match="line 6, column 'sphone_signal': 'maybe'"):
        load_ton_iot(tmp_path)


def test_what_is_no_telemetry(tmp_path):
    with pytest.raises(DataError, match="holds no Train_Test_IoT_"):
        load_ton_iot(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_ton_iot(tmp_path / "none")
    write(tmp_path)
    (tmp_path / "Fridge.csv").write_text(FRIDGE)
    with pytest.raises(DataError, match="two files are of one device"):
        load_ton_iot(tmp_path, drop_duplicates=False)
    path = tmp_path / "Train_Test_IoT_Fridge.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="truncated or corrupt gzip"):
        load_ton_iot(path)


@pytest.mark.realdata
def test_the_real_files(data_root):
    folder = data_root / "ton_iot_telemetry"
    if not folder.is_dir():
        pytest.skip(f"TON_IoT is not in {data_root}")
    whole = load_ton_iot(folder, drop_duplicates=False)
    check_dataset(whole)
    counts = dict(zip(whole.client_names, np.bincount(whole.client), strict=True))
    assert counts == {
        "Fridge": 39_944,
        "GPS_Tracker": 38_960,
        "Garage_Door": 39_587,
        "Motion_Light": 39_488,
        "Thermostat": 32_774,
    }
    with pytest.warns(DataWarning, match="37,137 of 190,753 rows repeat"):
        kept = load_ton_iot(folder)
    left = 1 - np.bincount(kept.client) / np.bincount(whole.client)
    assert left[[2, 3]] == pytest.approx([0.511, 0.346], abs=1e-3)
    # The door's state tells nothing once it is not written in two ways.
    door = whole.features["telemetry"][whole.client == 2]
    names = whole.feature_names["telemetry"]
    states = door[:, [names.index("door_state"), names.index("sphone_signal")]]
    label = whole.label[whole.client == 2]
    assert set(map(tuple, states[label > 0])) == set(map(tuple, states[label == 0]))
