import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.metrics.delay import (
    alarms_per_day,
    delay_at_matched_far,
    delay_curve,
    detection_delay,
    find_episodes,
)
from fedjax_health.metrics.threshold import threshold_at_far


def oracle(alarm, label, segment, window):
    """The rule of the module's text, one row at a time."""
    rows = len(alarm)
    found = []
    i = 0
    while i < rows:
        begins = label[i] == 1 and (
            i == 0 or label[i - 1] == 0 or segment[i - 1] != segment[i]
        )
        if not begins:
            i += 1
            continue
        end = i
        while end < rows and label[end] == 1 and segment[end] == segment[i]:
            end += 1
        delay = None
        for t in range(i, end):
            on_before = t > 0 and segment[t - 1] == segment[t] and alarm[t - 1]
            if not alarm[t]:
                continue
            if not on_before:
                delay = t - i
                break
            if t == i:
                age = 0
                while (
                    t - age - 1 >= 0
                    and segment[t - age - 1] == segment[t]
                    and alarm[t - age - 1]
                ):
                    age += 1
                if age <= window:
                    delay = 0
                    break
        found.append((i, end - i, end - i if delay is None else delay, delay is None))
        i = end
    return found


ROWS = st.lists(
    st.tuples(
        st.booleans(), st.integers(0, 1), st.integers(0, 9).map(lambda d: d == 0)
    ),
    max_size=60,
)


@given(rows=ROWS, window=st.integers(0, 4))
@settings(deadline=None, max_examples=400)
def test_equals_the_loop(rows, window):
    alarm = np.array([row[0] for row in rows], bool)
    label = np.array([row[1] for row in rows], int)
    segment = np.cumsum([row[2] for row in rows]).astype(int)
    episodes = find_episodes(alarm, label, segment, window=window)
    got = list(zip(*(column.tolist() for column in episodes), strict=True))
    assert got == oracle(alarm, label, segment, window)


@pytest.mark.parametrize(
    ("alarm", "label", "window", "delay", "missed"),
    [
        # an alarm that starts on the onset
        ("000100", "000111", 2, 0, False),
        ("000001", "000111", 2, 2, False),
        # on for one window, then for longer
        ("011100", "000111", 2, 0, False),
        ("111100", "000111", 2, 3, True),
        # a false alarm that ends, and a fresh one
        ("111101", "000111", 2, 2, False),
        # an alarm over before the onset, none afterwards
        ("011000", "000111", 2, 3, True),
    ],
)
def test_single_episodes(alarm, label, window, delay, missed):
    episodes = find_episodes(
        [c == "1" for c in alarm],
        [int(c) for c in label],
        np.zeros(len(label), int),
        window=window,
    )
    assert episodes.delay.tolist() == [delay]
    assert episodes.missed.tolist() == [missed]


def test_neither_alarms_nor_episodes_cross_segments():
    episodes = find_episodes(
        [False, True, True, False, False],
        [1, 1, 1, 1, 1],
        [5, 5, 2, 2, 5],
        window=0,
    )
    assert episodes.onset.tolist() == [0, 2, 4]
    assert episodes.length.tolist() == [2, 2, 1]
    assert episodes.delay.tolist() == [1, 0, 1]
    assert episodes.missed.tolist() == [False, False, True]


def test_figures():
    #        two normal alarms of five; delays 1, 0, and 3 for the missed one
    score = np.array([0.9, 0.1, 0.1, 0.8, 0.2, 0.9, 0.1, 0.6, 0.0, 0.0, 0.0])
    label = np.array([0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1])
    segment = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1])
    result = detection_delay(
        score, label, segment, threshold=0.6, window=3, recall_within=(0, 1, 9)
    )
    assert result == {
        "episodes": 3.0,
        "missed_episodes": 1.0,
        "achieved_far": 0.4,
        "mean_delay": 4 / 3,
        "median_delay": 1.0,
        "recall_within_0": 1 / 3,
        "recall_within_1": 2 / 3,
        "recall_within_9": 2 / 3,
    }


def test_random_alarms_reach_the_known_delay():
    # domain figure: 24-step episodes, fresh random alarms at 5 % a step: about 13.5
    rng = np.random.default_rng(0)
    segment = np.repeat(np.arange(4000), 48)
    label = np.tile(np.repeat([0, 1], 24), 4000)
    score = rng.random(len(label))
    result = detection_delay(score, label, segment, threshold=0.95, window=20)
    np.testing.assert_allclose(result["achieved_far"], 0.05, atol=0.002)
    # sum of survival: (1 - 0.95**24) * 0.95 / 0.05, as an alarm on the onset is 0
    want = 0.95 * (1 - 0.95**24) / 0.05
    np.testing.assert_allclose(result["mean_delay"], want, atol=0.5)


