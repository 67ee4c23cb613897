"""Input that cannot be used: one line, exit code 2, and nothing trained."""

import gzip
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedjax_health import records
from fedjax_health.cli import main as cli
from fedjax_health.engine.checkpoint import MANIFEST
from tests import tiny

PREFIX = "fedjax-health: error: "


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a table and a configuration that would train on it."""
    monkeypatch.chdir(tmp_path)
    tiny.write_table(tmp_path / "ward.csv")
    (tmp_path / "tiny.toml").write_text(tiny.settings(Path("ward.csv")))
    return tmp_path


@pytest.fixture
def refused(workplace, capsys):
    """Runs a command that must be refused, and returns its one line."""

    def run(*overrides, config="tiny.toml", command="run", out="out"):
        words = ["fedjax-health", command, "--config", config, "--no-cache"]
        words += ["--out", out] if command == "run" else []
        words += ["--device-count", "4"]
        for override in overrides:
            words += ["--set", override]
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        printed, said = capsys.readouterr()
        assert printed == ""
        return one_error(caught.value.code, said)

    yield run
    assert not (workplace / "out").exists()


def one_error(code, said):
    """Returns the error's text; it is the last line, and lines before it are news."""
    assert code == 2, said
    assert "Traceback" not in said
    lines = said.splitlines()
    errors = [line for line in lines if "error" in line.lower()]
    assert errors == lines[-1:], said
    assert lines[-1].startswith(PREFIX)
    return lines[-1].removeprefix(PREFIX)


def lines_with(changes):
    """The table's lines with ``(line number from 1, column, value)`` put in."""
    lines = tiny.table_lines()
    header = lines[0].split(",")
    for number, column, value in changes:
        cells = lines[number - 1].split(",")
        cells[header.index(column)] = value
        lines[number - 1] = ",".join(cells)
    return lines


# Files


def test_a_missing_file(refused, workplace):
    assert refused("data.path=wrad.csv") == (
        f"wrad.csv does not exist in the current folder {workplace}; check the path"
    )
    absent = workplace / "wrad.csv"
    assert refused(f"data.path={absent}") == f"{absent} does not exist; check the path"


def test_a_name_that_no_file_can_have(refused):
    text = refused('data.path="ward\\u0000.csv"')
    assert text == "'ward\\x00.csv' cannot be read: embedded null byte"


def test_no_file_named(refused):
    assert "--set data.path=FILE" in refused(config="wustl")


def test_a_folder_for_a_file(refused, workplace):
    (workplace / "folder").mkdir()
    assert refused("data.path=folder").startswith("folder is a folder")


