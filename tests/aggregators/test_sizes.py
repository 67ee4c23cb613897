"""Every wrong size and number is refused, with what to do instead."""

import pytest

from fedjax_health import aggregators as agg
from fedjax_health.core.message import CompositionError, Message

MESSAGE = Message(num_params=10)


@pytest.mark.parametrize(
    ("build", "least"),
    [
        (lambda: agg.krum(3), 9),
        (lambda: agg.multi_krum(3), 9),
        (lambda: agg.trimmed_mean(3), 7),
        (lambda: agg.mean_around_median(3), 7),
        (lambda: agg.bulyan(3), 15),
        (lambda: agg.mda(3), 7),
        (lambda: agg.smea(3), 7),
        (lambda: agg.caf(3), 7),
        (lambda: agg.monna(3), 7),
        (lambda: agg.cge(3), 7),
        (lambda: agg.dnc(3), 7),
        (lambda: agg.pipeline(agg.nnm(3), agg.median()), 4),
        (lambda: agg.pipeline(agg.arc(3), agg.median()), 4),
        (lambda: agg.pipeline(agg.bucketing(3), agg.median()), 3),
        (lambda: agg.pipeline(agg.bucketing(2), agg.trimmed_mean(2)), 9),
        (lambda: agg.pipeline(agg.bucketing(3), agg.krum(1)), 13),
        (lambda: agg.multi_krum(1, keep=6), 6),
        (lambda: agg.krum(1, neighbors=6), 7),
        (lambda: agg.foolsgold(population=5), 1),
    ],
)
def test_a_cohort_that_is_too_small_is_refused(build, least):
    rule = build()
    assert rule.check(MESSAGE, least) == MESSAGE
    with pytest.raises(CompositionError, match=r"at most|smaller") as caught:
        rule.check(MESSAGE, least - 1 if least > 1 else 6)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("build", [agg.mda, agg.smea])
def test_too_many_subsets_are_refused(build):
    assert build(5).check(MESSAGE, 20)
    with pytest.raises(CompositionError, match="100,000"):
        build(6).check(MESSAGE, 30)


@pytest.mark.parametrize(
    "name",
    [n for n in agg.__all__ if "num_malicious" in getattr(agg, n).__doc__],
)
def test_a_number_of_malicious_clients_is_a_count(name):
    for wrong in (-1, 1.5, True, "2", None):
        with pytest.raises(ValueError, match="num_malicious"):
            getattr(agg, name)(wrong)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: agg.krum(1, neighbors=0), "neighbors"),
        (lambda: agg.multi_krum(1, keep=0), "keep"),
        (lambda: agg.geometric_median(steps=0), "steps"),
        (lambda: agg.geometric_median(smoothing=0.0), "smoothing"),
        (lambda: agg.geometric_median(smoothing=float("nan")), "smoothing"),
        (lambda: agg.centered_clip(radius=0.0), "radius"),
        (lambda: agg.centered_clip(radius=float("inf")), "radius"),
        (lambda: agg.centered_clip(steps=0), "steps"),
        (lambda: agg.monna(1, trusted=-1), "trusted"),
        (lambda: agg.robust_learning_rate(threshold=0), "threshold"),
        (lambda: agg.dnc(1, iterations=0), "iterations"),
        (lambda: agg.dnc(1, subdimension=0.0), "subdimension"),
        (lambda: agg.dnc(1, subdimension=1.5), "subdimension"),
        (lambda: agg.dnc(1, fraction=0.0), "fraction"),
        (lambda: agg.foolsgold(population=0), "population"),
        (lambda: agg.flame(noise=-0.1), "noise"),
        (lambda: agg.flame(noise=float("nan")), "noise"),
        (lambda: agg.signguard(low=0.0), "low"),
        (lambda: agg.signguard(high=1.0), "high"),
        (lambda: agg.bucketing(0), "size"),
        (lambda: agg.bucketing(1.5), "size"),
        (lambda: agg.clip_norms(0.0), "max_norm"),
        (lambda: agg.clip_norms(float("inf")), "max_norm"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(build, named):
    with pytest.raises(ValueError, match=named):
        build()


def test_a_pipeline_is_mixings_and_then_one_rule():
    with pytest.raises(ValueError, match="exactly one aggregator"):
        agg.pipeline(agg.nnm(1))
    with pytest.raises(ValueError, match="exactly one aggregator"):
        agg.pipeline()
    with pytest.raises(ValueError, match="takes mixings"):
        agg.pipeline(agg.median(), agg.median())
    assert agg.pipeline(agg.median()) is agg.median()
