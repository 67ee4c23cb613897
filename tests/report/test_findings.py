"""What a report warns of, and whether its sentences hold."""

import pytest

from fedjax_health.report import findings, tables
from fedjax_health.report.description import what_was_run
from fedjax_health.report.figures import read_figures, read_leakcheck
from fedjax_health.report.predictions import read_predictions
from fedjax_health.report.sections import sections
from tests.report import folder
from tests.report.test_words import view

RATE = {"evaluation": {"false_alarm_rate": 0.01}}


def told(found, about):
    """The texts of the findings of a title."""
    return [finding.text for finding in found if finding.about == about]


def read(tmp_path, frame):
    path = tmp_path / "scores.parquet"
    frame.to_parquet(path, index=False)
    return read_predictions(path)


def test_an_evaluation_asks_for_the_false_alarms_of_the_training():
    figures = read_figures({"metrics": {"achieved_far": 0.256}})
    given = [
        {"config": RATE},
        # The result alone, in a folder of one's own.
        {"result": {"false_alarm_rate": 0.01}},
    ]
    for parts in given:
        evaluation = view(kind="evaluation", figures=figures, **parts)
        (text,) = told(
            findings.cautions(evaluation), "More false alarms than asked for"
        )
        assert "1 % of the normal validation rows of the training run" in text
        assert "normal rows here 25.6 % reach it" in text
        assert "may differ from that of the training" in text


def test_many_alarms_without_labels_are_said(tmp_path):
    frame = folder.predictions(labels=False)
    for threshold, said in ((2.0, 0), (0.6, 1)):
        rows = read(tmp_path, frame.assign(alarm=frame["score"] >= threshold))
        evaluation = view(kind="evaluation", config=RATE, predictions=rows)
        assert len(told(findings.cautions(evaluation), "Many alarms")) == said


@pytest.mark.parametrize("kind", ["run", "evaluation"])
def test_what_was_warned_of_while_reading_stands_on_the_page(kind):
    said = ["ward.csv: 'pkts' looks as if its unit changed half way"]
    found = findings.cautions(view(kind=kind, result={"warnings": said}))
    assert told(found, "While the data was read") == [f"{said[0]}."]
    many = [f"warning {number}" for number in range(30)]
    found = findings.cautions(view(kind=kind, result={"warnings": many}))
    assert len(found) == findings.WARNINGS + 1
    assert "22 more" in found[-1].text


def test_what_training_had_and_what_it_never_saw_is_listed(tmp_path):
    frame = folder.predictions(names=("a", "z"))
    result = {
        "absent_modalities": ["vitals"],
        "absent_columns": ["flow.bytes", "flow.rate"],
        "unseen_categories": {"kinds.colour": {"green": 5, "teal": 1}},
        "unseen_clients": ["z"],
    }
    parts = {"result": result, "predictions": read(tmp_path, frame)}
    found = findings.cautions(view(kind="evaluation", **parts))
    (text,) = told(found, "Not in the data")
    assert text.startswith("Modality vitals and columns flow.bytes and flow.rate:")
    (text,) = told(found, "Categories that training never saw")
    assert text.startswith("kinds.colour: green (5 rows) and teal (1 row).")
    (text,) = told(found, "Clients that training never saw")
    assert text.startswith("z (40 rows).")
    assert findings.cautions(view(kind="evaluation")) == []


def test_clients_that_training_never_saw_are_marked(tmp_path):
    result = {"unseen_clients": ["z"]}
    clients = [
        {"client": name, "rows": 9, "positives": 3, "auroc": auroc}
        for name, auroc in (("a", 0.7), ("z", 0.8))
    ]
    labelled = view(
        kind="evaluation", result=result, figures=read_figures({"clients": clients})
    )
    frame = folder.predictions(names=("a", "z"), labels=False)
    bare = view(kind="evaluation", result=result, predictions=read(tmp_path, frame))
    for table in (tables.clients(labelled), tables.alarm_counts(bare)):
        assert table is not None
        names = [row[0] for row in table.rows]
        assert sorted(names) == ["a", "z (not in training)"]
        assert table.marked == {names.index("z (not in training)")}


def test_clients_without_test_rows_are_left_out():
    clients = [
        {"client": "a", "rows": 9, "positives": 3, "auroc": 0.7},
        {"client": "b", "rows": 9, "positives": 3, "auroc": 0.6},
        {"client": "c", "rows": 9, "positives": 0},
        *({"client": f"n{i}", "rows": 0, "positives": 0} for i in range(84)),
    ]
    spread = {"mean": 0.65, "worst": 0.6, "worst_decile": 0.6, "std": 0.05}
    spread |= {"ranked": 2, "excluded": 85}
    figures = {"clients": clients, "client_spread": {"auroc": spread}}
    run = view(figures=read_figures(figures))
    table, over = tables.clients(run), tables.spread(run)
    assert [row[0] for row in table.rows] == ["b", "a", "c"]
    # A tenth of two clients is the worst of them: one column says it.
    assert over.columns == (
        *("over clients", "mean", "deviation", "worst", "clients", "left out"),
    )
    assert over.rows[0][-2:] == ("2", "1")
    (text,) = told(findings.plain_words(run), "Client by client")
    assert text.endswith("1 client holds one class and can have none.")
    parts, _ = sections(run, {"clients"})
    (part,) = [part for part in parts if part.id == "clients"]
    assert "1 client holds rows of one class only" in part.text[0]


def test_held_out_clients_were_not_trained():
    result = {"training_clients": 68, "held_out_clients": 48}
    text = what_was_run(view(config={"model": {"kind": "gru"}}, result=result))
    assert "over 68 clients (48 more were held out)" in text