def test_a_file_that_may_not_be_read(refused, workplace, monkeypatch):
    # Root reads everything, so the refusal is played.
    real = Path.open

    def forbid(self, *arguments, **options):
        if self.name == "ward.csv":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", forbid)
    assert refused() == "ward.csv cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "ward.csv is empty; export or fetch it again"),
        (b"site;label\na;1\n", "stand between ';': set delimiter = \";\""),
        (b"site\tlabel\na\t1\n", 'set delimiter = "\\t"'),
        (b"site,device,minute,load,rate,noise,label\n", "header but no rows"),
        (b"\x00\x01\x02" * 50, "neither text nor Parquet"),
        ("site,label\nstation é,1\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_file_of_another_kind(refused, workplace, content, part):
    (workplace / "ward.csv").write_bytes(content)
    assert part in refused()


def test_a_truncated_csv(refused, workplace):
    content = (workplace / "ward.csv").read_bytes()
    (workplace / "ward.csv").write_bytes(content[: len(content) // 2 - 20])
    text = refused()
    assert text.startswith("ward.csv, line ")
    assert "cells where the header has 7" in text


def test_a_truncated_gzip(refused, workplace):
    packed = gzip.compress((workplace / "ward.csv").read_bytes())
    (workplace / "ward.csv").write_bytes(packed[: len(packed) // 2])
    assert "truncated or corrupt gzip file" in refused()


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_truncated_parquet_file(refused, workplace, keep):
    pd.read_csv("ward.csv").to_parquet("ward.parquet")
    content = (workplace / "ward.parquet").read_bytes()
    (workplace / "ward.parquet").write_bytes(content[: int(keep * len(content))])
    assert "truncated or corrupt Parquet file" in refused("data.path=ward.parquet")


# Columns and cells


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.label=lable", "no column 'lable' (label), did you mean 'label'?"),
        ("data.client=Sites", "no column 'Sites' (client), did you mean 'site'?"),
        ("data.entity=devise", "did you mean 'device'?"),
        ("data.time=minutes", "did you mean 'minute'?"),
        ('data.drop=["nose"]', "no column 'nose' (drop), did you mean 'noise'?"),
        (
            'data.modalities={vitals=["lode"]}',
            "no column 'lode' (modalities.vitals), did you mean 'load'?",
        ),
        ("data.attack=label", "column 'label' has two roles, label and attack"),
        ("data.client=none data.time=site", "'s0' is not a time"),
    ],
)
def test_a_wrong_or_missing_column(refused, override, part):
    assert part in refused(*override.split())


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ([(5, "load", "high")], ("line 5, column 'load'", "'high' is not a number")),
        ([(9, "rate", "")], ("line 9, column 'rate'", "no value", "allow_missing")),
        ([(7, "noise", "inf")], ("line 7, column 'noise'", "inf is infinite")),
        ([(7, "noise", "-1e60")], ("line 7, column 'noise'", "too large")),
        ([(6, "label", "2")], ("line 6, column 'label'", "label '2' is not 0 or 1")),
        ([(6, "label", "")], ("line 6, column 'label'", "no label")),
        ([(4, "site", "")], ("line 4, column 'site'", "no value")),
        ([(4, "minute", "soon")], ("line 4, column 'minute'", "'soon' is not a time")),
    ],
)
def test_a_bad_cell_is_named(refused, workplace, changes, parts):
    tiny.write_table(workplace / "ward.csv", lines_with(changes))
    text = refused()
    assert all(part in text for part in ("ward.csv", *parts)), text


def test_columns_of_words_are_named_together(refused):
    frame = pd.read_csv("ward.csv")
    frame["ward"] = np.where(frame.minute % 2, "icu", "general")
    frame["day"] = "2025-03-01"
    frame["address"] = "10.0.0.1"
    frame.to_csv("ward.csv", index=False)
    assert refused() == (
        "ward.csv: 3 columns are no numbers: 'ward' ('general' in line 2), 'address' "
        "('10.0.0.1' in line 2): list words in categorical and identifiers in drop; "
        "'day' (2025-03-01 in line 2): name the column of the time in time, or drop "
        "dates"
    )
    named = ('data.categorical=["ward"]', 'data.drop=["address"]')
    assert "line 2, column 'day': 2025-03-01 is not a number" in refused(*named)


def test_words_for_labels_and_columns_of_words_are_one_error(refused):
    frame = pd.read_csv("ward.csv")
    frame["label"] = np.where(frame.label, "yes", "no")
    frame["ward"] = np.where(frame.minute % 2, "icu", "general")
    frame.to_csv("ward.csv", index=False)
    text = refused()
    assert "is not 0 or 1" in text
    assert text.endswith(
        "; and 1 column holds no numbers: 'ward' ('general' in line 2): list words in "
        "categorical and identifiers in drop"
    )
    named = ('data.positive=["yes"]', 'data.categorical=["ward"]')
    assert "is not 0 or 1" in refused(named[1])
    assert "'general' is not a number" in refused(named[0])


@pytest.mark.parametrize("label", ["0", "1"])
def test_a_label_with_one_class(refused, workplace, label):
    rows = len(tiny.table_lines())
    changes = [(number, "label", label) for number in range(2, rows + 1)]
    tiny.write_table(workplace / "ward.csv", lines_with(changes))
    text = refused()
    assert "label column 'label' holds one class" in text
    assert f"values '{label}'" in text


@pytest.mark.parametrize(
    ("first", "last", "part"),
    [
        (0, 72, "training rows are negative"),
        (72, 84, "of the validation part have label 0"),
        (84, 120, "of the test part have label 0"),
    ],
)
def test_a_part_with_one_class(refused, workplace, first, last, part):
    frame = pd.read_csv("ward.csv")
    frame.loc[(frame.minute >= first) & (frame.minute < last), "label"] = 0
    frame.to_csv("ward.csv", index=False)
    assert part in refused()


def test_a_client_without_training_rows(refused, workplace):
    frame = pd.read_csv("ward.csv")
    # Site s3 opens when the training part is over.
    frame = frame[(frame.site != "s3") | (frame.minute >= 90)]
    frame.to_csv("ward.csv", index=False)
    text = refused('split.scope="global"')
    assert "client 's3' has no training rows" in text


def test_more_clients_than_rows(refused):
    text = refused("partition=contiguous", "partition.num_clients=5000")
    assert "has no training rows: 5000 clients share 536 training rows" in text


def test_a_split_that_leaves_nothing(refused):
    assert "the split leaves no rows for train" in refused("split.embargo=100")


@pytest.mark.parametrize("scope", ["client", "entity"])
def test_a_window_longer_than_the_streams(refused, scope):
    text = refused(f"split.scope={scope}", "window.length=5000")
    assert text.startswith("window.length is 5,000 and the longest stream has 120 rows")
    assert "--set window.length=N" in text


def test_a_window_is_not_blamed_for_what_fails_without_it(refused, workplace):
    frame = pd.read_csv("ward.csv")
    frame.loc[frame.minute < 72, "label"] = 0
    frame.to_csv("ward.csv", index=False)
    assert "training rows are negative" in refused("window.length=50")


# Configurations


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("round=3", ("round: no such field", "did you mean rounds?", "valid: seed")),
        ("model.hiden=3", ("model.hiden", "did you mean hidden?", "hidden, dropout")),
        ("model=grru", ("unknown kind 'grru'", "did you mean gru?", "gru, mlp")),
        ("weighting=equal", ("'equal' is none of", "examples, uniform")),
        ("rounds=0", ("rounds: 0",)),
        ("rounds=2.5", ("rounds: 2.5",)),
        ("local.optimizer.learning_rate=nan", ("learning_rate: nan", "finite")),
        ("local.optimizer.learning_rate=inf", ("learning_rate: inf", "finite")),
        ("local.optimizer.learning_rate=1e39", ("1e+39", "32-bit")),
        ("server.learning_rate=-1e39", ("-1e+39",)),
        ("local.steps=99999999999", ("local.steps: 99999999999", "2147483647")),
        ("local.optimizer.learning_rate=-1", ("learning_rate: -1",)),
        ("local.optimizer.momentum=1.0", ("momentum: 1.0",)),
        ("dropout=1.5", ("dropout: 1.5",)),
        ("split.train=0.9", ("0.9 + 0.1 + 0.3 is 1.3",)),
        ("malicious=[9]", ("malicious: client id 9", "0 to 3")),
        ("checkpoint.keep=1", ("checkpoint.keep: 1", "2")),
        ("seed=-1", ("seed: -1",)),
        ("devices=64", ("devices: 64: there are 4",)),
    ],
)
def test_a_wrong_field(refused, override, parts):
    text = refused(override)
    assert all(part in text for part in parts), text


