"""Numbers as text, and sentences for what a configuration may hold."""

import math
import typing

import pytest

from fedjax_health.config import Config, Custom
from fedjax_health.report import description, findings, tables, words
from fedjax_health.report.figures import read_figures, read_leakcheck
from fedjax_health.report.records import View
from fedjax_health.report.sections import sections

DASH = words.DASH


def view(**parts):
    empty = {
        "name": "a",
        "kind": "run",
        "config": {},
        "config_text": "",
        "environment": {},
        "rounds": (),
        "timings": (),
        "result": {},
        "figures": None,
        "leakcheck": None,
        "predictions": None,
    }
    return View(**{**empty, **parts})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, DASH),
        (math.nan, DASH),
        (True, "yes"),
        (1234, "1,234"),
        (0.12345, "0.123"),
        (-0.5, "-0.500"),
        (0.0, "0.000"),
        (0.00004, "4e-05"),
        (1234.5, "1,234.500"),
        ("text", "text"),
    ],
)
def test_number(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("achieved_far", 0.0072368, "0.72 %"),
        ("achieved_far", 0.0, "0 %"),
        ("achieved_far", 0.1234, "12.3 %"),
        ("mean_delay", 6.875, "6.9"),
        ("missed_episodes", 4.0, "4"),
        ("missed_episodes", 1234.0, "1,234"),
        ("auroc", 0.94135, "0.941"),
        ("auroc", None, DASH),
    ],
)
def test_metric(name, value, text):
    assert words.metric(name, value) == text


def test_listing():
    assert words.listing([]) == ""
    assert words.listing(["a"]) == "a"
    assert words.listing(["a", "b", "c"]) == "a, b and c"
    assert words.listing(list("abcde"), most=2) == "a, b and 3 more"


def test_what_was_run_names_every_stage_that_is_there():
    config = {
        "rounds": 60,
        "data": {"kind": "wustl", "path": "/d/w.csv", "modalities": ["flow"]},
        "partition": {"kind": "contiguous", "num_clients": 10},
        "model": {"kind": "gru"},
        "algorithm": {"kind": "scaffold"},
        "aggregator": {"kind": "trimmed_mean"},
        "transforms": [{"kind": "clip_l2"}, {"kind": "custom", "target": "a.b:c"}],
        "mechanism": {"kind": "central_gaussian"},
        "attack": {"kind": "sign_flip"},
    }
    text = description.what_was_run(view(config=config, result={"rounds": 40}))
    assert text == (
        "A GRU trained by SCAFFOLD over 10 clients for 40 rounds on WUSTL-EHMS-2020 "
        "(w.csv), modality flow. A round joins the clients' updates by trimmed mean; "
        "updates go through clip l2 and a.b:c; privacy by central gaussian; malicious "
        "clients send sign flip."
    )


def test_what_was_run_can_do_with_little():
    config = {"model": {"kind": "custom", "target": "m:net"}, "transforms": []}
    text = description.what_was_run(view(config=config))
    assert text.startswith("M:net trained by its algorithm over its clients on Hosp")
    config["data"] = {"kind": "custom", "target": "m:data"}
    config["transforms"] = [{"kind": "identity"}]
    text = description.what_was_run(view(config=config))
    assert "on data from m:data." in text
    assert "identity" not in text


def cautions(**parts):
    return [finding.about for finding in findings.cautions(view(**parts))]


def test_cautions_are_given_where_there_is_reason():
    assert cautions() == []
    assert cautions(leakcheck=read_leakcheck({"passed": True})) == []
    assert cautions(leakcheck=read_leakcheck({"passed": False})) == [
        "The leak check warns"
    ]
    config = {"evaluation": {"false_alarm_rate": 0.01}}
    asked = "More false alarms than asked for"
    for rate, expected in ((0.053, [asked]), (0.02, [])):
        result = {"metrics": {"achieved_far": rate}}
        assert cautions(config=config, result=result) == expected
    assert cautions(figures=read_figures({"positives": 12})) == ["Few attacks"]
    rounds = tuple({"round": i, "validation_auroc": 0.5} for i in (5, 10, 15))
    late = "Perhaps not trained to the end"
    assert cautions(rounds=rounds, result={"best_round": 15}) == [late]
    assert cautions(rounds=rounds, result={"best_round": 10}) == []


