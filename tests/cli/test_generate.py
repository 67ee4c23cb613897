"""Writing a dataset, and reading it back by the roles that are written beside it."""

import tomllib

import numpy as np
import pandas as pd
import pytest

from fedjax_health.cli.generate import check_output, to_frame, write_dataset
from fedjax_health.config import parse
from fedjax_health.data.loaders.tabular import ColumnRoles, load_table
from fedjax_health.data.schema import DataError, Dataset


def small_dataset(missing=True):
    rng = np.random.default_rng(0)
    features = {
        "iot": rng.normal(size=(6, 2)).astype(np.float32),
        "emr": rng.normal(size=(6, 3)).astype(np.float32),
    }
    if missing:
        features["emr"][2, 1] = np.nan
    return Dataset(
        features=features,
        feature_names={"iot": ("bytes", "rate"), "emr": ("rate", "time", "pulse")},
        label=np.array([0, 1, 0, 0, 1, 0], np.float32),
        attack=np.array([0, 2, 0, 0, 1, 0], np.int32),
        attack_names=("normal", "replay", "recon, slow"),
        client=np.array([0, 0, 0, 1, 1, 1], np.int32),
        client_names=("ward <a>", "ward,b"),
        entity=np.array([0, 0, 1, 0, 0, 0], np.int64),
        time=np.array([0.0, 60.0, 0.0, 0.0, 60.0, 120.0]),
        oracle=np.linspace(0, 1, 6).astype(np.float32),
    )


def test_names_that_occur_twice_carry_their_modality():
    frame, modalities = to_frame(small_dataset())
    assert modalities == {
        "iot": ["bytes", "iot.rate"],
        "emr": ["emr.rate", "emr.time", "pulse"],
    }
    assert list(frame)[:5] == ["client", "entity", "time", "label", "attack"]
    assert "oracle" not in frame
    assert "oracle" in to_frame(small_dataset(), oracle=True)[0]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("oracle", [False, True])
def test_what_is_written_reads_back_the_same(tmp_path, suffix, oracle):
    dataset = small_dataset()
    path = check_output(tmp_path / f"data{suffix}")
    result = write_dataset(dataset, path, oracle=oracle)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [f"data{suffix}", "data.toml"]
    )
    assert result["rows"] == 6
    assert result["positive_share"] == pytest.approx(1 / 3)
    roles = tomllib.loads((tmp_path / "data.toml").read_text())["data"]
    del roles["kind"]
    again = load_table(
        roles.pop("path"),
        ColumnRoles(**{**roles, "drop": tuple(roles["drop"])}),
    )
    assert again.client_names == dataset.client_names
    for name in ("label", "client", "time"):
        np.testing.assert_array_equal(getattr(again, name), getattr(dataset, name))
    for row in range(6):
        assert (
            again.attack_names[again.attack[row]]
            == dataset.attack_names[dataset.attack[row]]
        )
    for modality, values in dataset.features.items():
        np.testing.assert_array_equal(again.features[modality], values)


def test_the_written_configuration_is_a_valid_one(tmp_path):
    write_dataset(small_dataset(missing=False), tmp_path / "data.csv")
    config = parse((tmp_path / "data.toml").read_text())
    assert config.data.path == str(tmp_path / "data.csv")
    assert config.data.allow_missing is False
    assert config.data.client == "client"


def test_files_in_use_are_refused(tmp_path):
    write_dataset(small_dataset(), tmp_path / "data.csv")
    with pytest.raises(DataError, match=r"data\.csv: exists already"):
        check_output(tmp_path / "data.csv")
    with pytest.raises(DataError, match=r"data\.toml: exists already"):
        check_output(tmp_path / "data.parquet")


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("broken")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="broken"):
        write_dataset(small_dataset(), tmp_path / "data.csv")
    assert list(tmp_path.iterdir()) == []
