"""The leak check of a run: before training, once, and never in its way."""

import pytest

from fedjax_health import records, training
from fedjax_health.training.setup import prepare_run
from tests import tiny


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """A table whose column "mac" is the label."""
    lines = tiny.table_lines()
    told = [f"{line},{line[-1]}" for line in lines[1:]]
    path = tmp_path_factory.mktemp("data") / "leaky.csv"
    return tiny.write_table(path, [f"{lines[0]},mac", *told])


def listening():
    told = []
    return told, records.SILENT._replace(on_message=told.append)


def test_a_run_warns_goes_on_and_keeps_what_was_found(leaky, tmp_path):
    run = tiny.Run(tiny.config(leaky, "rounds=2"), tmp_path / "run")
    (line,) = [text for text in run.messages if "leak check" in text]
    assert line.startswith("warning: leak check, single column: columns give the label")
    assert "mac (AUROC 1.000)" in line
    found = records.read_json(run.paths.leakcheck)
    assert found["passed"] is False
    assert found["columns"][0]["column"] == "mac"
    assert run.paths.result.is_file()


def test_a_run_without_it(leaky, tmp_path):
    config = tiny.config(leaky, "rounds=2", "leakcheck=false")
    run = tiny.Run(config, tmp_path / "run")
    assert not run.paths.leakcheck.exists()
    assert not [text for text in run.messages if "leak" in text]


@pytest.mark.parametrize("check", ["true", "false"])
def test_rows_that_repeat_are_said_once(tmp_path, check):
    lines = tiny.table_lines()
    (tmp_path / "wards").mkdir()
    tiny.write_table(tmp_path / "wards" / "may.csv", [*lines, *lines[1:51]])
    told, progress = listening()
    config = tiny.config(tmp_path / "wards", f"leakcheck={check}")
    prepare_run(config, progress, leaks=config.leakcheck)
    (line,) = [text for text in told if "rows repeat" in text]
    assert line.startswith("warning: ")
    assert "50 rows repeat (device, minute), 50 of them with equal features" in line
    assert "remove the copies" in line
    assert f"reading {tmp_path / 'wards'}: may.csv" in told


def test_a_resumed_run_checks_again_only_what_is_missing(leaky, tmp_path):
    config = tiny.config(leaky)
    paths = tiny.interrupt(config, tmp_path / "run", after=2)
    before = paths.leakcheck.read_bytes()
    paths.leakcheck.write_text('{"passed": true}')
    told, progress = listening()
    training.resume(paths.root, progress)
    assert paths.leakcheck.read_text() == '{"passed": true}'
    assert not [text for text in told if "leak check" in text]

    paths = tiny.interrupt(config, tmp_path / "other", after=2)
    paths.leakcheck.unlink()
    told, progress = listening()
    training.resume(paths.root, progress)
    assert paths.leakcheck.read_bytes() == before
    assert [text for text in told if "leak check" in text]


def test_hospitals_that_are_held_out_are_tested_and_not_trained(leaky, tmp_path):
    config = tiny.config(
        leaky, "rounds=2", "split=by_client", 'split.test_clients=["s0"]'
    )
    run = tiny.Run(config, tmp_path / "run")
    assert all(line["num_clients"] == 2 for line in run.lines)
    (line,) = [text for text in run.messages if text.startswith("data: ")]
    assert "2 clients and 2 held out" in line
