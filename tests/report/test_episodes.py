"""Episodes as the metrics count them, and which pieces are shown."""

import numpy as np
import pytest

from fedjax_health.metrics import delay
from fedjax_health.report.episodes import SPAN, choose_panels, find_episodes
from fedjax_health.report.predictions import Predictions, read_predictions
from tests.report import folder


def make(label, alarm, entity=None, score=None):
    rows = len(alarm)
    entity = np.zeros(rows, int) if entity is None else np.asarray(entity)
    score = np.where(alarm, 0.9, 0.1) if score is None else np.asarray(score)
    return Predictions(
        client=np.zeros(rows, np.int64),
        client_names=("a",),
        entity=entity,
        entity_names=tuple(map(str, range(entity.max() + 1))),
        segment=entity,
        time=np.arange(rows, dtype=float),
        score=score,
        label=None if label is None else np.asarray(label, np.int8),
        attack=None,
        attack_names=(),
        detected=np.asarray(alarm, bool),
        alarm=np.asarray(alarm, bool),
        shares={},
        top_features=None,
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("window", [0, 1, 4])
def test_episodes_are_those_of_the_metrics(seed, window):
    rng = np.random.default_rng(seed)
    rows = 120
    label = np.repeat(rng.integers(0, 2, rows // 4), 4)
    alarm = rng.random(rows) < rng.choice([0.1, 0.5, 0.9])
    entity = np.sort(rng.integers(0, 4, rows))
    ours = find_episodes(make(label, alarm, entity), window=window)
    theirs = delay.find_episodes(alarm, label, entity, window=window)
    assert ours.onset.tolist() == theirs.onset.tolist()
    assert (ours.end - ours.onset).tolist() == theirs.length.tolist()
    assert ours.delay.tolist() == theirs.delay.tolist()
    assert ours.missed.tolist() == theirs.missed.tolist()


def test_rows_without_a_label_cut_streams_as_in_the_figures():
    label = np.array([0, 0, -1, 1, 1, 0, -1, -1, 0, 1, 1, -1, 1])
    alarm = np.array([0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1], bool)
    ours = find_episodes(make(label, alarm), window=1)
    known = label >= 0
    piece = np.cumsum(~known)[known]
    theirs = delay.find_episodes(alarm[known], label[known], piece, window=1)
    rows = np.flatnonzero(known)
    assert ours.onset.tolist() == rows[theirs.onset].tolist() == [3, 9, 12]
    assert ours.delay.tolist() == theirs.delay.tolist() == [0, 0, 0]
    assert ours.missed.tolist() == theirs.missed.tolist()


def test_what_went_wrong_comes_first_and_each_stream_once(tmp_path):
    path = tmp_path / "predictions.parquet"
    folder.predictions().to_parquet(path)
    rows = read_predictions(path)
    panels = choose_panels(rows, window=4)
    assert [panel.why for panel in panels] == [
        "missed episode",
        "late alarm",
        "early alarm",
        "usual delay",
        "no attack",
        "early alarm",
    ]
    # Client 0 misses its attack; client 1 is late and alone has false alarms.
    assert [panel.first // 40 for panel in panels] == [0, 1, 2, 3, 5, 4]


def test_the_most_false_alarms_are_shown_where_they_are():
    label, alarm = np.zeros(2000, int), np.zeros(2000, bool)
    label[50:60] = alarm[50:60] = True
    alarm[1700:1705] = True
    entity = np.repeat([0, 1], 1000)
    panels = choose_panels(make(label, alarm, entity), window=4)
    assert [panel.why for panel in panels] == ["most false alarms", "early alarm"]
    assert panels[0].first <= 1700
    assert panels[0].end >= 1705
    assert all(panel.end - panel.first == SPAN for panel in panels)
    assert panels[1].first == 0


def test_without_labels_the_most_alarms_come_first():
    alarm = np.zeros(90, bool)
    alarm[40:45] = True
    score = np.linspace(0, 0.5, 90)
    panels = choose_panels(make(None, alarm, np.repeat([0, 1, 2], 30), score), window=4)
    assert [panel.why for panel in panels] == [
        "most alarms",
        "highest score",
        "fewest alarms",
    ]
    assert [panel.first for panel in panels] == [30, 60, 0]


def test_without_alarms_in_time_nothing_is_shown():
    rows = make([0, 1], [False, True])
    assert choose_panels(rows._replace(alarm=None), window=4) == ()
    with pytest.raises(ValueError, match="labels and alarms"):
        find_episodes(rows._replace(label=None), window=4)


def test_no_episode_at_all_is_no_error():
    panels = choose_panels(make([0] * 5, [False] * 5), window=4)
    assert [panel.why for panel in panels] == ["no attack"]
