import numpy as np
import pytest

from fedjax_health.data.hospital_sim import oracle_report
from fedjax_health.data.schema import DataError, Dataset
from fedjax_health.metrics.delay import find_episodes


def _dataset(label, scores):
    size = len(label)
    return Dataset(
        features={"iot": np.zeros((size, 1), np.float32)},
        feature_names={"iot": ("a",)},
        label=np.asarray(label, np.float32),
        attack=np.asarray(label, np.int32),
        attack_names=("normal", "ddos"),
        client=np.zeros(size, np.int32),
        client_names=("one",),
        entity=np.zeros(size, np.int64),
        time=np.arange(size, dtype=np.float64),
        oracle=np.asarray(scores, np.float32),
    )


def test_figures_by_hand():
    label = [0] * 30 + [1] * 4 + [0] * 3 + [1] * 5
    scores = [-1] * 30 + [-1, -1, 1, 1] + [1, -1, -1] + [-1] * 5
    row = oracle_report(_dataset(label, scores))[0]
    assert row.episodes == 2
    assert row.mean_delay == pytest.approx((2 + 5) / 2)
    assert row.missed == 0.5
    assert row.accuracy == pytest.approx(34 / 42)
    assert row.f1 == pytest.approx(2 * 2 / (9 + 3))


def test_an_alarm_long_on_before_the_onset_does_not_count():
    label = [0] * 30 + [1] * 10
    scores = [-1] * 5 + [1] * 28 + [-1] * 3 + [1] * 4
    assert oracle_report(_dataset(label, scores))[0].mean_delay == 6
    scores = [-1] * 20 + [1] * 20
    assert oracle_report(_dataset(label, scores))[0].mean_delay == 0


@pytest.mark.parametrize("length", [19, 20, 21, 22])
@pytest.mark.parametrize("start", [0, 7])
def test_delays_are_those_of_the_metric(start, length):
    label = [0] * (start + length) + [1] * 10
    # On for ``length`` steps at the onset, then off, then on again.
    scores = [-1] * start + [1] * (length + 2) + [-1] * 3 + [1] * 5
    found = find_episodes(
        np.array(scores) > 0, label, np.zeros(len(label), int), window=20
    )
    assert found.delay.tolist() == [0 if length <= 20 else 5]
    assert oracle_report(_dataset(label, scores))[0].mean_delay == found.delay[0]


def test_one_class_is_refused():
    with pytest.raises(DataError, match="one class"):
        oracle_report(_dataset([0] * 5, [0] * 5))
