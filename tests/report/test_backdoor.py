"""What a report says of a backdoor that malicious clients planted."""

import pytest

from fedjax_health.report import findings, tables
from fedjax_health.report.records import read_folder
from tests.report import folder


def view_of(root, backdoor):
    paths = folder.write_run(
        root / "ward", figures={**folder.figures(), "backdoor": backdoor}
    )
    return read_folder(paths.root)


@pytest.mark.parametrize(
    ("target", "rows", "called", "words"),
    [
        (0, "attack", "normal", "attack rows pass as normal"),
        (1, "normal", "attack", "normal rows are called attacks"),
    ],
)
def test_both_rates_are_shown_and_said(tmp_path, target, rows, called, words):
    rates = {"attack_success": 0.875, "without_trigger": 0.05}
    view = view_of(tmp_path, {"target": target, **rates})
    table = tables.backdoor(view)
    assert f"share of the {rows} rows called {called}" in table.caption
    assert table.columns == ("rows", f"called {called}")
    assert [row[1] for row in table.rows] == ["87.5 %", "5 %"]
    last = findings.plain_words(view)[-1]
    assert last.about == "With the backdoor's trigger"
    assert last.text.startswith(f"87.5 % of the {words} once they carry the trigger")
    assert "5 % do without it" in last.text


def test_rates_without_an_answer_are_dashes_and_not_said(tmp_path):
    rates = {"attack_success": None, "without_trigger": None}
    view = view_of(tmp_path, {"target": 0, **rates})
    assert [row[1] for row in tables.backdoor(view).rows] == ["\N{EN DASH}"] * 2
    assert findings.plain_words(view)[-1].about != "With the backdoor's trigger"


def test_a_run_without_one_has_no_table(tmp_path):
    view = view_of(tmp_path, None)
    assert tables.backdoor(view) is None
