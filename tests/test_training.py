"""A whole run on a tiny table: what it leaves, and what it must not depend on."""

import json
import re
import shutil
import tomllib

import jax
import numpy as np
import pandas as pd
import pytest
from jax.core import Tracer
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from fedjax_health import build, records, training
from fedjax_health.config import parse
from fedjax_health.data.preprocess import load_preprocessing
from fedjax_health.data.schema import segment_ids
from fedjax_health.engine.checkpoint import CheckpointError
from fedjax_health.engine.score import Reading
from fedjax_health.metrics.delay import detection_delay
from fedjax_health.records import RunFolderError
from fedjax_health.report.episodes import find_episodes
from fedjax_health.report.predictions import read_predictions
from fedjax_health.training.result import part_scorer, write_predictions
from fedjax_health.training.run import lines_of, masked_updates
from fedjax_health.training.setup import prepare_run
from tests import tiny

PATIENCE = ("evaluation.every=1", "evaluation.patience=2", "rounds=6")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.write_table(tmp_path_factory.mktemp("table") / "ward.csv")


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """Returns ``(*overrides) -> Run``, each combination trained once."""
    done = {}

    def get(*overrides):
        if overrides not in done:
            root = tmp_path_factory.mktemp("runs") / "run"
            done[overrides] = tiny.Run(tiny.config(table, *overrides), root)
        return done[overrides]

    return get


def predictions(run):
    return pd.read_parquet(run.paths.predictions)


# What a run leaves


def test_the_folder_holds_all_parts_of_a_run(run, table):
    paths, config = run().paths, run().config
    assert {entry.name for entry in paths.root.iterdir()} == {
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        "timings.jsonl",
        "checkpoints",
        "preprocessing.npz",
        "predictions.parquet",
        "figures.json",
        "leakcheck.json",
        "model.npz",
        "detector.json",
        "result.json",
        ".lock",
    }
    assert parse(paths.config.read_text()) == config
    assert tomllib.loads(paths.config.read_text())["data"]["path"] == str(table)
    steps = sorted(entry.name for entry in paths.checkpoints.iterdir())
    assert steps == ["2", "4"]
    environment = records.read_json(paths.environment)
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["devices"] == jax.local_device_count()
    assert "scan over clients" in environment["parallelism"]
    preprocessing = load_preprocessing(paths.preprocessing)
    assert preprocessing.scaler.client_names == ("s0", "s1", "s2", "s3")
    assert preprocessing.feature_names == {"features": tiny.COLUMNS}
    assert records.read_json(paths.result) == {
        name: value for name, value in run().result.items() if name != "folder"
    }
    assert run().result["folder"] == str(paths.root)


