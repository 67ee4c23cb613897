"""The real WUSTL-EHMS-2020 part: sizes, roles, no leak, a usable split."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fedjax_health.data import partition
from fedjax_health.data.loaders.wustl import BIOMETRICS, FLOW, IDENTIFIERS, load_wustl
from fedjax_health.data.preprocess import apply_scaler, fit_scaler, summary
from fedjax_health.data.schema import DataError, segment_starts
from fedjax_health.data.splits import (
    Part,
    chronological,
    episode_blocks,
    split_dataset,
)


@pytest.fixture(scope="module")
def path(data_root):
    file = data_root / "wustl_ehms_2020" / "wustl-ehms-2020_first70.csv"
    if not file.exists():
        pytest.skip(f"WUSTL-EHMS-2020 is not in {data_root}")
    return file


@pytest.fixture(scope="module")
def wustl(path):
    return load_wustl(path)


def header() -> list[str]:
    return [*IDENTIFIERS, *FLOW, *BIOMETRICS, "Attack Category", "Label"]


def test_roles_on_a_made_file(tmp_path):
    rows = []
    for row in range(4):
        numbers = [row + index for index in range(len(FLOW) + len(BIOMETRICS))]
        attack = "Spoofing" if row > 1 else "normal"
        rows.append(["x"] * len(IDENTIFIERS) + numbers + [attack, int(row > 1)])
    table = pd.DataFrame(rows, columns=header())
    table.to_csv(tmp_path / "w.csv", index=False)
    data = load_wustl(tmp_path / "w.csv")
    assert data.feature_names == {"flow": FLOW, "biometrics": BIOMETRICS}
    assert data.features["flow"][:, 0].tolist() == [0, 1, 2, 3]
    assert data.features["biometrics"][:, 0].tolist() == [26, 27, 28, 29]
    assert data.attack_names == ("normal", "Spoofing")
    table.drop(columns="Pulse_Rate").to_csv(tmp_path / "w.csv", index=False)
    with pytest.raises(DataError, match="'Pulse_Rate'"):
        load_wustl(tmp_path / "w.csv")


@pytest.mark.realdata
class TestRealFile:
    def test_size_and_balance(self, wustl):
        assert wustl.num_rows == 11_422
        assert wustl.label.mean() == pytest.approx(0.127, abs=5e-4)
        assert wustl.attack_names == ("normal", "Data Alteration", "Spoofing")
        assert np.bincount(wustl.attack).tolist() == [9966, 698, 758]
        assert len(segment_starts(wustl)) == 1
        np.testing.assert_array_equal(wustl.time, np.arange(11_422))

    def test_every_column_of_the_file_has_a_role(self, path):
        assert sorted(header()) == sorted(pd.read_csv(path, nrows=0).columns)

    def test_no_kept_column_gives_the_label_away(self, wustl):
        for name, values in wustl.features.items():
            assert not set(wustl.feature_names[name]) & set(IDENTIFIERS)
            for column, value in zip(wustl.feature_names[name], values.T, strict=True):
                area = roc_auc_score(wustl.label, value)
                assert max(area, 1 - area) <= 0.98, column

    def test_an_identifier_would(self, path):
        table = pd.read_csv(path, usecols=["SrcMac", "Label"])
        codes = pd.factorize(table["SrcMac"])[0]
        assert roc_auc_score(table["Label"], codes) > 0.98

    def test_chronological_split_and_clients(self, wustl):
        part = chronological(
            wustl,
            train=0.6,
            validation=0.1,
            test=0.3,
            embargo=20,
            scope="global",
        )
        counts = [int((part == value).sum()) for value in Part]
        assert counts == [40, 6853 - 20, 1142, 3427 - 20]
        parts = partition.contiguous(split_dataset(wustl, part), num_clients=10)
        report = summary(parts.train)
        assert report.rows_per_client.min() >= 683
        assert not report.single_class_clients
        scaled = apply_scaler(fit_scaler(parts.train), parts.test)
        for values in scaled.features.values():
            assert np.isfinite(values).all()
            assert np.abs(values).max() <= 8

    def test_episode_blocks_keep_episodes_whole(self, wustl):
        part = episode_blocks(wustl, block=200, embargo=20, seed=1)
        parts = split_dataset(wustl, part)
        for name, dataset in zip(parts._fields, parts, strict=True):
            assert set(np.unique(dataset.attack)) == {0, 1, 2}, name
        share = np.array([dataset.num_rows for dataset in parts])
        np.testing.assert_allclose(
            share / share.sum(), [0.6, 0.1, 0.3], rtol=0, atol=0.04
        )
