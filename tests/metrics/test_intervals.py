import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fedjax_health.metrics import host, intervals
from fedjax_health.metrics.delay import find_episodes
from fedjax_health.metrics.intervals import (
    blocks,
    bootstrap_intervals,
    holm,
    paired_difference,
)


def streams(seed, rows=400, decimals=2):
    """Rows of ten streams with episodes, heavy ties and uneven units."""
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.random(rows // 8) < 0.3, 8).astype(int)
    score = 1 / (1 + np.exp(-(rng.normal(size=rows) + 1.5 * label - 1)))
    segment = np.repeat(np.arange(10), rows // 10)
    return np.round(score, decimals), label, segment


def drawn(unit, resamples, seed):
    """The rows of each resample, written out."""
    units = np.unique(unit)
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        picks = units[rng.integers(len(units), size=len(units), dtype=np.int32)]
        yield picks, np.concatenate([np.flatnonzero(unit == pick) for pick in picks])


def gaps(score, label, bins=15):
    """Each row's part in each bin of equal mass, from single places in the order."""
    ordered = np.sort(score)
    edges = np.linspace(0, len(score), bins + 1).astype(int)
    shares = np.zeros((len(score), bins))
    for b in range(bins):
        for place in range(edges[b], edges[b + 1]):
            tied = np.flatnonzero(score == ordered[place])
            shares[tied, b] += 1 / len(tied)
    return shares * (score - label)[:, None]


def slow(score, label, unit, segment, threshold, delay_threshold, window, n, seed):
    """Every metric of every resample, one after the other."""
    episodes = find_episodes(score >= delay_threshold, label, segment, window=window)
    gap = gaps(score, label)
    values = {}
    for picks, rows in drawn(unit, n, seed):
        s, y = score[rows], label[rows]
        alarm = s >= threshold
        owned = [np.flatnonzero(unit[episodes.onset] == pick) for pick in picks]
        here = np.concatenate(owned)
        result = {
            "accuracy": sk.accuracy_score(y, alarm),
            "brier": sk.brier_score_loss(y, s),
            "ece": np.abs(gap[rows].sum(axis=0)).sum() / len(rows),
        }
        if 0 < y.sum() < len(y):
            result |= {
                "auroc": sk.roc_auc_score(y, s),
                "auprc": sk.average_precision_score(y, s),
                "f1": sk.f1_score(y, alarm),
                "mcc": sk.matthews_corrcoef(y, alarm),
            }
        if (y == 0).any():
            result["achieved_far"] = np.mean(s[y == 0] >= delay_threshold)
        if len(here):
            result |= {
                "mean_delay": episodes.delay[here].mean(),
                "median_delay": np.median(episodes.delay[here]),
                "missed_episodes": episodes.missed[here].sum(),
            }
        for name, value in result.items():
            values.setdefault(name, []).append(value)
    return {
        name: np.quantile(v, [0.025, 0.975]) for name, v in values.items()
    }, n - len(values.get("auroc", []))


@pytest.mark.parametrize("decimals", [1, 2, 12])
@pytest.mark.parametrize("kind", ["blocks", "patients", "rows"])
def test_equals_resamples_written_out(kind, decimals):
    score, label, segment = streams(0, decimals=decimals)
    unit = {
        "blocks": blocks(segment, 15),
        "patients": np.random.default_rng(5).integers(-3, 9, len(label)),
        "rows": np.arange(len(label)),
    }[kind]
    options = {"threshold": 0.4, "delay_threshold": 0.7, "window": 3, "seed": 4}
    got = bootstrap_intervals(
        score, label, unit, segment=segment, resamples=25, **options
    )
    want, left_out = slow(score, label, unit, segment, 0.4, 0.7, 3, 25, 4)
    assert set(got.bounds) == set(want)
    for name, ends in want.items():
        np.testing.assert_allclose(got.bounds[name], ends, atol=1e-9, err_msg=name)
    assert (got.resamples, got.left_out) == (25, left_out)


def test_resamples_of_one_class_are_left_out_and_counted():
    # one unit of three holds all positives: (2/3)**3 of the resamples lack them
    score = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.4])
    label = np.array([1, 1, 0, 0, 0, 0])
    unit = np.array([0, 0, 1, 1, 2, 2])
    segment = np.zeros(6, int)
    got = bootstrap_intervals(
        score,
        label,
        unit,
        threshold=0.5,
        delay_threshold=0.5,
        segment=segment,
        resamples=150,
    )
    want, left_out = slow(score, label, unit, segment, 0.5, 0.5, 0, 150, 0)
    assert got.left_out == left_out
    assert 25 < left_out < 70
    for name in ("auroc", "f1", "mcc", "mean_delay"):
        np.testing.assert_allclose(got.bounds[name], want[name], err_msg=name)


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([-np.inf, -1.5, 0.0, 0.25, 7.0]),
            st.integers(0, 1),
            st.integers(0, 3),
        ),
        min_size=4,
        max_size=25,
    ),
    counts=st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
