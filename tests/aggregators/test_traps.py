"""Mistakes seen in published implementations, one test each, and the edges of rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import aggregators as agg
from fedjax_health.aggregators.flame import majority_cluster
from fedjax_health.aggregators.rows import smallest
from fedjax_health.aggregators.signguard import largest_cluster
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import AggregationContext
from tests.aggregators import oracles
from tests.aggregators.test_rules import KEY, apply, assert_like, inputs

# Rules that stand two malicious rows of eleven, whatever these hold.
ROBUST = {
    "median": lambda f: agg.median(),
    "trimmed_mean": agg.trimmed_mean,
    "mean_around_median": agg.mean_around_median,
    "krum": agg.krum,
    "multi_krum": agg.multi_krum,
    "bulyan": agg.bulyan,
    "mda": agg.mda,
    "smea": agg.smea,
    "caf": agg.caf,
    "geometric_median": lambda f: agg.geometric_median(),
    "centered_clip": lambda f: agg.centered_clip(radius=1.0, steps=3),
    "monna": lambda f: agg.monna(f, trusted=10),
    "cge": agg.cge,
    "dnc": agg.dnc,
    "flame": lambda f: agg.flame(noise=0),
    "signguard": lambda f: agg.signguard(),
    "nnm": lambda f: agg.pipeline(agg.nnm(f), agg.trimmed_mean(f)),
    "arc": lambda f: agg.pipeline(agg.arc(f), agg.nnm(f), agg.geometric_median()),
    "bucketing": lambda f: agg.pipeline(agg.bucketing(2), agg.median()),
    "sign_majority": lambda f: agg.sign_majority(),
}
# One of each kind by default: every rule of one kind goes the same way.
FAST = ("median", "trimmed_mean", "krum", "centered_clip", "monna", "nnm")


def robust_rules(*, without=()):
    names = [name for name in ROBUST if name not in without]
    return pytest.mark.parametrize(
        "name",
        [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in names],
    )


every_robust_rule = robust_rules()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@every_robust_rule
def test_a_row_that_is_not_finite_is_no_row_and_one_malicious_less(name, value):
    x = inputs("gaussian", 11, 64)
    x[[1, 4], 7] = value
    made, metrics = apply(ROBUST[name](2), x)
    assert np.all(np.isfinite(made))
    assert metrics["masked_rows"] == 2
    present = np.ones(11, bool)
    present[[1, 4]] = False
    # Two fewer rows, of which none is assumed malicious any more. The clients keep
    # their numbers, on which ties and buckets rest.
    ids = jnp.asarray(np.flatnonzero(present), jnp.int32)
    context = AggregationContext(ids, jnp.ones(9, bool), jnp.int32(0))
    alone, _ = apply(ROBUST[name](0), x[present], context=context)
    tolerance = 1e-4 if name == "dnc" else 2e-5
    if name != "bucketing":  # eleven places make six buckets, nine make five
        assert_like(made, alone, tolerance)


@every_robust_rule
def test_absent_rows_are_no_rows_and_no_malicious_ones(name):
    x = inputs("gaussian", 14, 33)
    weights = np.ones(14, np.float32)
    weights[[0, 5, 6]] = 0
    mask = weights > 0
    ids = jnp.arange(14, dtype=jnp.int32)
    context = AggregationContext(ids, jnp.asarray(mask), jnp.int32(0))
    made, metrics = apply(ROBUST[name](2), x, weights, context)
    assert metrics["masked_rows"] == 0
    own = AggregationContext(ids[mask], jnp.ones(11, bool), jnp.int32(0))
    alone, _ = apply(ROBUST[name](2), x[mask], context=own)
    if name not in ("bucketing", "dnc"):
        assert_like(made, alone)
    assert np.all(np.isfinite(made))


def test_a_message_that_the_engine_masked_counts_towards_the_malicious():
    x = inputs("gaussian", 9, 16)
    weights = np.ones(9, np.float32)
    weights[3] = 0
    ids = jnp.arange(9)
    sent = AggregationContext(ids, jnp.ones(9, bool), jnp.int32(0))
    unsent = sent._replace(mask=jnp.asarray(weights > 0))
    rest = np.delete(x, 3, axis=0).astype(np.float64)
    made, metrics = apply(agg.trimmed_mean(2), x, weights, sent)
    assert metrics["masked_rows"] == 1
    assert_like(made, oracles.trimmed_mean(rest, 1))
    made, metrics = apply(agg.trimmed_mean(2), x, weights, unsent)
    assert metrics["masked_rows"] == 0
    assert_like(made, oracles.trimmed_mean(rest, 2))


DROPPING = ("krum", "multi_krum", "mda", "smea", "monna", "cge", "nnm", "signguard")


# DnC may keep a row that lies across the direction of another one.
@robust_rules(without=("dnc",))
def test_huge_malicious_rows_do_not_spoil_the_precision_of_honest_ones(name):
    """As a centre at the mean would let them."""
    x = inputs("gaussian", 11, 64)
    loud, louder = x.copy(), x.copy()
    rng = np.random.default_rng(1)
    direction = rng.normal(size=(2, 64))
    loud[:2], louder[:2] = 1e3 * direction, 1e9 * direction
    a, _ = apply(ROBUST[name](2), loud)
    b, _ = apply(ROBUST[name](2), louder)
    if name in DROPPING:
        assert_like(a, b)
    # The others take a part of the rows, and bound it.
    assert np.max(np.abs(b)) < 10


@pytest.mark.parametrize("offset", [100, 1000])
@pytest.mark.parametrize(
    "name", ["krum", "multi_krum", "geometric_median", "nnm", "monna", "smea", "caf"]
)
def test_rows_far_from_the_origin_keep_their_distances(name, offset):
    """A raw Gram matrix in float32 loses 40 % of them at 1000 times the spread."""
    f = 2
    x = inputs("gaussian", 11, 64)
    far = (x + offset * np.random.default_rng(2).normal(size=64)).astype(np.float32)
    center = np.mean(far.astype(np.float64), axis=0)
    rules = {
        "krum": oracles.krum,
        "multi_krum": oracles.multi_krum,
        "geometric_median": lambda x, f: oracles.geometric_median(x, 8, 1e-6),
        "nnm": lambda x, f: oracles.trimmed_mean(oracles.nnm(x, f), f),
        "monna": lambda x, f: oracles.monna(x, f, 10),
        "smea": oracles.smea,
        "caf": oracles.caf,
    }
    made, _ = apply(ROBUST[name](f), far)
    expected = rules[name](far.astype(np.float64), f)
    # What can be told apart at all is a rounding of the offset.
    np.testing.assert_allclose(
        made - center, expected - center, rtol=0, atol=offset * 3e-6
    )


def test_a_stack_is_not_changed():
    x = jnp.asarray(inputs("outliers", 9, 17))
    before = np.asarray(x).copy()
    for mixing in (agg.clip_norms(1.0), agg.arc(2), agg.nnm(2), agg.bucketing(2)):
        agg.mix(mixing, x, KEY)
        np.testing.assert_array_equal(np.asarray(x), before)


def test_the_centre_lives_in_the_state_alone():
    rule = agg.centered_clip(radius=1.0, steps=2)
    x = jnp.asarray(inputs("gaussian", 7, 12))
    ones = jnp.ones(7)
    fresh = rule.init(x[0])
    first, state, _ = rule.update(x, ones, fresh, KEY)
    again, _, _ = rule.update(x, ones, fresh, KEY)
    np.testing.assert_array_equal(first, again)
    second, _, _ = rule.update(x, ones, state, KEY)
    rows = np.asarray(x, np.float64)
    center = oracles.centered_clip(rows, 1.0, 2)
    assert_like(np.asarray(first), center)
    assert_like(np.asarray(second), oracles.centered_clip(rows, 1.0, 2, center))


def test_centred_clipping_is_the_same_by_rows_and_by_inner_products():
    x = jnp.asarray(inputs("heavy", 9, 33))
    few, more = agg.centered_clip(radius=3.0, steps=2), agg.centered_clip(radius=3.0)
    state = {**few.init(x[0]), "center": x[3]}
    direct, _, _ = few.update(x, jnp.ones(9), state, KEY)
    # A pipeline of a mixing that does nothing goes by inner products.
    same = agg.pipeline(agg.clip_norms(1e9), few)
    numbers, _ = same.init(x[0])
    composed, (_, after), _ = same.update(x, jnp.ones(9), (numbers, state), KEY)
    assert_like(np.asarray(composed), np.asarray(direct))
    np.testing.assert_allclose(after["center"], direct, rtol=1e-4, atol=1e-4)
    assert more.update is not few.update


def test_nothing_is_drawn_but_from_the_key():
    x = inputs("gaussian", 9, 17)
    for rule in (agg.caf(2), agg.smea(2), agg.dnc(2), agg.flame(noise=0.1)):
        np.testing.assert_array_equal(apply(rule, x)[0], apply(rule, x)[0])


def test_bulyan_picks_from_the_whole_cohort():
    """Indices into the shrunken array would bring an outlier back."""
    for seed in range(5):
        x = inputs("gaussian", 11, 20, seed)
        x[0] += 1e4
        x[1] -= 1e4
        made, metrics = apply(agg.bulyan(2), x)
        assert np.sum(metrics["kept"]) == 7
        assert_like(made, oracles.bulyan(x.astype(np.float64), 2))
        assert np.max(np.abs(made)) < 4


def test_krum_sums_squared_distances():
    """Squaring them once more, or not at all, picks another row here."""
    rng = np.random.default_rng(0)
    differing = 0
    for _ in range(20):
        x = rng.standard_t(2, size=(9, 3)).astype(np.float32)
        squared = oracles.squared_distances(x.astype(np.float64))
        chosen = []
        for power in (0.5, 1, 2):
            others = np.sort(squared**power, axis=1)[:, 1:7]
            chosen.append(int(np.argmin(np.sum(others, axis=1))))
        made, _ = apply(agg.krum(1), x)
        np.testing.assert_array_equal(made, x[chosen[1]])
        differing += len(set(chosen)) > 1
    assert differing > 0


def test_the_median_of_an_even_number_averages_the_middle_two():
    x = np.array([[1.0], [2.0], [4.0], [9.0]], np.float32)
    np.testing.assert_array_equal(apply(agg.median(), x)[0], [3.0])


def test_krum_sums_over_as_many_neighbours_as_are_asked_for():
    x = inputs("heavy", 12, 3, seed=4)
    for neighbors in (None, 1, 5, 11):
        expected = oracles.krum_scores(
            x.astype(np.float64), 12 - 2 - 2 if neighbors is None else neighbors
        )
        made, metrics = apply(agg.krum(2, neighbors=neighbors), x)
        np.testing.assert_array_equal(made, x[np.argmin(expected)])
        assert np.sum(metrics["kept"]) == 1


def test_multi_krum_keeps_as_many_as_are_asked_for():
    x = inputs("gaussian", 12, 8)
    for keep in (1, 4, 12):
        made, metrics = apply(agg.multi_krum(2, keep=keep), x)
        assert_like(made, oracles.multi_krum(x.astype(np.float64), 2, keep=keep))
        assert np.sum(metrics["kept"]) == keep


def test_weights_count_where_a_rule_says_so():
    x = inputs("gaussian", 9, 12)
    rows = x.astype(np.float64)
    weights = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9], np.float32)
    made, _ = apply(agg.geometric_median(steps=6, smoothing=0.1), x, weights)
    assert_like(made, oracles.geometric_median(rows, 6, 0.1, weights))
    for steps in (2, 4):
        made, _ = apply(agg.centered_clip(radius=2.0, steps=steps), x, weights)
        expected = oracles.centered_clip(rows, 2.0, steps, weights=weights)
        assert_like(made, expected)
    made, _ = apply(agg.robust_learning_rate(threshold=3), x, weights)
    agree = np.abs(np.sum(np.sign(rows), axis=0)) >= 3
    assert_like(made, np.where(agree, 1, -1) * (weights @ rows) / weights.sum())
    for name in ("median", "trimmed_mean", "krum", "monna", "smea", "nnm"):
        plain, _ = apply(ROBUST[name](1), x)
        weighted, _ = apply(ROBUST[name](1), x, weights)
        np.testing.assert_array_equal(plain, weighted)


def test_ties_for_the_last_place_share_it():
    values = jnp.array([3.0, 1.0, 3.0, 2.0, 3.0, jnp.inf])
    np.testing.assert_allclose(
        smallest(values, 4), [2 / 3, 1, 2 / 3, 1, 2 / 3, 0], rtol=1e-6
    )
    np.testing.assert_array_equal(smallest(values, 9), [1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(smallest(values, 0), 0)


def test_identical_malicious_rows_are_no_majority():
    x = inputs("gaussian", 11, 30)
    x[:3] = 50.0
    for name in ("krum", "multi_krum", "smea", "cge"):
        made, metrics = apply(ROBUST[name](3), x)
        assert not np.any(metrics["kept"][:3])
        assert np.max(np.abs(made)) < 5


def test_a_round_without_the_trusted_client_makes_no_step():
    x = inputs("gaussian", 9, 12)
    rule = agg.monna(2, trusted=20)
    made, metrics = apply(rule, x)
    np.testing.assert_array_equal(made, 0)
    assert not metrics["trusted_present"]
    context = AggregationContext(
        jnp.array([5, 20, 3, 8, 9, 1, 2, 4, 6]), jnp.ones(9, bool), jnp.int32(0)
    )
    made, metrics = apply(rule, x, context=context)
    assert_like(made, oracles.monna(x.astype(np.float64), 2, 1))
    assert metrics["trusted_present"]
    broken = x.copy()
    broken[1, 3] = np.nan
    made, metrics = apply(rule, broken, context=context)
    np.testing.assert_array_equal(made, 0)
    assert metrics["masked_rows"] == 1


def test_foolsgold_judges_clients_by_all_they_ever_sent():
    rule = agg.foolsgold(population=6)
    rng = np.random.default_rng(0)
    ids = np.array([4, 1, 0])
    total = np.zeros((6, 10))
    state = rule.init(jnp.zeros(10))
    for _ in range(3):
        x = rng.normal(size=(3, 10)).astype(np.float32)
        x[1] = x[0] + 0.01 * x[1]
        context = AggregationContext(jnp.asarray(ids), jnp.ones(3, bool), jnp.int32(0))
        made, state, _ = rule.update(
            jnp.asarray(x), jnp.ones(3), state, KEY, context=context
        )
        total[ids] += x
        assert_like(
            np.asarray(made),
            oracles.foolsgold(x.astype(np.float64), total[ids]),
            tolerance=2e-3,
        )
        np.testing.assert_allclose(state, total, rtol=1e-5, atol=1e-5)


def test_fltrust_without_root_updates_says_what_it_needs():
    rule = agg.fltrust()
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"context\.root_updates"):
        rule.update(x, jnp.ones(3), rule.init(x[0]), KEY)


def test_fltrust_believes_nobody_who_points_the_other_way():
    x = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], np.float32)
    ids = jnp.arange(3)
    context = AggregationContext(
        ids, jnp.ones(3, bool), jnp.int32(0), jnp.array([2.0, 0.0])
    )
    made, metrics = apply(agg.fltrust(), x, context=context)
    np.testing.assert_allclose(made, [2.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(metrics["kept"], [True, False, False])
    away = context._replace(root_updates=jnp.array([0.0, -1.0]))
    np.testing.assert_array_equal(apply(agg.fltrust(), x, context=away)[0], 0)


def test_flame_adds_the_noise_it_says():
    x = inputs("gaussian", 9, 2000)
    silent, metrics = apply(agg.flame(noise=0), x)
    noised, _ = apply(agg.flame(noise=0.01), x)
    std = np.std(noised - silent)
    np.testing.assert_allclose(std, 0.01 * metrics["clip_norm"], rtol=0.1)


def test_the_cluster_of_a_majority_is_what_single_linkage_finds():
    rng = np.random.default_rng(0)
    for n in (3, 8, 13):
        points = np.concatenate(
            [rng.normal(size=(n - n // 3, 2)), 5 + np.zeros((n // 3, 2))]
        )
        points += 0.1 * rng.normal(size=points.shape)
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
        found = majority_cluster(jnp.asarray(distances, jnp.float32), jnp.ones(n, bool))
        expected = oracles.majority_cluster(distances)
        np.testing.assert_array_equal(np.flatnonzero(found), expected)


def test_signguard_drops_rows_of_other_signs_and_of_other_sizes():
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(12, 200))).astype(np.float32)
    x[:, :60] *= -1
    x[0] *= -1
    x[1] *= -1
    x[2] *= 50
    x[3] *= 0.01
    made, metrics = apply(agg.signguard(), x)
    np.testing.assert_array_equal(metrics["kept"], np.arange(12) >= 4)
    expected = oracles.signguard(x.astype(np.float64), 0.1, 3.0, range(4, 12))
    assert_like(made, expected)


def test_mean_shift_finds_the_clusters_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(0)
    for seed in range(4):
        sizes = (9, 4)
        points = np.concatenate(
            [
                center + 0.02 * rng.normal(size=(n, 3))
                for center, n in zip((0.3, 0.9), sizes, strict=True)
            ]
        )
        width = cluster.estimate_bandwidth(points, quantile=0.5)
        labels = (
            cluster.MeanShift(bandwidth=width, cluster_all=False).fit(points).labels_
        )
        expected = labels == np.bincount(labels[labels >= 0]).argmax()
        found = largest_cluster(jnp.asarray(points, jnp.float32), jnp.ones(13, bool))
        np.testing.assert_array_equal(found, expected, err_msg=f"seed {seed}")


def test_dnc_draws_its_coordinates_from_the_key():
    x = inputs("gaussian", 11, 50)
    rule = agg.dnc(3, iterations=1, subdimension=0.3)
    state, ones = rule.init(x[0]), jnp.ones(11)
    kept = [
        np.asarray(rule.update(jnp.asarray(x), ones, state, root_key(k))[2]["kept"])
        for k in range(4)
    ]
    assert all(np.sum(k) == 8 for k in kept)
    assert any(not np.array_equal(kept[0], k) for k in kept[1:])


@pytest.mark.parametrize("size", [5, 8192, 8192 * 3, 20_000])
def test_columns_beyond_a_block_are_like_those_in_one(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, size)).astype(np.float32)
    rows = x.astype(np.float64)
    assert_like(apply(agg.median(), x)[0], oracles.median(rows))
    assert_like(
        apply(agg.geometric_median(smoothing=0.1), x)[0],
        oracles.geometric_median(rows, 8, 0.1),
    )
    assert_like(
        np.asarray(agg.mix(agg.nnm(1), jnp.asarray(x), KEY)), oracles.nnm(rows, 1)
    )


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "mean_around_median"])
def test_cohorts_beyond_the_networks_are_sorted(name):
    n = 129
    x = inputs("heavy", n, 7)
    oracle = {"median": lambda x, f: oracles.median(x)}.get(name) or getattr(
        oracles, name
    )
    made, _ = apply(ROBUST[name](40), x)
    assert_like(made, oracle(x.astype(np.float64), 40))


def trees_of(x):
    return {"kernel": x[:, :12].reshape(-1, 3, 4), "rest": [x[:, 12:17], x[:, 17]]}


# DnC draws coordinates for each leaf.
@robust_rules(without=("dnc",))
def test_a_tree_is_aggregated_as_its_leaves_in_a_row(name):
    x = inputs("gaussian", 11, 18)
    rule = ROBUST[name](2)
    flat, _ = apply(rule, x)
    tree = trees_of(jnp.asarray(x))
    start = rule.init(jax.tree.map(lambda leaf: leaf[0], tree))
    made, _, _ = rule.update(tree, jnp.ones(11), start, KEY)
    joined = jax.tree.map(lambda leaf: leaf[0], trees_of(jnp.asarray(flat)[None]))
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(joined), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["median", "krum", "nnm", "centered_clip"])
def test_rules_may_be_mapped_over_runs(name):
    rule = ROBUST[name](2)
    stacks = jnp.stack([jnp.asarray(inputs("gaussian", 9, 16, s)) for s in range(3)])
    stacks = stacks.at[1, 4, 2].set(jnp.nan)

    def one(x):
        return rule.update(x, jnp.ones(9), rule.init(x[0]), KEY)[0]

    together = jax.vmap(one)(stacks)
    for i in range(3):
        np.testing.assert_allclose(together[i], one(stacks[i]), rtol=1e-4, atol=1e-5)


def test_numbers_are_leaves_and_share_a_program():
    pairs = [
        (agg.krum(1), agg.krum(3, neighbors=2)),
        (agg.multi_krum(1), agg.multi_krum(2, keep=3)),
        (agg.geometric_median(steps=3), agg.geometric_median(smoothing=0.1)),
        (agg.centered_clip(radius=1.0), agg.centered_clip(radius=2.0)),
        (agg.monna(1), agg.monna(2, trusted=4)),
        (agg.cge(1), agg.cge(2)),
        (agg.caf(1), agg.caf(2)),
        (agg.dnc(1), agg.dnc(2, subdimension=0.5)),
        (agg.flame(), agg.flame(noise=1.0)),
        (agg.signguard(), agg.signguard(high=2.0)),
        (agg.robust_learning_rate(), agg.robust_learning_rate(threshold=2)),
        (
            agg.pipeline(agg.nnm(1), agg.clip_norms(1.0), agg.geometric_median()),
            agg.pipeline(agg.nnm(2), agg.clip_norms(2.0), agg.geometric_median()),
        ),
        (
            agg.pipeline(agg.arc(1), agg.nnm(1), agg.trimmed_mean(2)),
            agg.pipeline(agg.arc(2), agg.nnm(2), agg.trimmed_mean(2)),
        ),
    ]
    for a, b in pairs:
        assert a.update is b.update
        state = jnp.zeros(4)
        shapes = [jax.tree.map(jnp.shape, rule.init(state)) for rule in (a, b)]
        assert shapes[0] == shapes[1]