def test_delays_are_read_off_at_the_highest_rate_that_is_allowed():
    curve = {
        "achieved_far": [0.004, 0.0, 0.03, 0.01, 0.5],
        "mean_delay": [5.0, 9.0, 2.0, 4.0, 0.0],
    }
    table = tables.delays(view(figures=read_figures({"curves": {"delay": curve}})))
    assert [row[:3] for row in table.rows] == [
        ("0.1 %", "0 %", "9.0"),
        ("0.5 %", "0.4 %", "5.0"),
        ("1 %", "1 %", "4.0"),
        ("2 %", "1 %", "4.0"),
        ("5 %", "3 %", "2.0"),
        ("10 %", "3 %", "2.0"),
    ]
    # What no rate has is no column.
    assert table.columns == ("rate allowed", "rate reached", "mean delay")


def test_a_large_population_is_cut_and_single_classes_come_last():
    clients = [
        {"client": f"c{i}", "rows": 10, "positives": 1, "auroc": i / 100, "f1": 0.5}
        for i in range(90)
    ]
    clients.insert(0, {"client": "lone", "rows": 10, "positives": 0})
    table = tables.clients(view(figures=read_figures({"clients": clients})))
    assert len(table.rows) == tables.CLIENTS
    assert table.rows[0][0] == "c0"
    assert "31 more" in table.caption
    few = tables.clients(view(figures=read_figures({"clients": clients[:3]})))
    assert [row[0] for row in few.rows] == ["c0", "c1", "lone"]
    assert few.rows[-1][3] == "one class only"


def test_suspicious_columns_come_first():
    columns = [
        {"column": "a", "auroc": 0.6},
        {"column": "b", "auroc": 0.1},
        {"column": "c", "auroc": None, "suspicious": True},
    ]
    check = read_leakcheck({"passed": True, "columns": columns})
    table = tables.leak_columns(view(leakcheck=check))
    assert [row[0] for row in table.rows] == ["c", "b", "a"]
    assert table.marked == {0}


def test_every_kind_of_model_and_data_has_a_name():
    def kinds(slot):
        return {
            one.__struct_config__.tag
            for one in typing.get_args(Config.__annotations__[slot])
            if one is not Custom
        }

    assert set(description.MODELS) == kinds("model")
    assert set(description.ALGORITHMS) == kinds("algorithm")
    assert set(description.DATA) == kinds("data") - {"table"}


def test_the_clients_are_those_that_trained():
    """A split by clients leaves some out, which the figures list all the same."""
    clients = [{"client": c, "rows": 1, "positives": 0} for c in "abcdef"]
    found = read_figures({"clients": clients})
    config = {"split": {"kind": "by_client"}, "model": {"kind": "gru"}}
    for kind in ("run", "evaluation"):
        known = view(
            kind=kind, config=config, figures=found, result={"training_clients": 4}
        )
        assert "over 4 clients" in description.what_was_run(known)
        # Folders of earlier versions do not say.
        unknown = known._replace(result={})
        assert "over its clients" in description.what_was_run(unknown)


@pytest.mark.parametrize(
    ("tried", "average", "text"),
    [
        (3, 0.0, "is that of round 4, the best on validation rows of 3 that"),
        (1, 0.0, "is that of round 4; no other was compared"),
        (2, 0.9, "the running average of the global model over the rounds, as it was"),
    ],
)
def test_the_model_that_is_measured_is_named_as_it_was_chosen(tried, average, text):
    lines = [{"round": i, "loss": 1.0} for i in range(1, 5)]
    for line in lines[-tried:]:
        line["validation_auroc"] = 0.7
    run = view(
        rounds=tuple(lines),
        result={"best_round": 4},
        config={"evaluation": {"average": average}},
    )
    there, _ = sections(run, {"training"})
    (training,) = (part for part in there if part.id == "training")
    assert text in training.text[0]
    assert ("of 2 that were compared" in training.text[0]) == (tried == 2)