@pytest.mark.parametrize(
    ("observed", "rows", "words"),
    [
        # Easy normal rows hide what happens where alarms are given.
        (0.57, 60, "by 28 where they are high enough for an alarm"),
        (0.33, 60, "scores can be read as probabilities"),
        (0.57, 8, "scores can be read as probabilities"),
    ],
)
def test_scores_are_probabilities_only_if_they_are_where_alarms_are(
    observed, rows, words
):
    curve = {
        "predicted": [0.01, 0.02, 0.29],
        "observed": [0.01, 0.02, observed],
        "rows": [400, 400, rows],
    }
    figures = {
        "metrics": {"ece": 0.021},
        "prevalence": 0.05,
        "threshold": 0.25,
        "delay_threshold": 0.3,
        "curves": {"calibration": curve},
    }
    run = view(figures=read_figures(figures))
    (text,) = told(findings.plain_words(run), "Scores as probabilities")
    assert words in text
    assert ("as an order" in text) == ("where" in words)


def test_one_word_for_what_the_leak_check_finds():
    check = {"check": "columns", "passed": False, "message": "a tells the label"}
    run = view(leakcheck=read_leakcheck({"passed": False, "checks": [check]}))
    assert told(findings.cautions(run), "The leak check warns") == [
        "a tells the label."
    ]
    assert tables.leak_checks(run).rows[0][1] == "WARNING"
    parts, _ = sections(run, set())
    (part,) = [part for part in parts if part.id == "leakcheck"]
    assert part.text[0].startswith("The check warns.")
    shown = " ".join(part.text) + str(part.tables)
    assert "fail" not in shown.casefold()


DEATHS = {
    "metrics": {"auroc": 0.83, "auprc": 0.4, "f1": 0.4, "ece": 0.3},
    "prevalence": 0.11,
    "threshold": 0.5,
    "positives": 12,
    "confusion": {
        "true_positives": 6,
        "false_positives": 9,
        "false_negatives": 6,
        "true_negatives": 90,
    },
    "attacks": [{"attack": "death in hospital", "rows": 12, "recall": 0.5}],
    "clients": [{"client": "a", "rows": 111, "positives": 12, "auroc": 0.83}],
    "control": {"random": {"auroc": 0.5}},
    "intervals": {"ece": [0.29, 0.4]},
}


def test_deaths_are_no_attacks():
    run = view(figures=read_figures(DEATHS))
    words = " ".join(
        f"{one.about} {one.text}"
        for one in (*findings.plain_words(run), *findings.cautions(run))
    )
    assert "Of a death and a survivor drawn at random" in words
    assert "11 % of the stays ended in death" in words
    assert "Few deaths 12 deaths were measured" in words
    parts, _ = sections(run, {"roc", "pr", "calibration", "attacks", "clients"})
    page = words + str(parts)
    # Identifiers of sections and figures stay what they are.
    for known in ("id='attacks'", "name='attacks'"):
        page = page.replace(known, "")
    assert "attack" not in page.casefold()
    assert "normal row" not in page.casefold()
    attacks = read_figures({**DEATHS, "attacks": [{"attack": "replay", "rows": 12}]})
    assert "attack" in str(findings.plain_words(view(figures=attacks)))


def test_the_note_of_the_calibration_error_says_why_its_interval_is_lopsided():
    for intervals, said in (({"ece": [0.26, 0.57]}, True), ({}, False)):
        content = {**DEATHS, "intervals": intervals}
        table = tables.metrics(view(figures=read_figures(content)))
        (row,) = [row for row in table.rows if row[0] == "ECE"]
        assert ("interval reaches mostly upwards" in row[-1]) == said


def test_an_episode_alone_is_one():
    for missed, words in ((0, "is not missed"), (1, "is missed")):
        content = {
            "metrics": {"mean_delay": 2.0, "missed_episodes": missed},
            "details": {"episodes": 1.0},
        }
        run = view(kind="evaluation", figures=read_figures(content))
        (text,) = told(findings.plain_words(run), "How soon")
        assert f"the only episode {words}" in text
        (card,) = [c for c in tables.cards(run) if c.title == "Missed episodes"]
        assert card.value == f"{missed} of 1"


def test_captions_of_an_evaluation_without_labels(tmp_path):
    rows = read(tmp_path, folder.predictions(labels=False))
    evaluation = view(kind="evaluation", predictions=rows)
    there, absent = sections(evaluation, {"alarms", "modalities"})
    captions = " ".join(d.caption for part in there for d in part.drawings)
    assert "attack" not in captions
    assert "false" not in captions
    (reason,) = [part.reason for part in absent if part.title == "Leak check"]
    assert "see the report of the run" in reason


def test_rows_without_an_attack_show_false_alarms_alone(tmp_path):
    content = {
        "positives": 0,
        "rows": 240,
        "threshold": 0.5,
        "metrics": {"f1": 0.0, "mcc": 0.0, "missed_episodes": 0.0, "accuracy": 1.0},
        "details": {"episodes": 0.0, "recall": 0.0},
        "false_alarms": {"per_1000_rows": 4.0},
    }
    rows = read(tmp_path, folder.predictions())
    run = view(kind="evaluation", figures=read_figures(content), predictions=rows)
    assert told(findings.cautions(run), "No attacks")
    assert not told(findings.cautions(run), "Few attacks")
    assert findings.plain_words(run) == []
    titles = [card.title for card in tables.cards(run)]
    assert titles == ["Rows scored", "Clients", "Alarms", "False alarms"]
    assert [row[0] for row in tables.metrics(run).rows] == ["Accuracy"]