def test_lines_count_rounds_and_hold_no_wall_time(run):
    lines = run().lines
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    names = set(lines[0])
    assert not {n for n in names if n.endswith("_s") or "time" in n or "per_s" in n}
    assert [set(line) - names for line in lines] == [
        set(),
        {"validation_auroc", "validation_auprc"},
    ] * 2
    assert all(line["num_clients"] == 4 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    timings = records.read_jsonl(run().paths.timings)
    assert [(t["round"], t["rounds"]) for t in timings] == [(2, 2), (4, 2)]
    assert all(t["training_s"] > 0 and t["checkpoint_s"] > 0 for t in timings)


def test_examples_and_steps_are_those_of_the_table(run):
    # 120 rows of an entity: 72 train, less an embargo of 5, windows of 5 by 5.
    windows = (72 - 5) // 5 * tiny.ENTITIES
    line = run().lines[0]
    assert line["num_examples"] == windows * tiny.CLIENTS
    assert line["num_steps"] == -(-windows // 16) * tiny.CLIENTS


def test_predictions_are_the_test_rows_in_order(run, table):
    found = predictions(run())
    rows = pd.read_csv(table).sort_values(["site", "device", "minute"], kind="stable")
    # 60 % and 10 % of 120 rows come before, then an embargo of 5.
    test = rows[rows.minute >= 84 + 5]
    assert found.client.tolist() == test.site.tolist()
    assert found.time.tolist() == test.minute.tolist()
    assert found.label.tolist() == test.label.tolist()
    assert set(found.attack) == {"normal", "attack"}
    details = run().result["details"]
    np.testing.assert_array_equal(found.detected, found.score >= details["threshold"])
    np.testing.assert_array_equal(
        found.alarm, found.score >= details["delay_threshold"]
    )


def test_the_result_is_what_the_predictions_say(run):
    found, result = predictions(run()), run().result
    metrics, details = result["metrics"], result["details"]
    auroc = roc_auc_score(found.label, found.score)
    assert metrics["auroc"] == pytest.approx(auroc, abs=1e-12)
    assert metrics["auprc"] == pytest.approx(
        average_precision_score(found.label, found.score), abs=1e-12
    )
    assert metrics["f1"] == pytest.approx(f1_score(found.label, found.detected))
    assert metrics["accuracy"] == np.mean(found.label == found.detected)
    assert metrics["brier"] == pytest.approx(np.mean((found.score - found.label) ** 2))
    normal = found[found.label == 0]
    assert metrics["achieved_far"] == pytest.approx(normal.alarm.mean())
    each = [
        roc_auc_score(rows.label, rows.score) for _, rows in found.groupby("client")
    ]
    assert details["mean_client_auroc"] == pytest.approx(np.mean(each))
    assert details["worst_client_auroc"] == pytest.approx(np.min(each))
    assert details["prevalence"] == found.label.mean()
    assert result["num_params"] == 3 * 4 * (3 + 4) + 2 * 12 + 5
    assert result["uplink_bytes_per_client"] == 4 * result["num_params"]


def test_a_learnable_table_is_learnt(run):
    assert run().result["metrics"]["auroc"] > 0.8


# What a run must not depend on


def test_the_same_seed_gives_the_same_bytes(run, table, tmp_path):
    again = tiny.Run(tiny.config(table), tmp_path / "again")
    assert again.bytes() == run().bytes()


def test_another_seed_gives_another_run(run):
    other = run("seed=1")
    assert other.lines[0]["loss"] != run().lines[0]["loss"]
    assert not np.array_equal(predictions(other).score, predictions(run()).score)


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_any_number_of_devices_gives_the_same_bytes(run, devices):
    assert run(f"devices={devices}").bytes() == run().bytes()


# Other detectors and algorithms


def test_personal_head_stays_with_the_client(run):
    personal = run('personal={kind="head",paths=["head/*"]}')
    assert personal.result["num_params"] == run().result["num_params"]
    # The head's 4 weights and its bias do not travel.
    saved = run().result["uplink_bytes_per_client"]
    assert personal.result["uplink_bytes_per_client"] == saved - 4 * 5
    scores = predictions(personal)
    assert not np.array_equal(scores.score, predictions(run()).score)
    assert personal.result["metrics"]["auroc"] > 0.7


@pytest.mark.slow
def test_personal_normalisation_stays_with_the_client(run):
    personal = run("personal=norm", "model.norm=true")
    uplink = personal.result["uplink_bytes_per_client"]
    assert uplink == 4 * (personal.result["num_params"] - 2 * 4)
    assert personal.lines[-1]["loss"] < personal.lines[0]["loss"]


@pytest.mark.slow
def test_ditto_is_scored_with_the_personal_models(run):
    ditto = run("algorithm=ditto", "algorithm.strength=0.01")
    # The global model is trained as by fedavg; the scores are the personal models'.
    assert [line["loss"] for line in ditto.lines] == pytest.approx(
        [line["loss"] for line in run().lines], rel=1e-4
    )
    assert all("personal_loss" in line for line in ditto.lines)
    difference = np.abs(predictions(ditto).score - predictions(run()).score)
    assert difference.max() > 1e-3
    assert ditto.result["metrics"]["auroc"] > 0.7


@pytest.mark.slow
def test_scaffold_starts_as_fedavg_and_departs(run):
    scaffold = run("algorithm=scaffold")
    losses = [[line["loss"] for line in r.lines] for r in (scaffold, run())]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0][2] != pytest.approx(losses[1][2], rel=1e-5)
    assert scaffold.lines[-1]["loss"] < scaffold.lines[0]["loss"]


def test_single_rows_of_streams_are_scored_with_delays(run):
    rows = run("model=mlp", "model.hidden=[4]", "window.length=1", "window.stride=1")
    # Without windows there is no embargo.
    assert rows.lines[0]["num_examples"] == 72 * tiny.ENTITIES * tiny.CLIENTS
    assert rows.result["metrics"]["mean_delay"] >= 0
    found = predictions(rows)
    normal = found[found.label == 0]
    assert rows.result["metrics"]["achieved_far"] == normal.alarm.mean()
    assert rows.result["num_params"] == 3 * 4 + 4 + 4 + 1
    assert rows.result["metrics"]["auroc"] > 0.8


def test_rows_without_a_stream_have_no_delay(tmp_path):
    lines = tiny.table_lines()
    alone = [
        ",".join((c[0], str(n), *c[2:]))
        for n, c in enumerate(line.split(",") for line in lines[1:])
    ]
    path = tiny.write_table(tmp_path / "alone.csv", [lines[0], *alone])
    rows = ("model=mlp", "model.hidden=[4]", "window.length=1", "split.scope=client")
    run = tiny.Run(tiny.config(path, *rows, "rounds=1"), tmp_path / "run")
    assert "mean_delay" not in run.result["metrics"]
    rows = predictions(run)
    assert "segment" not in rows
    np.testing.assert_array_equal(rows.alarm, rows.detected)


def test_records_that_are_dealt_one_by_one_have_no_delay(run):
    """Without roles a table is one stream, unless its split says otherwise."""
    alone = ("data.entity=none", "data.time=none", 'data.drop=["device","minute"]')
    model = ("model=mlp", "model.hidden=[4]", "window.length=1", "window.stride=1")
    stream = run(*alone, *model, "split.scope=client")
    assert stream.result["metrics"]["mean_delay"] >= 0
    assert predictions(stream).segment.nunique() == tiny.CLIENTS
    records_ = run(*alone, *model, "split=stratified", "split.unit=row")
    assert not {"mean_delay", "achieved_far"} & set(records_.result["metrics"])
    assert "segment" not in predictions(records_)
    figures = records.read_json(records_.paths.figures)
    assert figures["interval_unit"] == "records"
    assert figures["curves"]["delay"] is None
    assert records_.result["metrics"]["auroc"] > 0.8


def test_figures_and_result_say_the_same(run):
    figures, result = records.read_json(run().paths.figures), run().result
    assert result["metrics"] == figures["metrics"]
    details = result["details"]
    assert figures["details"].items() <= details.items()
    assert details["threshold"] == figures["threshold"]
    assert details["delay_threshold"] == figures["delay_threshold"]
    counts = figures["confusion"]
    hits, found = counts["true_positives"], counts["false_positives"]
    assert details["precision"] == hits / (hits + found)
    spread = figures["client_spread"]["auroc"]
    assert details["ranked_clients"] == spread["ranked"] == 4
    assert details["worst_decile_client_auroc"] == spread["worst_decile"]
    assert result["training_clients"] == 4


def test_the_report_finds_the_episodes_of_the_figures(table, tmp_path):
    """Blocks cut a device into pieces of one name, between which alarms cannot run."""
    split = ("split=episode_blocks", "split.block=20", "split.embargo=2")
    run = tiny.Run(tiny.config(table, *split, "rounds=1"), tmp_path / "run")
    rows = read_predictions(run.paths.predictions)
    assert len(rows.segment_starts) > tiny.CLIENTS * tiny.ENTITIES
    found = find_episodes(rows, window=5)
    metrics, details = run.result["metrics"], run.result["details"]
    assert len(found.onset) == details["episodes"]
    assert found.missed.sum() == metrics["missed_episodes"]
    assert found.delay.mean() == metrics["mean_delay"]
    # Alarms without end, as one that runs over a gap would be.
    test = prepare_run(run.config, records.SILENT).prepared.parts.test
    always = Reading(np.ones(test.num_rows, np.float32), None)
    paths = records.create_folder(tmp_path / "always")
    write_predictions(paths, test, always, {"threshold": 0.5, "delay_threshold": 0.5})
    rows = read_predictions(paths.predictions)
    found = find_episodes(rows, window=5)
    want = detection_delay(
        always.probability, test.label, segment_ids(test), threshold=0.5, window=5
    )
    assert found.missed.sum() == want["missed_episodes"]
    assert found.delay.mean() == want["mean_delay"]
    joined = np.append(True, np.diff(rows.client) | np.diff(rows.entity)).cumsum()
    without = find_episodes(rows._replace(segment=joined), window=5)
    assert without.missed.sum() > found.missed.sum()


def test_predictions_compare_as_the_metrics_do(run, tmp_path):
    # A float64 threshold just above a score: as float32 the two would be equal.
    prepared = prepare_run(run().config, records.SILENT)
    test = prepared.prepared.parts.test
    scores = np.full(test.num_rows, 0.3, np.float32)
    above = np.nextafter(np.float64(scores[0]), 1)
    paths = records.run_folder(tmp_path)
    measured = {"threshold": float(above), "delay_threshold": float(scores[0])}
    write_predictions(paths, test, Reading(scores, None), measured)
    found = pd.read_parquet(paths.predictions)
    assert not found.detected.any()
    assert found.alarm.all()


def test_masked_updates_name_their_clients():
    metrics = {
        "non_finite": np.array([0, 2, 3]),
        "bad_clients": np.array([[-1, -1], [2, 0], [1, -1]]),
    }
    assert masked_updates(metrics, 10, ("a", "b", "c")) == [
        "round 12: 2 non-finite client update(s) masked of c, a",
        "round 13: 3 non-finite client update(s) masked of b and 2 more",
    ]


def test_a_metric_does_not_take_the_place_of_the_round():
    metrics = {"loss": np.array([0.5, 0.25]), "round": np.array([7, 7])}
    assert [line["round"] for line in lines_of(metrics, 4)] == [5, 6]


@pytest.mark.slow
def test_a_perceptron_on_streams(run):
    streams = run("model=mlp", "model.hidden=[4]")
    assert streams.result["num_params"] == 4 * 3 * 4 + 4 + 4 + 1
    assert "mean_delay" in streams.result["metrics"]


# The end of a run


def test_patience_ends_a_run_that_does_not_improve(run):
    # Steps this small move no score, so the first evaluation stays the best.
    stopped = run(*PATIENCE, "local.optimizer.learning_rate=1e-12")
    curve = [line["validation_auroc"] for line in stopped.lines]
    assert len(curve) == stopped.result["rounds"] == 3
    assert curve == [curve[0]] * 3
    assert stopped.result["best_round"] == 1
    assert sorted(p.name for p in stopped.paths.checkpoints.iterdir()) == ["2", "3"]


def test_the_best_round_is_the_one_that_is_scored(run):
    # Steps this large make the curve jump.
    restless = run(*PATIENCE[::2], "local.optimizer.learning_rate=30.0")
    curve = [line["validation_auroc"] for line in restless.lines]
    assert len(curve) == restless.result["rounds"] == 6
    best = int(np.argmax(curve)) + 1
    assert restless.result["best_round"] == best
    assert best < 6
    assert len(set(curve)) > 3
    assert restless.result["validation"]["validation_auroc"] == max(curve)


def test_a_folder_in_use_is_refused_and_left_alone(run, table):
    before = run().bytes()
    with pytest.raises(RunFolderError, match="in use: it holds a finished run; name"):
        training.train(run().config, run().paths.root, records.SILENT)
    assert run().bytes() == before


def test_resume_of_a_finished_run_returns_its_result(run):
    told = []
    progress = records.SILENT._replace(on_message=told.append)
    assert training.resume(run().paths.root, progress) == run().result
    assert any("complete" in text for text in told)


def test_resume_of_a_finished_run_with_another_configuration_is_refused(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run().paths.root, copy)
    text = (copy / "config.toml").read_text()
    assert "rounds = " in text
    changed = re.sub(r"^rounds = \d+", "rounds = 99", text, count=1, flags=re.MULTILINE)
    (copy / "config.toml").write_text(changed)
    with pytest.raises(CheckpointError, match="configuration has changed"):
        training.resume(copy, records.SILENT)


def test_describe_makes_no_parameters(table, monkeypatch):
    made = []
    plain = build.build_model

    def counting(settings, prepared):
        model = plain(settings, prepared)

        def init(key):
            made.append(isinstance(key, Tracer))
            return model.init(key)

        return model._replace(init=init)

    monkeypatch.setattr("fedjax_health.build.algorithm.build_model", counting)
    training.describe(tiny.config(table))
    assert made
    assert all(made)


def test_describe_tells_sizes_and_runs_nothing(table, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    description = training.describe(tiny.config(table, "sampling.cohort_size=3"))
    assert list(tmp_path.iterdir()) == []
    windows = run().lines[0]["num_examples"]
    clients = description["clients"]
    assert (clients["population"], clients["cohort"]) == (4, 3)
    assert clients["examples"] == windows
    assert clients["largest"] == clients["smallest"] == windows // 4
    message = description["message"]
    assert message["parameters"] == run().result["num_params"]
    assert message["uplink_bytes_per_client"] == 4 * message["parameters"]
    assert message["uplink_bytes_per_round"] == 3 * 4 * message["parameters"]
    assert message["downlink_bytes_per_round"] == 3 * 4 * message["parameters"]
    assert "privacy" not in description
    # 72 of 120 rows less 5, 12 of validation, 36 of test less 5.
    data = description["data"]
    rows = {name: part["rows"] for name, part in data.items()}
    assert rows == {"train": 8 * 67, "validation": 8 * 12, "test": 8 * 31}
    assert description["stages"]["1 train locally"] == (
        "fedavg, sgd, 1 epochs, batches of 16"
    )
    memory = description["memory"]
    parts = [n for name, n in memory.items() if name.endswith(" (bytes)")]
    assert memory["predicted_bytes"] == sum(parts)
    json.dumps(description)


def test_the_checkpoint_holds_the_model_that_was_scored(run):
    prepared = prepare_run(run().config, records.SILENT)
    best = tiny.saved(run().config, run().paths).best
    assert int(best.round) == run().result["best_round"]
    assert float(best.value) == pytest.approx(
        run().result["validation"]["validation_auroc"]
    )
    test = prepared.prepared.parts.test
    scores = part_scorer(prepared, test, None)(best.view)
    np.testing.assert_array_equal(scores, predictions(run()).score)
