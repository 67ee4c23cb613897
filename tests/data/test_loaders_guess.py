"""Roles that are guessed from what the cells hold."""

import pandas as pd
import pytest

from fedjax_health.data.loaders.cells import holds_dates
from fedjax_health.data.loaders.guess import guess_roles
from fedjax_health.data.loaders.tabular import ColumnRoles, load_table


def test_what_is_named_stays_and_the_rest_is_guessed(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "at,seen,a,b,c,gone,y\n"
        "2025-01-01 00:00,2025-01-05,1,x,p,,0\n"
        "2025-01-01 00:05,2025-01-04,2,,q,z,1\n"
    )
    roles = ColumnRoles(label="y", drop=("gone",), categorical=("c",))
    guessed = guess_roles(str(path), roles)
    assert (guessed.time, guessed.categorical) == ("at", ("c", "seen", "b"))
    assert guessed.allow_missing
    assert (guessed.label, guessed.drop) == (roles.label, roles.drop)
    assert load_table(path, guessed).feature_names["features"] == (
        "seen",
        "a",
        "b",
        "c",
    )
    named = ColumnRoles(label="y", modalities={"m": ("at", "a")})
    assert guess_roles(str(path), named).time is None
    assert guess_roles(str(path), named).categorical == ("at",)


def test_files_are_looked_at_together(tmp_path):
    (tmp_path / "a.csv").write_text("a,y\n1,0\n2,1\n")
    (tmp_path / "b.csv").write_text("a,y\nx,0\n2,1\n")
    roles = guess_roles(str(tmp_path), ColumnRoles(label="y"))
    assert roles.categorical == ("a",)
    assert load_table(tmp_path, roles).num_rows == 4


@pytest.mark.parametrize(
    ("cells", "dates"),
    [
        (["2025-01-31", "2025-02-01"], True),
        (["2025-01-31T10:00:00Z", "2025-02-01T10:00:00Z"], True),
        (["31.01.2025 10:00", "01.02.2025 11:00"], True),
        (["2025/1/31", "2025/2/1"], True),
        (["2025-01-31", ""], False),
        (["2025-01-31", "soon"], False),
        (["2025-13-41", "2025-01-01"], False),
        (["10.0.0.1", "10.0.1.2"], False),
        (["10:00", "11:00"], False),
        (["may", "june"], False),
        ([1.0, 2.0], False),
        (["1", "2"], False),
        (pd.to_datetime(["2025-01-31", "2025-02-01"]), True),
        (pd.to_datetime(["2025-01-31", None]), False),
    ],
)
def test_dates_are_told_from_addresses_and_words(cells, dates):
    assert holds_dates(pd.Series(cells, name="at")) is dates