@settings(deadline=None, max_examples=150)
def test_ranks_with_multiplicities_equal_scikit_learn(rows, counts):
    score, label, unit = (np.array(column) for column in zip(*rows, strict=True))
    statistic = intervals._ranks(score, label == 1, unit)
    got = statistic(np.array([counts], np.int32))
    weight = np.array(counts)[unit]
    kept = weight > 0
    if len(set(label[kept])) < 2:
        assert np.isnan(got["auroc"][0])
        assert np.isnan(got["auprc"][0])
        return
    # scikit-learn takes finite scores only
    order = np.unique(score, return_inverse=True)[1]
    given_to = {"y_true": label[kept], "y_score": order[kept]}
    for name, theirs in (
        ("auroc", sk.roc_auc_score),
        ("auprc", sk.average_precision_score),
    ):
        want = theirs(**given_to, sample_weight=weight[kept])
        np.testing.assert_allclose(got[name][0], want, atol=1e-12)


def test_all_units_once_are_the_metrics_themselves():
    score, label, segment = streams(1, decimals=1)
    unit = blocks(segment, 12)
    once = np.ones((1, unit.max() + 1), np.int32)
    positive = label == 1
    ranks = intervals._ranks(score, positive, unit)(once)
    calibration = intervals._calibration(score, positive, unit)(once)
    np.testing.assert_allclose(ranks["auroc"], host.auroc(score, label))
    np.testing.assert_allclose(ranks["auprc"], host.auprc(score, label))
    np.testing.assert_allclose(calibration["brier"], host.brier(score, label))
    np.testing.assert_allclose(calibration["ece"], host.calibration_error(score, label))


def test_constant_scores():
    label = np.arange(90) % 3 == 0
    got = bootstrap_intervals(
        np.full(90, 0.5), label, np.arange(90), threshold=0.5, resamples=200
    )
    assert got.bounds["auroc"] == (0.5, 0.5)
    assert got.bounds["mcc"] == (0.0, 0.0)
    low, high = got.bounds["ece"]
    assert 0 < low < 1 / 6 < high


def test_the_draws_do_not_depend_on_how_many_are_held_at_a_time(monkeypatch):
    score, label, segment = streams(2)
    arguments = (score, label, blocks(segment, 7))
    options = {"threshold": 0.5, "delay_threshold": 0.6, "segment": segment}
    want = bootstrap_intervals(*arguments, **options, resamples=50)
    monkeypatch.setattr(intervals, "CELLS", 3 * len(label) + 1)
    got = bootstrap_intervals(*arguments, **options, resamples=50)
    for name, ends in want.bounds.items():
        np.testing.assert_allclose(got.bounds[name], ends, rtol=1e-12, err_msg=name)
    other = bootstrap_intervals(*arguments, **options, resamples=50, seed=1)
    assert other.bounds["auroc"] != want.bounds["auroc"]


