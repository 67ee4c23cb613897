"""A run whose clients plant a backdoor says how well it works."""

import jax
import pytest

from fedjax_health import build, records
from fedjax_health.data.store import input_names
from fedjax_health.evaluate.backdoor import attack_success
from fedjax_health.evaluate.detector import load_weights
from fedjax_health.report import write_report
from fedjax_health.training.setup import prepare_run
from tests import tiny
from tests.report import folder

COLUMN = "features.load"
PLANTED = (
    "data_attack=backdoor",
    f'data_attack.columns=["{COLUMN}"]',
    "data_attack.values=[5.0]",
    "data_attack.steps=[-2, -1]",
    "data_attack.share=0.5",
    "rounds=12",
    "local.epochs=3",
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.write_table(tmp_path_factory.mktemp("table") / "ward.csv")


@pytest.fixture(scope="module")
def runs(table, tmp_path_factory):
    """The run with the backdoor, and the same one whose clients are all honest."""
    root = tmp_path_factory.mktemp("runs")
    return [
        tiny.Run(tiny.config(table, *PLANTED, f"malicious={who}"), root / name)
        for name, who in (("planted", "[0, 1, 2]"), ("honest", "[]"))
    ]


def test_what_malicious_clients_planted_is_found(runs):
    planted, honest = (run.result["details"] for run in runs)
    assert planted["attack_success"] > planted["attack_success_without_trigger"] + 0.3
    assert planted["attack_success"] > honest["attack_success"] + 0.3
    for run in runs:
        assert run.result == {
            **records.read_json(run.paths.result),
            "folder": str(run.paths.root),
        }


def test_the_rates_are_those_of_the_kept_model_at_the_threshold(runs):
    run = runs[0]
    ready = prepare_run(run.config, records.SILENT)
    test = ready.prepared.parts.test
    planted = build.trigger_of(run.config, input_names(test))
    assert planted is not None
    trigger, target = planted
    model = ready.built.model
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    found = attack_success(
        model,
        load_weights(run.paths, abstract),
        test,
        trigger=trigger,
        target=target,
        window=5,
        threshold=run.result["details"]["threshold"],
    )
    measured = records.read_json(run.paths.figures)["backdoor"]
    assert measured == pytest.approx({"target": 0, **found})
    details = run.result["details"]
    assert details["attack_success"] == measured["attack_success"]
    assert details["attack_success_without_trigger"] == measured["without_trigger"]


def test_the_report_shows_them(runs):
    with folder.no_pictures():
        page = write_report(runs[0].paths.root)["report"]
    with open(page, encoding="utf-8") as file:
        text = file.read()
    assert "attack rows pass as normal once they carry the trigger" in text
    assert "Backdoor: share of the attack rows called normal" in text


def test_other_runs_say_nothing_of_it(table, tmp_path):
    config = tiny.config(table, "data_attack=label_flip", "malicious=[0]", "rounds=2")
    run = tiny.Run(config, tmp_path / "run")
    assert not [name for name in run.result["details"] if "trigger" in name]
    assert "backdoor" not in records.read_json(run.paths.figures)
    with folder.no_pictures():
        page = write_report(run.paths.root)["report"]
    with open(page, encoding="utf-8") as file:
        assert "Backdoor" not in file.read()
