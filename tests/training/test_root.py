"""Runs whose server has data of its own: trained, resumed, described."""

import pytest

from fedjax_health import records, training
from fedjax_health.training import describe
from fedjax_health.training.setup import prepare_run
from tests import tiny

SETTINGS = (
    "aggregator=fltrust",
    "root.client=s1",
    "root.share=0.3",
    "malicious=[2]",
    "attack=sign_flip",
    "attack.of=own",
    "rounds=6",
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.write_table(tmp_path_factory.mktemp("table") / "ward.csv")


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "run"
    return tiny.Run(tiny.config(table, *SETTINGS), root)


def test_the_server_does_not_believe_what_points_away_from_its_own_update(run):
    # The turned message is dropped in every round.
    assert [line["detection_recall"] for line in run.lines] == [1.0] * 6
    assert run.lines[-1]["loss"] < run.lines[0]["loss"]


def test_a_resumed_run_ends_with_the_same_bits(table, run, tmp_path):
    paths = tiny.interrupt(tiny.config(table, *SETTINGS), tmp_path / "run", after=3)
    training.resume(paths.root, records.SILENT)
    assert tiny.kept_bytes(paths) == run.bytes()
    numbers = tiny.saved_numbers(run.config, paths)
    assert numbers == tiny.saved_numbers(run.config, run.paths)


def test_the_description_says_what_the_server_has(table):
    known = describe(tiny.config(table, *SETTINGS))
    root = known["root"]
    assert (root["client"], root["rows"]) == ("s1", 40)
    assert 0 < root["prevalence"] < 1
    assert root["examples"] == 8
    assert known["stages"]["4 aggregate"].startswith("fltrust")
    plain = describe(tiny.config(table))
    assert "root" not in plain
    assert known["data"]["train"]["rows"] == plain["data"]["train"]["rows"] - 40


def test_a_drawn_attacker_as_the_site_is_said(table, tmp_path):
    for seed in range(8):
        config = tiny.config(
            table, *SETTINGS[:3], "malicious=0.5", f"seed={seed}", "rounds=1",
            "evaluation.every=1", "leakcheck=false",
        )  # fmt: skip
        told = []
        progress = records.SILENT._replace(on_message=told.append)
        run = prepare_run(config, progress)
        said = [text for text in told if "drawn as malicious" in text]
        assert bool(said) == run.built.malicious[1]