def test_independent_rows_have_the_interval_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 4000)
    score = np.where(rng.random(4000) < 0.8, label, 1 - label).astype(float)
    got = bootstrap_intervals(
        score, label, np.arange(4000), threshold=0.5, resamples=2000
    )
    middle = np.mean((score >= 0.5) == label)
    half = 1.96 * np.sqrt(middle * (1 - middle) / 4000)
    np.testing.assert_allclose(
        got.bounds["accuracy"], [middle - half, middle + half], atol=0.15 * half
    )


def test_rows_that_resemble_their_neighbours_need_wider_intervals():
    rng = np.random.default_rng(1)
    label = np.repeat(rng.integers(0, 2, 100), 40)
    right = np.repeat(rng.random(100) < 0.8, 40)
    score = np.where(right, label, 1 - label).astype(float)
    width = {}
    for name, unit in (("rows", np.arange(4000)), ("blocks", np.arange(4000) // 40)):
        low, high = bootstrap_intervals(
            score, label, unit, threshold=0.5, resamples=300
        ).bounds["accuracy"]
        width[name] = high - low
    # sqrt(40) times as wide
    assert width["blocks"] > 4 * width["rows"]


def test_what_has_no_answer_has_no_interval():
    score, label, segment = streams(3)
    normal = bootstrap_intervals(
        score,
        np.zeros_like(label),
        blocks(segment, 10),
        threshold=0.5,
        delay_threshold=0.5,
        segment=segment,
        resamples=20,
    )
    assert set(normal.bounds) == {"accuracy", "ece", "brier", "achieved_far"}
    assert normal.left_out == 20
    attack = bootstrap_intervals(
        score,
        np.ones_like(label),
        blocks(segment, 10),
        threshold=0.5,
        delay_threshold=0.5,
        segment=segment,
        resamples=20,
    )
    assert "achieved_far" not in attack.bounds
    assert {"mean_delay", "median_delay", "missed_episodes"} < set(attack.bounds)
    single = bootstrap_intervals(
        score, label, np.zeros(len(label)), threshold=0.5, resamples=20
    )
    assert single.bounds == {}
    records = bootstrap_intervals(
        score, label, np.arange(len(label)), threshold=0.5, resamples=20
    )
    assert not {"mean_delay", "achieved_far"} & set(records.bounds)


def oracle_blocks(segment, length):
    result, block = [], -1
    start = 0
    while start < len(segment):
        end = start
        while end < len(segment) and segment[end] == segment[start]:
            end += 1
        many = max(1, (end - start) // length)
        for part in range(many):
            inside = [
                i for i in range(end - start) if i * many // (end - start) == part
            ]
            block += 1
            result += [block] * len(inside)
        start = end
    return result


@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=6),
    length=st.integers(1, 9),
)
@settings(deadline=None, max_examples=100)
def test_blocks_equal_the_loop_and_are_long_enough(lengths, length):
    segment = np.repeat(np.arange(len(lengths)) % 2, lengths)
    got = blocks(segment, length)
    assert got.tolist() == oracle_blocks(segment, length)
    for block in range(got.max() + 1):
        rows = np.flatnonzero(got == block)
        assert len(set(segment[rows])) == 1
        assert len(rows) >= min(length, lengths[segment_of(lengths, rows[0])])
        assert len(rows) < 2 * length


def segment_of(lengths, row):
    return int(np.searchsorted(np.cumsum(lengths), row, side="right"))


def test_paired_difference_equals_resamples_written_out():
    score, label, segment = streams(4)
    rng = np.random.default_rng(9)
    other = np.round(score + rng.normal(scale=0.2, size=len(score)), 1)
    unit = blocks(segment, 20)
    got = paired_difference(score, other, label, unit, resamples=80, seed=2)
    for name, metric in (
        ("auroc", sk.roc_auc_score),
        ("auprc", sk.average_precision_score),
    ):
        values = np.array(
            [
                metric(label[rows], score[rows]) - metric(label[rows], other[rows])
                for _, rows in drawn(unit, 80, 2)
                if 0 < label[rows].sum() < len(rows)
            ]
        )
        found = got[name]
        want = metric(label, score) - metric(label, other)
        np.testing.assert_allclose(found.difference, want)
        np.testing.assert_allclose(
            [found.low, found.high], np.quantile(values, [0.025, 0.975])
        )
        rarer = min((values <= 1e-15).sum(), (values >= -1e-15).sum())
        np.testing.assert_allclose(
            found.p_value, min(1, 2 * (1 + rarer) / (len(values) + 1))
        )
        assert found.left_out == 80 - len(values)


def test_paired_difference_sees_through_what_is_hard_for_both():
    rng = np.random.default_rng(0)
    label = np.repeat(rng.random(100) < 0.4, 10).astype(int)
    unit = np.repeat(np.arange(100), 10)
    hard = np.repeat(rng.normal(size=100), 10)
    better = label + hard + rng.normal(scale=0.5, size=1000)
    worse = 0.6 * label + hard + rng.normal(scale=0.5, size=1000)
    found = paired_difference(better, worse, label, unit, resamples=300)["auroc"]
    assert 0 < found.low < found.difference < found.high
    assert found.p_value == pytest.approx(2 / 301)
    turned = paired_difference(worse, better, label, unit, resamples=300)["auroc"]
    np.testing.assert_allclose([turned.low, turned.high], [-found.high, -found.low])
    assert turned.p_value == found.p_value


def test_equal_detectors_do_not_differ():
    score, label, segment = streams(5)
    found = paired_difference(score, 2 * score, label, segment, resamples=50)
    for name in ("auroc", "auprc"):
        assert found[name][:4] == (0.0, 0.0, 0.0, 1.0)


def test_p_values_of_equal_skill_are_spread_evenly():
    rng = np.random.default_rng(3)
    p_values = []
    for seed in range(60):
        label = rng.integers(0, 2, 120)
        a, b = rng.normal(size=(2, 120)) + label
        found = paired_difference(a, b, label, np.arange(120), resamples=150, seed=seed)
        p_values.append(found["auroc"].p_value)
    assert np.mean(np.array(p_values) < 0.1) < 0.25
    assert 0.35 < np.mean(p_values) < 0.65


def test_holm():
    # Holm (1979) by hand: .01 * 4, .02 * 3, .03 * 2, .04 * 1, never falling
    np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.5, 0.001]), [1.0, 1.0, 0.003])
    assert holm([0.2]).tolist() == [0.2]
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(deadline=None, max_examples=100)
def test_holm_lies_between_single_tests_and_bonferroni(p_values):
    raw, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= raw).all()
    assert (adjusted <= np.minimum(1, len(raw) * raw)).all()
    order = np.argsort(raw, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_input_without_an_answer_is_refused():
    score, label, segment = streams(6)
    with pytest.raises(ValueError, match="units"):
        bootstrap_intervals(score, label, [1, 2], threshold=0.5)
    with pytest.raises(ValueError, match="resamples must be 1 or more, not 0"):
        bootstrap_intervals(score, label, segment, threshold=0.5, resamples=0)
    with pytest.raises(ValueError, match="level must lie in"):
        bootstrap_intervals(score, label, segment, threshold=0.5, level=95)
    with pytest.raises(ValueError, match="apply a sigmoid"):
        bootstrap_intervals(score * 9, label, segment, threshold=0.5)
    with pytest.raises(ValueError, match="second detector's rows are NaN"):
        paired_difference(score, np.full(len(score), np.nan), label, segment)
    with pytest.raises(ValueError, match="needs both classes"):
        paired_difference(score, score, np.zeros(len(score)), segment)
    with pytest.raises(ValueError, match="of one unit"):
        paired_difference(score, score, label, np.zeros(len(score)))
    with pytest.raises(ValueError, match="1 row or more"):
        blocks(segment, 0)
    with pytest.raises(ValueError, match="vector"):
        blocks(segment[None], 5)
    assert blocks([], 5).tolist() == []
    for bad in ([0.5, 1.5], [np.nan], [-0.1]):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            holm(bad)