def test_an_unknown_preset(refused):
    text = refused(config="wustle")
    assert "did you mean wustl?" in text
    assert all(name in text for name in ("demo", "paper", "many_clients"))


def test_a_configuration_that_is_no_toml(refused, workplace):
    (workplace / "tiny.toml").write_text("rounds = = 3")
    assert refused().startswith("config: tiny.toml: not valid TOML: ")


def test_a_cohort_larger_than_the_population(refused):
    text = refused("sampling.cohort_size=5")
    assert "sampling.cohort_size: 5: there are only 4 clients" in text


def test_stages_that_must_not_be_combined(refused):
    text = refused("algorithm=scaffold", "local.optimizer=adam")
    assert "scaffold" in text
    assert "--set local.optimizer=sgd" in text


def test_a_plan_is_refused_in_the_same_words(refused):
    assert refused("data.label=lable", command="plan") == refused("data.label=lable")


# Folders and disks


def test_an_output_folder_in_use(workplace, capsys):
    (workplace / "used").mkdir()
    (workplace / "used" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as caught:
        cli.main(["fedjax-health", "run", "--config", "tiny.toml", "--out", "used"])
    text = one_error(caught.value.code, capsys.readouterr().err)
    assert text == (
        "used: output folder in use: empty it or name another (--out FOLDER)"
    )
    assert [entry.name for entry in (workplace / "used").iterdir()] == ["notes.txt"]


def test_an_output_folder_that_is_a_file(refused):
    assert "ward.csv: is a file" in refused(out="ward.csv")


def test_an_output_folder_that_cannot_be_made(refused):
    text = refused(out="ward.csv/run")
    assert text.startswith("ward.csv/run: cannot be created")


def test_too_little_disk(refused, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    text = refused()
    assert text.startswith("out: ")
    assert "MB are needed and 3.1 MB are free" in text


def test_resume_of_nothing(workplace, capsys):
    (workplace / "empty").mkdir()
    for folder, part in (("absent", "no such folder"), ("empty", "holds no run")):
        with pytest.raises(SystemExit) as caught:
            cli.main(["fedjax-health", "resume", folder])
        text = one_error(caught.value.code, capsys.readouterr().err)
        assert text.startswith(f"{folder}: {part}")


# Training that diverges

CLIFF = """
import jax.numpy as jnp
from fedjax_health import Schedule

def factor(round, first):
    return jnp.where(round < first, 1.0, 1e30)

def cliff(first):
    return Schedule(factor, {"first": float(first)})
"""


@pytest.mark.parametrize("first", [0, 3])
def test_a_loss_that_is_not_finite_stops_the_run(workplace, capsys, monkeypatch, first):
    (workplace / "cliff.py").write_text(CLIFF)
    monkeypatch.syspath_prepend(workplace)
    words = ["--no-cache", "--device-count", "4"]
    run = ["fedjax-health", "run", "--config", "tiny.toml", "--out", "wild", *words]
    run += ["--set", "local.schedule=custom"]
    run += ["--set", "local.schedule.target=cliff:cliff"]
    run += ["--set", f"local.schedule.args.first={first}"]
    run += ["--set", "checkpoint.every=1", "--set", "rounds=6"]
    paths = records.run_folder(workplace / "wild")
    for command in (run, ["fedjax-health", "resume", "wild", *words]):
        with pytest.raises(SystemExit) as caught:
            cli.main(command)
        text = one_error(caught.value.code, capsys.readouterr().err)
        assert f"the training loss of round {first + 1} is not finite" in text
        assert sorted(re.findall(r"\d", text.partition("(")[2])) == list("0123")
        assert not paths.result.exists()
        lines = records.read_jsonl(paths.metrics)
        assert [line["round"] for line in lines] == list(range(1, first + 1))
        assert all(np.isfinite(line["loss"]) for line in lines)
        steps = sorted(int(p.name) for p in paths.checkpoints.iterdir())
        # The last two good ones.
        assert steps == list(range(1, first + 1))[-2:]
        assert all((paths.checkpoints / str(s) / MANIFEST).is_file() for s in steps)
    if not first:
        return
    # A checkpoint of another configuration.
    text = paths.config.read_text()
    assert "momentum = 0.0" in text
    paths.config.write_text(text.replace("momentum = 0.0", "momentum = 0.5", 1))
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    text = one_error(caught.value.code, capsys.readouterr().err)
    assert "wild: the configuration has changed since the run was started" in text
    assert len(records.read_jsonl(paths.metrics)) == first
