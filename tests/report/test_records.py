"""What is read from a folder, what may be absent, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest

from fedjax_health import records
from fedjax_health.records import RunFolderError
from fedjax_health.report.clean import clean
from fedjax_health.report.predictions import read_predictions
from fedjax_health.report.records import (
    interval_of,
    numbers_of,
    read_folder,
    value_of,
)
from tests.report import folder


def test_a_whole_folder_becomes_one_record(tmp_path):
    view = read_folder(folder.write_run(tmp_path / "ward").root)
    assert (view.name, view.kind) == ("ward", "run")
    assert view.config["model"] == {"kind": "fusion"}
    assert view.config_text.startswith("seed = 0")
    assert [row["round"] for row in view.rounds] == [1, 2, 3, 4]
    assert view.figures.curves.delay.achieved_far[1] == 0.0105
    assert view.figures.clients[5].auroc is None
    assert view.leakcheck.columns[0].suspicious
    rows = view.predictions
    frame = folder.predictions()
    assert rows.label.tolist() == frame["label"].tolist()
    assert rows.alarm.tolist() == frame["alarm"].tolist()
    np.testing.assert_allclose(rows.score, frame["score"])
    assert [rows.client_names[code] for code in rows.client] == [
        clean(name) for name in frame["client"]
    ]
    assert rows.segment_starts.tolist() == [0, 40, 80, 120, 160, 200]
    assert list(rows.shares) == [f"vitals{folder.SCRIPT}", "network"]


def test_metrics_come_from_the_figures_and_else_from_the_result(tmp_path):
    view = read_folder(folder.write_run(tmp_path / "a").root)
    assert value_of(view, "auprc") == 0.83
    assert value_of(view, "episodes") == 5
    assert value_of(view, "recall") == 37 / 50
    assert value_of(view, "precision") == 37 / 39
    assert value_of(view, "no such metric") is None
    assert interval_of(view, "auroc") == (0.88, 0.94)
    assert interval_of(view, "mean_delay") is None
    view = read_folder(folder.write_run(tmp_path / "b", figures=None).root)
    assert view.figures is None
    assert value_of(view, "auroc") == 0.912
    assert value_of(view, "auprc") is None


def test_numbers_of_takes_the_rounds_that_state_one(tmp_path):
    view = read_folder(folder.write_run(tmp_path / "a").root)
    at, values = numbers_of(view, "validation_auroc")
    assert at.tolist() == [2, 4]
    np.testing.assert_allclose(values, [0.8, 0.9])
    assert numbers_of(view, "absent")[0].shape == (0,)


def test_all_but_the_result_may_be_absent(tmp_path):
    (tmp_path / "result.json").write_text('{"metrics": {"auroc": 0.75}}')
    view = read_folder(tmp_path)
    assert view.config == {}
    assert view.rounds == ()
    assert (view.figures, view.leakcheck, view.predictions) == (None, None, None)
    assert value_of(view, "auroc") == 0.75


def test_an_unfinished_run_is_refused_with_the_way_to_go_on(tmp_path):
    paths = folder.write_run(tmp_path / "ward")
    paths.result.unlink()
    with pytest.raises(RunFolderError, match=r"not finished.*resume .*ward"):
        read_folder(paths.root)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"holds no run"):
        read_folder(tmp_path)
    with pytest.raises(RunFolderError, match=r"no such folder"):
        read_folder(tmp_path / "absent")


def _change(key, value):
    def damage(path):
        content = json.loads(path.read_text())
        content[key] = value
        path.write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("figures", lambda p: p.write_text("{"), r"figures\.json: cannot be read"),
        ("figures", lambda p: p.write_text("[]"), r"figures\.json: is damaged"),
        ("figures", _change("format", 2), r"figures\.json: format 2 is later.*update"),
        ("figures", _change("metrics", {"auroc": "high"}), r"expected.*metrics"),
        (
            "figures",
            _change("curves", {"roc": {"false_alarm_rate": [0, 1], "recall": [1]}}),
            r"curves\.roc: columns of different length: false_alarm_rate 2, recall 1",
        ),
        ("figures", _change("clients", [{"rows": 3}]), r"figures\.json.*client"),
        ("leakcheck", _change("passed", "perhaps"), r"leakcheck\.json: expected bool"),
        ("result", lambda p: p.write_text("nothing"), r"result\.json: cannot be read"),
        ("config", lambda p: p.write_text("= 3"), r"config\.toml: not valid TOML"),
        ("metrics", lambda p: p.write_text("[1]\n"), r"metrics\.jsonl: line 1"),
        ("metrics", lambda p: p.write_text("{\n{}\n"), r"metrics\.jsonl: line 1"),
        ("environment", lambda p: p.write_text("7"), r"environment\.json: is damaged"),
        (
            "predictions",
            lambda p: p.write_bytes(p.read_bytes()[:200]),
            r"predictions\.parquet: cannot be read",
        ),
        (
            "predictions",
            lambda p: pd.DataFrame({"client": ["a"], "entity": [0]}).to_parquet(p),
            r"predictions\.parquet: lacks the column 'score'",
        ),
        (
            "predictions",
            lambda p: folder.predictions().assign(score="high").to_parquet(p),
            r"predictions\.parquet: column 'score' holds what is no number",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, damage, message):
    paths = folder.write_run(tmp_path / "ward")
    damage(getattr(paths, name))
    with pytest.raises(RunFolderError, match=message):
        read_folder(paths.root)


def test_an_evaluation_takes_the_configuration_of_its_run(tmp_path):
    paths = folder.write_run(tmp_path / "ward")
    inside = folder.write_evaluation(paths.evaluations / "new")
    view = read_folder(inside)
    assert view.kind == "evaluation"
    assert view.config["model"] == {"kind": "fusion"}
    elsewhere = folder.write_evaluation(tmp_path / "elsewhere", labels=False)
    view = read_folder(elsewhere)
    assert (view.kind, view.config) == ("evaluation", {})
    assert view.predictions.label is None
    assert view.predictions.attack is None
    assert value_of(view, "delay_threshold") == 0.6


def test_times_that_are_no_numbers_are_counted(tmp_path):
    frame = folder.predictions(names=("a", "b"), steps=25)
    path = tmp_path / "scores.parquet"
    for times in ([f"day {i}" for i in range(50)], [0.5] * 49 + [None]):
        frame["time"] = times
        frame.to_parquet(path)
        assert read_predictions(path).time.tolist() == [*range(25), *range(25)]


def test_unknown_labels_are_kept_apart(tmp_path):
    frame = folder.predictions(names=("a", "b"), steps=25)
    frame["label"] = frame["label"].astype("Int8")
    frame.loc[0, "label"] = pd.NA
    path = tmp_path / "scores.parquet"
    frame.to_parquet(path)
    label = read_predictions(path).label
    assert label[0] == -1
    assert set(label[1:].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ward 7", "ward 7"),
        ("two\nlines\t", "two\nlines\t"),
        ("a\x00b\x1b", "a\ufffdb\ufffd"),
        ("\u202eevil", "\ufffdevil"),
        ("half \ud800", "half \ufffd"),
        ("\u00dcber \u5fc3", "\u00dcber \u5fc3"),
    ],
)
def test_clean_keeps_text_and_drops_what_breaks_a_page(text, expected):
    assert clean(text) == expected


def test_names_are_clean_wherever_they_are_read(tmp_path):
    result = {"metrics": {}, "note": "half \ud800 \x07"}
    paths = folder.write_run(tmp_path / "ward", result=result)
    records.append_jsonl(paths.metrics, [{"round": 5, "note\x00": "\u202e"}])
    view = read_folder(paths.root)
    assert view.result["note"] == "half \ufffd \ufffd"
    assert view.rounds[-1]["note\ufffd"] == "\ufffd"
    assert view.figures.clients[4].client == "ward \ufffd7\ufffd"