def test_no_episode_and_no_normal_row():
    assert detection_delay([0.9, 0.1], [0, 0], [0, 0], threshold=0.5, window=1) == {
        "episodes": 0.0,
        "missed_episodes": 0.0,
        "achieved_far": 0.5,
    }
    only = detection_delay([0.9, 0.1], [1, 1], [0, 0], threshold=0.5, window=1)
    assert only["achieved_far"] == 0.0
    assert only["mean_delay"] == 0.0


def test_input_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="three vectors"):
        find_episodes([True], [1, 0], [0, 0], window=1)
    with pytest.raises(ValueError, match="window must be 0 or more"):
        find_episodes([True], [1], [0], window=-1)
    with pytest.raises(ValueError, match="without NaN"):
        detection_delay([np.nan], [1], [0], threshold=0.5, window=1)


def streams(seed, rows=600):
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.random(rows // 20) < 0.3, 20).astype(int)
    score = np.round(rng.normal(size=rows) + 2 * label, 1)
    return score, label, np.repeat([0, 1], rows // 2)


def test_delay_curve_takes_thresholds_from_validation_and_delays_from_test():
    validation, test = streams(0)[:2], streams(1)
    curve = delay_curve(*test, window=3, reference=validation, rates=(0.01, 0.1))
    for i, rate in enumerate((0.01, 0.1)):
        at = threshold_at_far(*validation, rate=rate)
        want = detection_delay(*test, threshold=at, window=3)
        assert curve.rate[i] == rate
        assert curve.threshold[i] == at
        for name in ("achieved_far", "mean_delay", "median_delay", "missed_episodes"):
            assert getattr(curve, name)[i] == want[name]


def test_delay_curve_of_the_rows_themselves_achieves_its_rates():
    score, label, segment = streams(2)
    curve = delay_curve(score + np.arange(600) * 1e-9, label, segment, window=3)
    normal = (label == 0).sum()
    assert {0.001, 0.01, 0.05, 0.2} < set(curve.rate)
    assert (np.diff(curve.rate) > 0).all()
    np.testing.assert_allclose(
        curve.achieved_far, np.floor(curve.rate * normal + 1e-9) / normal
    )
    assert (np.diff(curve.missed_episodes) <= 0).all()


def test_delay_curve_without_episodes_or_without_normal_rows():
    score = [0.1, 0.9, 0.3]
    assert delay_curve(score, [0, 0, 0], [0, 0, 0], window=1) is None
    assert delay_curve(score, [1, 1, 1], [0, 0, 0], window=1) is None
    only = (score, [0, 0, 1])
    curve = delay_curve(score, [1, 1, 1], [0, 0, 0], window=1, reference=only)
    assert curve.mean_delay.tolist() == [3.0] * len(curve.rate)


def test_delay_at_a_matched_false_alarm_rate():
    score, label, segment = streams(3)
    exact = score + np.arange(600) * 1e-9
    normal = np.sort(exact[label == 0])[::-1]
    allowed = int(0.05 * len(normal))
    got = delay_at_matched_far(exact, label, segment, window=3, achieved=0.05)
    assert got["achieved_far"] == allowed / len(normal)
    assert normal[allowed] < got["matched_threshold"] <= normal[allowed - 1]
    want = detection_delay(
        exact, label, segment, threshold=normal[allowed - 1], window=3
    )
    assert got.pop("matched_threshold") > 0
    assert got == want
    tied = delay_at_matched_far(np.ones(600), label, segment, window=3, achieved=0.5)
    assert tied["achieved_far"] == 0.0
    with pytest.raises(ValueError, match="needs normal"):
        delay_at_matched_far([0.1], [1], [0], window=3)


def test_false_alarms_a_day():
    # domain figure: 1 % of one-minute steps is 14 a day
    assert alarms_per_day(0.01, 60) == pytest.approx(14.4)
    assert alarms_per_day(0.0, 1) == 0
    with pytest.raises(ValueError, match="step_seconds must be above 0, not -1"):
        alarms_per_day(0.1, -1)
