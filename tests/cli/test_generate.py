"""The embedded data as a file, and the configuration that reads it back."""

import json

import numpy as np
import pytest

from fedjax_health.cli import main as cli
from fedjax_health.cli.generate import check_output, table_roles
from fedjax_health.config import ConfigError, load, simulation_settings
from fedjax_health.data.hospital_sim.constants import ATTACK_NAMES

SMALL = (
    "data.hospitals=2",
    "data.departments=[1, 2]",
    "data.patients_per_hospital=[2, 3]",
    "data.steps=20",
)


def generate(*arguments):
    changes = [part for change in SMALL for part in ("--set", change)]
    with pytest.raises(SystemExit) as caught:
        cli.main(["fedjax-health", "generate", "--no-cache", *changes, *arguments])
    return caught.value.code or 0


def sorted_rows(dataset):
    """Every row as numbers, a missing value as -1e9, in an order of their own."""
    attack = np.array([ATTACK_NAMES.index(name) for name in dataset.attack_names])
    columns = [dataset.client, dataset.time, dataset.label, attack[dataset.attack]]
    table = np.column_stack([*columns, *dataset.features.values()])
    table = np.nan_to_num(table, nan=-1e9)
    return table[np.lexsort(table.T)]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_file_and_its_configuration_hold_the_generated_data(
    tmp_path, capsys, suffix
):
    from fedjax_health.data.hospital_sim import generate as simulate
    from fedjax_health.data.loaders.tabular import ColumnRoles, load_table

    path = tmp_path / f"data{suffix}"
    assert generate("--seed", "3", "--out", str(path), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    table = load(result["config"]).data
    roles = {
        name: getattr(table, name)
        for name in ColumnRoles.__struct_fields__
        if hasattr(table, name)
    }
    again = load_table(table.path, ColumnRoles(**roles))
    dataset = simulate(simulation_settings(load("demo", SMALL).data), 3)
    assert result["rows"] == dataset.num_rows == again.num_rows
    assert again.client_names == dataset.client_names
    assert again.feature_names == dataset.feature_names
    # The loader puts entities into its own order.
    np.testing.assert_array_equal(sorted_rows(again), sorted_rows(dataset))
    assert generate("--out", str(path)) == 2
    assert "exists already" in capsys.readouterr().err


def test_every_column_of_the_file_has_one_role(tmp_path):
    from fedjax_health.data.hospital_sim import META_COLUMNS

    roles = table_roles(tmp_path / "x.csv")
    single = ("label", "attack", "client", "entity", "patient", "time")
    columns = [roles[role] for role in single]
    columns += roles["drop"] + roles["modalities"]["iot"] + roles["modalities"]["emr"]
    assert len(set(columns)) == len(columns)
    assert set(META_COLUMNS) < set(columns)
    assert "oracle" in roles["drop"]


def test_what_cannot_be_written_is_refused_first(tmp_path):
    assert check_output(tmp_path / "new.csv") == tmp_path / "new.csv"
    (tmp_path / "data.toml").write_text("")
    with pytest.raises(ConfigError, match=r"data\.toml: exists already"):
        check_output(tmp_path / "data.parquet")
    with pytest.raises(ConfigError, match=r"must end in \.csv or \.parquet"):
        check_output(tmp_path / "data.xlsx")
    with pytest.raises(ConfigError, match="does not exist"):
        check_output(tmp_path / "absent" / "data.csv")
