"""The picture and the table say what the report says."""

import copy

import matplotlib
import pytest

from benchmarks import plot


def spread(median, low, high):
    return {"median": median, "min": low, "max": high, "all": [low, median, high]}


@pytest.fixture
def report():
    record = {"warm_seconds": 1.25, "peak_rss_bytes": 300 * 2**20, "loss": 0.65}
    part = {
        "ours": {**record, "rounds_per_second": spread(80.0, 70.0, 90.0)},
        "rivals": {
            "fedjax": {
                **record,
                "status": "measured",
                "theirs": spread(8.0, 7.0, 9.5),
                "ratio": spread(10.0, 8.0, 11.0),
            },
            "pfl": {"status": "environment missing or out of date"},
        },
        "central": {
            **record,
            "theirs": spread(100.0, 95.0, 110.0),
            "ratio": spread(0.8, 0.7, 0.9),
        },
    }
    return {"workloads": {"mlp": part, "gru": copy.deepcopy(part)}}


def test_the_table_has_every_engine_that_was_measured(report):
    assert plot.table(report).splitlines()[2:5] == [
        "| W1: MLP | fedjax_health | 80.0 |  | 1.2 | 300 | 0.6500 |",
        "| W1: MLP | FedJAX | 8.00 | 10.00 (8.00-11.00) | 1.2 | 300 | 0.6500 |",
        "| W1: MLP | centralised limit | 100.0 | 0.80 (0.70-0.90) | 1.2 | 300 "
        "| 0.6500 |",
    ]
    assert len(plot.table(report).splitlines()) == 8


def test_the_picture_tells_speeds_ratios_and_limit(report, tmp_path):
    # Text as text, to be found in the file.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot.draw(report, tmp_path / "speed.svg")
    text = (tmp_path / "speed.svg").read_text(encoding="utf-8")
    for shown in (
        "80.0",
        "8.00  (ours 10.0\N{MULTIPLICATION SIGN})",
        "centralised limit 100.0",
        "W2: GRU",
    ):
        assert shown in text
    assert ">pfl<" not in text
