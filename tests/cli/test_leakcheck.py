"""fedjax-health leakcheck: a verdict, a table, JSON, and no jax."""

import json
import subprocess
import sys

import pytest

from fedjax_health.cli.main import execute
from fedjax_health.cli.parser import parse_flags
from tests import tiny


def invoke(*arguments):
    return execute(parse_flags(["fedjax-health", *map(str, arguments)]))


@pytest.fixture
def leaky(tmp_path):
    """A table whose column "mac" is the label."""
    lines = tiny.table_lines()
    told = [f"{line},{line[-1]}" for line in lines[1:]]
    return tiny.write_table(tmp_path / "leaky.csv", [f"{lines[0]},mac", *told])


ROLES = ("--set", "data.client=site", "--set", "data.entity=device")
ROLES += ("--set", "data.time=minute", "--set", "split.scope=entity")
ROLES += ("--set", "window.length=5")


def test_a_table_as_it_is(leaky, capsys):
    assert invoke("leakcheck", leaky, *ROLES) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 of 5 checks warn (960 rows, 4 clients)\n")
    assert (
        "WARNING single column: columns give the label away: mac (AUROC 1.000)" in out
    )
    (line,) = [line for line in out.splitlines() if line.split()[:1] == ["mac"]]
    assert line.split() == ["mac", "features", "1.0000", "yes"]


def test_json_and_dropped_columns(leaky, capsys):
    drop = ("--set", 'data.drop=["mac"]')
    assert invoke("leakcheck", leaky, *ROLES, *drop, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is True
    assert (result["rows"], result["clients"]) == (960, 4)
    best = result["columns"][0]
    assert best == {"column": "mac", "role": "drop", "auroc": 1.0, "suspicious": True}
    assert {one["column"] for one in result["columns"]} == {
        *tiny.COLUMNS,
        "mac",
        "site",
        "device",
        "minute",
        "label",
    }


def test_a_configuration_names_the_roles(leaky, tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text(tiny.settings(tmp_path / "elsewhere.csv"), encoding="utf-8")
    assert invoke("leakcheck", leaky, "--config", config, "--json") == 0
    assert json.loads(capsys.readouterr().out)["columns"][0]["column"] == "mac"
    clean = tiny.write_table(tmp_path / "elsewhere.csv")
    assert invoke("leakcheck", "--config", config) == 0
    assert clean.is_file()
    out = capsys.readouterr().out
    assert out.startswith("nothing gives the label away (960 rows, 4 clients)\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere.csv",), "nowhere.csv does not exist"),
        (("{leaky}", "--set", "data.label=alarm"), "no column 'alarm' (label)"),
        (("{leaky}", "--config", "demo"), "data.path: no such field of hospital_sim"),
        (("{leaky}", "--set", "split=leave_one_out"), "split.client: names no client"),
    ],
)
def test_bad_input_is_one_line(arguments, expected, leaky, capsys):
    filled = [argument.format(leaky=leaky) for argument in arguments]
    assert invoke("leakcheck", *filled) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err
    assert captured.err.count("\n") == 1


def test_warnings_of_the_loader_are_lines_on_stderr(leaky, capsys):
    lines = leaky.read_text().splitlines()
    empty = [f"{lines[0]},gone", *(f"{line}," for line in lines[1:])]
    tiny.write_table(leaky, empty)
    masked = ("--set", "data.allow_missing=true")
    assert invoke("leakcheck", leaky, *ROLES, *masked, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"] == 960
    (line,) = captured.err.splitlines()
    assert line.startswith("warning: ")
    assert "'gone'" in line


def hospital(tmp_path, *, label="alarm"):
    """A CSV as a hospital exports it: dates, words, gaps, and a label of two words."""
    lines = [f"row,timestamp,ward_type,address,pulse,note,checked,{label}"]
    for i in range(400):
        alarm = i % 10 > 6
        lines.append(
            f"{i * 37 % 400},2025-03-{1 + i // 24:02d} {i % 24:02d}:00:00,"
            f"{('icu', 'general')[i % 2]},10.0.0.{i % 7},"
            f"{'' if i % 9 == 0 else 60 + i % 13},{'a, b' if i % 5 else ''},"
            f"2025-03-01,{('no', 'yes')[alarm]}".replace("a, b", '"a, b"')
        )
    return tiny.write_table(tmp_path / "ward.csv", lines)


def test_words_and_dates_are_found_where_no_one_names_them(tmp_path, capsys):
    path = hospital(tmp_path)
    arguments = ("leakcheck", path, "--set", "data.label=alarm", "--json")
    positive = ("--set", 'data.positive=["yes"]')
    assert invoke(*arguments, *positive) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "taken as the time: timestamp; as categories: ward_type, address, note, checked"
    ]
    roles = {c["column"]: c["role"] for c in json.loads(captured.out)["columns"]}
    assert set(roles) == set(path.read_text().split("\n", 1)[0].split(","))
    assert roles["timestamp"] == "time"
    assert roles["ward_type"] == "features"
    # What is named stays what it is named.
    assert invoke(*arguments, *positive, "--set", "data.time=row") == 0
    captured = capsys.readouterr()
    assert "as the time" not in captured.err
    roles = {c["column"]: c["role"] for c in json.loads(captured.out)["columns"]}
    assert (roles["row"], roles["timestamp"]) == ("time", "features")


def test_a_label_of_words_is_one_message_with_the_values(tmp_path, capsys):
    path = hospital(tmp_path)
    assert invoke("leakcheck", path, "--set", "data.label=alarm") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the column holds 'no', 'yes'" in line
    assert """--set 'data.positive=["yes"]'""" in line


def test_the_tables_of_a_folder_are_named(leaky, capsys):
    assert invoke("leakcheck", leaky.parent, *ROLES, "--json") == 0
    assert capsys.readouterr().err == f"reading {leaky.parent}: leaky.csv\n"


def test_another_delimiter_is_a_hint(leaky, capsys):
    lines = leaky.read_text().replace(".", ",").replace(",", ";")
    leaky.write_text(lines)
    assert invoke("leakcheck", leaky) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("""its cells stand between ';': set delimiter = ";\"""")


def test_tables_are_checked_without_jax(leaky):
    program = (
        "import sys; from fedjax_health.cli.main import execute; "
        "from fedjax_health.cli.parser import parse_flags; "
        f"line = ['x', 'leakcheck', {str(leaky)!r}, '--json', *{ROLES!r}]; "
        "code = execute(parse_flags(line)); "
        "print(code, 'jax' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr.split()[-2:] == ["0", "False"]
