import dataclasses

import numpy as np
import pandas as pd
import pytest

from fedjax_health.data.hospital_sim import (
    META_COLUMNS,
    SimSettings,
    generate,
    write,
    writing,
)
from fedjax_health.data.hospital_sim import constants as c

SMALL = SimSettings(hospitals=3, patients_per_hospital=(6, 12), steps=40)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_file_holds_the_same_rows(tmp_path, ending):
    path = tmp_path / f"sim.{ending}"
    rows = write(SMALL, 3, path)
    dataset = generate(SMALL, 3)
    table = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    assert len(table) == rows == dataset.num_rows
    expected = (*META_COLUMNS, *c.IOT_FEATURES, *c.EMR_FEATURES)
    assert tuple(table.columns) == (*expected, "label", "attack", "oracle")
    for modality, values in dataset.features.items():
        read = table[list(dataset.feature_names[modality])].to_numpy(np.float32)
        np.testing.assert_array_equal(read, values)
    names = np.array(dataset.client_names)
    np.testing.assert_array_equal(table["client"], names[dataset.client])
    kinds = np.array(dataset.attack_names)
    np.testing.assert_array_equal(table["attack"], kinds[dataset.attack])
    np.testing.assert_array_equal(table["time"], dataset.time)
    assert table.groupby("entity").size().eq(SMALL.steps).all()
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_failure_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "sim.csv"
    path.write_text("old")

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(writing, "hospital_frame", fail)
    with pytest.raises(OSError, match="no space"):
        write(SMALL, 0, path)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["sim.csv"]


def test_bad_paths_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.csv or \.parquet"):
        write(SMALL, 0, tmp_path / "sim.txt")
    with pytest.raises(ValueError, match="does not exist"):
        write(SMALL, 0, tmp_path / "none" / "sim.csv")


def test_a_single_hospital_can_be_generated():
    one = dataclasses.replace(SMALL, hospitals=1)
    assert generate(one, 0).num_clients == 1
