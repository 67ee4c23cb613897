"""Every rule against its oracle, and what holds for particular ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import aggregators as agg
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import AggregationContext
from tests.aggregators import oracles

KEY = root_key(0)
TOLERANCE = 2e-5


def inputs(kind, n, d, seed=0):
    """Messages of each kind; the outlying ones are fewer than a quarter."""
    rng = np.random.default_rng([seed, n, d])
    x = rng.normal(size=(n, d))
    if kind == "heavy":
        x = rng.standard_t(2, size=(n, d))
    if kind == "outliers":
        x[: max(n // 5, 1)] = 30 + 10 * rng.normal(size=(max(n // 5, 1), d))
    if kind == "offset":
        x += 100 * rng.normal(size=d)
    return x.astype(np.float32)


def apply(rule, x, weights=None, context=None):
    x = jnp.asarray(x)
    weights = jnp.ones(len(x)) if weights is None else jnp.asarray(weights)
    made, _, metrics = rule.update(x, weights, rule.init(x[0]), KEY, context=context)
    return np.asarray(made), metrics


def assert_like(made, oracle, tolerance=TOLERANCE):
    """To ``tolerance`` of the largest number of the oracle."""
    scale = max(np.max(np.abs(oracle)), 1e-12)
    np.testing.assert_allclose(made / scale, oracle / scale, rtol=0, atol=tolerance)


def cases(n):
    """Name -> (rule, oracle) at this cohort, with as many malicious as it stands."""
    f, fewer, few = (n - 1) // 3, (n - 3) // 4, max(n // 7, 1)
    root = np.random.default_rng(5).normal(size=10_000)

    def rooted(x):
        return root[: x.shape[1]] + x.mean(0)

    found = {
        "mean": (agg.mean(), oracles.mean),
        "median": (agg.median(), oracles.median),
        "trimmed_mean": (agg.trimmed_mean(f), lambda x: oracles.trimmed_mean(x, f)),
        "mean_around_median": (
            agg.mean_around_median(f),
            lambda x: oracles.mean_around_median(x, f),
        ),
        "krum": (agg.krum(fewer), lambda x: oracles.krum(x, fewer)),
        "multi_krum": (agg.multi_krum(fewer), lambda x: oracles.multi_krum(x, fewer)),
        "bulyan": (agg.bulyan(fewer), lambda x: oracles.bulyan(x, fewer)),
        "caf": (agg.caf(few), lambda x: oracles.caf(x, few)),
        "geometric_median": (
            agg.geometric_median(steps=8, smoothing=0.1),
            lambda x: oracles.geometric_median(x, 8, 0.1),
        ),
        "centered_clip": (
            agg.centered_clip(radius=3.0, steps=5),
            lambda x: oracles.centered_clip(x, 3.0, 5),
        ),
        "monna": (agg.monna(f, trusted=n - 1), lambda x: oracles.monna(x, f, n - 1)),
        "cge": (agg.cge(f), lambda x: oracles.cge(x, f)),
        "sign_majority": (agg.sign_majority(), oracles.sign_majority),
        "robust_learning_rate": (
            agg.robust_learning_rate(threshold=3),
            lambda x: oracles.robust_learning_rate(x, 3),
        ),
        "dnc": (
            agg.dnc(few, iterations=2, subdimension=1.0),
            lambda x: oracles.dnc(x, few, 2),
        ),
        "fltrust": (agg.fltrust(), lambda x: oracles.fltrust(x, rooted(x))),
        "foolsgold": (agg.foolsgold(), oracles.foolsgold),
        "flame": (agg.flame(noise=0), oracles.flame),
    }
    if n <= 11:
        found["mda"] = (agg.mda(2), lambda x: oracles.mda(x, 2))
        found["smea"] = (agg.smea(2), lambda x: oracles.smea(x, 2))
    return found, rooted


SIZES = [(11, 64)]
MORE_SIZES = [(n, d) for n in (7, 11, 20, 50) for d in (5, 64, 1000)]
KINDS = ["gaussian", "heavy", "outliers"]


def check_rule(name, n, d, kinds, tolerance=TOLERANCE):
    found, rooted = cases(n)
    rule, oracle = found[name]
    for kind in kinds:
        x = inputs(kind, n, d)
        context = AggregationContext(
            jnp.arange(n),
            jnp.ones(n, bool),
            jnp.int32(0),
            jnp.asarray(rooted(x), jnp.float32),
        )
        made, metrics = apply(rule, x, context=context)
        assert_like(made, oracle(x.astype(np.float64)), tolerance)
        assert metrics.get("masked_rows", 0) == 0


def sized(sizes):
    """Every rule at every size that its oracle can go through."""
    return [(name, n, d) for n, d in sizes for name in cases(n)[0]]


@pytest.mark.parametrize(("name", "n", "d"), sized(SIZES))
def test_a_rule_is_its_oracle(name, n, d):
    check_rule(name, n, d, KINDS)


# Eight filtering steps with nearly equal top eigenvalues magnify float32's rounding.
ILL_CONDITIONED = {("caf", 50): 3e-4}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n", "d"), sized(MORE_SIZES))
def test_a_rule_is_its_oracle_at_every_size(name, n, d):
    check_rule(name, n, d, KINDS, ILL_CONDITIONED.get((name, n), TOLERANCE))


def mixings(n):
    f = (n - 1) // 3
    return {
        "nnm": (agg.nnm(f), lambda x: oracles.nnm(x, f)),
        "clip_norms": (agg.clip_norms(5.0), lambda x: oracles.clip_norms(x, 5.0)),
        "arc": (agg.arc(f), lambda x: oracles.arc(x, f)),
    }


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("name", mixings(7))
def test_a_mixing_is_its_oracle(name, n, d):
    mixing, oracle = mixings(n)[name]
    for kind in KINDS:
        x = inputs(kind, n, d)
        expected = oracle(x.astype(np.float64))
        assert_like(np.asarray(agg.mix(mixing, jnp.asarray(x), KEY)), expected)
        matrix = mixing.matrix(jnp.asarray(x @ x.T), KEY)
        assert_like(np.asarray(matrix) @ x, expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_bucketing_means_disjoint_buckets_and_keeps_the_short_one(size):
    x = np.eye(7, dtype=np.float32)
    made = np.asarray(agg.mix(agg.bucketing(size), jnp.asarray(x), KEY))
    assert made.shape == (-(-7 // size), 7)
    sizes = np.sum(made > 0, axis=1)
    assert sorted(sizes)[::-1][: 7 // size] == [size] * (7 // size)
    np.testing.assert_allclose(np.sum(made, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(np.sum(made > 0, axis=0), 1)
    other = np.asarray(agg.mix(agg.bucketing(size), jnp.asarray(x), root_key(3)))
    assert size in (1, 7) or not np.array_equal(made, other)


PIPELINES = {
    "nnm, trimmed mean": (
        lambda: agg.pipeline(agg.nnm(3), agg.trimmed_mean(3)),
        lambda x: oracles.trimmed_mean(oracles.nnm(x, 3), 3),
    ),
    "nnm, geometric median": (
        lambda: agg.pipeline(agg.nnm(3), agg.geometric_median(smoothing=0.1)),
        lambda x: oracles.geometric_median(oracles.nnm(x, 3), 8, 0.1),
    ),
    "clip, nnm, krum": (
        lambda: agg.pipeline(agg.clip_norms(3.0), agg.nnm(2), agg.krum(2)),
        lambda x: oracles.krum(oracles.nnm(oracles.clip_norms(x, 3.0), 2), 2),
    ),
    "arc, nnm, centred clipping": (
        lambda: agg.pipeline(
            agg.arc(3), agg.nnm(3), agg.centered_clip(radius=1.0, steps=3)
        ),
        lambda x: oracles.centered_clip(oracles.nnm(oracles.arc(x, 3), 3), 1.0, 3),
    ),
    "arc, median": (
        lambda: agg.pipeline(agg.arc(3), agg.median()),
        lambda x: oracles.median(oracles.arc(x, 3)),
    ),
    "nnm, bulyan": (
        lambda: agg.pipeline(agg.nnm(2), agg.bulyan(2)),
        lambda x: oracles.bulyan(oracles.nnm(x, 2), 2),
    ),
    "clip, bulyan": (
        lambda: agg.pipeline(agg.clip_norms(3.0), agg.bulyan(2)),
        lambda x: oracles.bulyan(oracles.clip_norms(x, 3.0), 2),
    ),
    "nnm, dnc": (
        lambda: agg.pipeline(agg.nnm(2), agg.dnc(2, subdimension=1.0)),
        lambda x: oracles.dnc(oracles.nnm(x, 2), 2, 5),
    ),
    "nnm, mean": (
        lambda: agg.pipeline(agg.nnm(2), agg.mean()),
        lambda x: oracles.mean(oracles.nnm(x, 2)),
    ),
    "clip, geometric median": (
        lambda: agg.pipeline(agg.clip_norms(3.0), agg.geometric_median(smoothing=0.1)),
        lambda x: oracles.geometric_median(oracles.clip_norms(x, 3.0), 8, 0.1),
    ),
    "clip, cge": (
        # The bound lies above all norms but those of outliers, which are dropped.
        lambda: agg.pipeline(agg.clip_norms(100.0), agg.cge(2)),
        lambda x: oracles.cge(oracles.clip_norms(x, 100.0), 2),
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_its_parts_one_after_the_other(name):
    build, oracle = PIPELINES[name]
    for kind in KINDS:
        x = inputs(kind, 11, 64)
        assert_like(apply(build(), x)[0], oracle(x.astype(np.float64)))


def test_bucketing_before_a_rule_is_the_rule_on_its_buckets():
    x = inputs("gaussian", 11, 64)
    mixing = agg.bucketing(3)
    # A pipeline folds the position of each mixing into its key.
    key = jax.random.fold_in(KEY, 0)
    buckets = np.asarray(agg.mix(mixing, jnp.asarray(x), KEY))
    # A mixing alone is the first of its own.
    for rule in (agg.median(), agg.geometric_median(smoothing=0.1)):
        made, _ = apply(agg.pipeline(mixing, rule), x)
        assert_like(made, apply(rule, buckets)[0])
    matrix = np.asarray(mixing.matrix(jnp.asarray(x @ x.T), key))
    np.testing.assert_allclose(matrix @ x, buckets, rtol=1e-4, atol=1e-5)
