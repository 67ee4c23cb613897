"""The aggregators: what every aggregator promises, and that all fidelities agree."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import aggregators, secagg
from fedjax_health.core.message import CompositionError, CompositionWarning, Message
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import AggregationContext
from fedjax_health.secagg import gathering, grouped_secure, secure_mean, server_view
from fedjax_health.secagg.fixed_point import levels
from fedjax_health.secagg.view import sum_groups, view_sums

ROWS = 9
FIDELITIES = ("ideal", "view", "protocol")
REACH = 6.0

every_fidelity = pytest.mark.parametrize("fidelity", FIDELITIES)


def stacked():
    rng = np.random.default_rng(0)

    def rows(*shape):
        return jnp.asarray(rng.normal(size=(ROWS, *shape)), jnp.float32)

    return {"kernel": rows(3, 4), "rest": [rows(5), rows()]}


def some_weights():
    return jnp.array([1, 0.5, 0, 1, 0.2, 1, 0, 1, 0.7], jnp.float32)


def context(ids=None, mask=None):
    return AggregationContext(
        client_ids=jnp.arange(ROWS, dtype=jnp.int32) if ids is None else ids,
        mask=some_weights() > 0 if mask is None else mask,
        round=jnp.int32(0),
    )


def build(kind, fidelity="ideal", **settings):
    settings = {"value_range": REACH, "fidelity": fidelity, **settings}
    if kind == "mean":
        return secure_mean(**settings)
    return grouped_secure(3, aggregators.median(), **{"population": ROWS, **settings})


def apply(rule, x, weights, seed=0, **known):
    state = rule.init(jax.tree.map(lambda a: a[0], x))
    return jax.jit(rule.update)(x, weights, state, root_key(seed), **known)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def mean_oracle(x, weights):
    weights = np.asarray(weights, np.float64)

    def one(leaf):
        rows = np.asarray(leaf, np.float64)
        return np.tensordot(weights, rows, 1) / weights.sum()

    return jax.tree.map(one, x)


@every_fidelity
@pytest.mark.parametrize("kind", ["mean", "groups"])
def test_absent_rows_reach_nothing_and_the_structure_is_kept(kind, fidelity):
    x, weights = stacked(), some_weights()
    absent = np.asarray(weights) == 0
    rule = build(kind, fidelity)
    clean, state, metrics = apply(rule, x, weights)
    first = jax.tree.map(lambda a: a[0], x)
    assert jax.tree.structure(clean) == jax.tree.structure(first)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(first), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    loud = jax.tree.map(
        lambda a: jnp.where(absent.reshape(-1, *[1] * (a.ndim - 1)), jnp.nan, a), x
    )
    again, after, same = apply(rule, loud, weights)
    assert_equal(clean, again)
    assert_equal(state, after)
    assert_equal(metrics, same)


@pytest.mark.parametrize("kind", ["mean", "groups"])
def test_the_order_of_the_rows_does_not_matter(kind):
    x, weights = stacked(), some_weights()
    order = jnp.array([4, 0, 8, 2, 7, 1, 3, 6, 5])
    ids = jnp.arange(10, 10 + ROWS, dtype=jnp.int32)
    rule = build(kind, **({} if kind == "mean" else {"population": None}))
    one = apply(rule, x, weights, context=context(ids))[0]
    moved = jax.tree.map(lambda a: a[order], x)
    other = apply(
        rule, moved, weights[order], context=context(ids[order], weights[order] > 0)
    )[0]
    # The sums are the same to the bit, the sums of the weights they are divided by not.
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "groups"])
def test_the_fidelities_agree_to_the_bit(kind):
    x, weights = stacked(), some_weights()
    ideal, view, protocol = (
        apply(build(kind, fidelity), x, weights)[:2] for fidelity in FIDELITIES
    )
    assert_equal(ideal, view)
    assert_equal(ideal, protocol)


@every_fidelity
def test_it_is_the_weighted_mean_but_for_the_rounding(fidelity):
    x, weights = stacked(), some_weights()
    made, _, metrics = apply(build("mean", fidelity), x, weights)
    step = REACH / levels(20)
    limit = 0.5 * ROWS * step / float(weights.sum()) + 1e-6
    for a, b in zip(
        jax.tree.leaves(made), jax.tree.leaves(mean_oracle(x, weights)), strict=True
    ):
        assert np.abs(np.asarray(a) - b).max() <= limit
    assert metrics["saturated"] == 0


def test_heavy_clients_count_as_the_largest_weight():
    x = jnp.array([[1.0], [4.0], [-1.0]])
    rule = secure_mean(value_range=4.0, max_weight=2.0, bits=24)
    made, _, metrics = apply(rule, x, jnp.array([50.0, 2.0, 1.0]))
    np.testing.assert_allclose(made, [(2 * 1 + 2 * 4 - 1) / 5], rtol=1e-5)
    np.testing.assert_allclose(metrics["saturated"], 1 / 3)


def test_a_coordinate_beyond_the_range_is_cut_and_told():
    x = jnp.array([[9.0, 0.0], [0.0, 0.0]])
    made, _, metrics = apply(secure_mean(value_range=1.0), x, jnp.ones(2))
    np.testing.assert_allclose(made, [0.5, 0.0])
    assert metrics["saturated"] == 0.25


@every_fidelity
def test_fewer_messages_than_the_threshold_give_nothing(fidelity):
    x, weights = stacked(), some_weights()
    enough = build("mean", fidelity, threshold=7)
    assert np.abs(apply(enough, x, weights)[0]["kernel"]).max() > 0
    made = apply(build("mean", fidelity, threshold=8), x, weights)[0]
    assert_equal(made, jax.tree.map(lambda a: jnp.zeros(a.shape[1:]), x))


@pytest.mark.parametrize("kind", ["mean", "groups"])
def test_nobody_gives_nothing(kind):
    x = stacked()
    made = apply(build(kind), x, jnp.zeros(ROWS))[0]
    assert_equal(made, jax.tree.map(lambda a: jnp.zeros(a.shape[1:]), x))


def test_half_precision_is_kept():
    x = stacked()["kernel"].astype(jnp.bfloat16)
    made = apply(build("mean"), x, some_weights())[0]
    assert made.dtype == jnp.bfloat16


def test_without_a_range_the_update_alone_says_what_it_needs():
    rule = secure_mean()
    x = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="value_range"):
        rule.update(x, jnp.ones(2), rule.init(x[0]), root_key(0))


# What the server sees.


def test_a_view_sums_to_the_truth_and_shows_nothing_else():
    n, size = 6, 4_000
    rng = np.random.default_rng(0)
    x = rng.integers(-(2**31), 2**31, (n, size), dtype=np.int64).astype(np.int32)
    present = jnp.array([True, True, False, True, True, False])
    seen = np.asarray(server_view(x, present, None, root_key(1)))
    assert not seen[[2, 5]].any()
    total = x[np.asarray(present)].astype(np.int64).sum(0).astype(np.int32)
    np.testing.assert_array_equal(seen.astype(np.int64).sum(0).astype(np.int32), total)
    assert_equal(view_sums(x, present, None, 1, root_key(1)), total[None])
    zero = np.asarray(server_view(0 * x, present, None, root_key(1)))
    # The rows before the last are drawn without a look at the messages.
    np.testing.assert_array_equal(seen[:4], zero[:4])
    for row in seen[[0, 1, 3, 4]]:
        counts = np.bincount(row.astype(np.uint32) >> 28, minlength=16)
        assert np.sum((counts - size / 16) ** 2 / (size / 16)) < 15 + 6 * 30**0.5


def test_a_view_drawn_by_each_client_sums_to_the_truth():
    """Each row is uniform whatever the message, and the last one closes the sum."""
    n, size = 5, 4_000
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (n, size)), jnp.float32)
    rule = build("mean", "view")
    assert rule.secure.gather is None
    plain, codec = rule.secure.codec, rule.secure.mask(rule.secure.codec)
    assert codec is rule.secure.mask(plain)
    state = rule.init(x[0])
    keys = jax.vmap(lambda i: jax.random.fold_in(root_key(0), i))(jnp.arange(n))

    def encode(codec, x):
        return jax.jit(
            jax.vmap(lambda x, k: codec.encode(x, jnp.float32(1), state, k, None))
        )(x, keys)[0]

    rows, lacking = encode(codec, x)
    blind, _ = encode(codec, 0 * x)
    np.testing.assert_array_equal(rows, blind)
    total = codec.collect((rows.sum(0), lacking.sum(0)))
    np.testing.assert_array_equal(total, encode(plain, x).sum(0))
    seen = np.asarray(rows.at[-1].add(lacking.sum(0)))
    np.testing.assert_array_equal(seen.sum(0, dtype=np.int32), total)
    for row in seen:
        counts = np.bincount(row.astype(np.uint32) >> 28, minlength=16)
        assert np.sum((counts - size / 16) ** 2 / (size / 16)) < 15 + 6 * 30**0.5


def test_a_view_of_groups_sums_in_each():
    rng = np.random.default_rng(1)
    x = rng.integers(-100, 100, (8, 3)).astype(np.int32)
    groups = jnp.array([0, 1, 0, 1, 2, 2, 0, 1])
    present = jnp.array([True, True, True, False, False, True, True, True])
    seen = server_view(x, present, groups, root_key(2))
    made = sum_groups(seen, present, groups, 3)
    for g in range(3):
        members = np.asarray(present) & (np.asarray(groups) == g)
        np.testing.assert_array_equal(made[g], x[members].sum(0))
    assert_equal(view_sums(x, present, groups, 3, root_key(2)), made)
    # A group of one is what it sent: that is why there is a smallest group.
    np.testing.assert_array_equal(seen[5], x[5])


def test_the_protocol_on_the_host_gives_the_same_as_called_back():
    x, weights = stacked(), some_weights()
    for kind in ("mean", "groups"):
        rule = build(kind, "protocol")
        grouping = gathering.Grouping(3, ROWS) if kind == "groups" else None
        graph = gathering.Graph(None, 0.1, 0.1)
        ideal = gathering.build_gather("view", 20, grouping, graph)[0]
        state = rule.init(jax.tree.map(lambda a: a[0], x))
        integers, _ = jax.jit(
            lambda x, w, s=state, c=rule.secure.codec: gathering.encode_rows(
                c, x, w, s, root_key(0), ranged=True
            )
        )(x, weights)
        words = np.asarray(jax.random.key_data(root_key(0)))
        host = rule.secure.gather(
            jax.tree.map(np.asarray, integers),
            np.asarray(weights),
            state,
            words,
            context(),
        )
        assert rule.secure.on_host
        inside = jax.jit(ideal)(integers, weights, state, root_key(0), context())
        assert_equal(host.sums, inside.sums)
        np.testing.assert_allclose(host.weights, inside.weights, rtol=1e-6)
        assert_equal(host.released, inside.released)
        assert set(host.metrics) >= set(gathering.METRICS)


def test_the_protocol_counts_a_round():
    x, weights = stacked(), some_weights()
    metrics = apply(build("mean", "protocol"), x, weights)[2]
    assert metrics["secagg_messages_share_keys"] == ROWS
    assert metrics["secagg_messages_masked_input"] == 7
    # 20 bits and 9 messages need 24 bits, for 18 numbers.
    assert metrics["secagg_bytes_up_masked_input"] == 7 * 18 * 3


def test_an_empty_slot_is_no_client():
    x = stacked()
    weights = jnp.array([1, 1, 1, 1, 1, 0, 0, 0, 0], jnp.float32)
    ids = jnp.array([4, 7, 1, 0, 9, -1, -1, -1, -1], jnp.int32)
    metrics = apply(
        build("mean", "protocol"), x, weights, context=context(ids, weights > 0)
    )[2]
    assert metrics["secagg_messages_share_keys"] == 5


def test_integers_beyond_the_bits_take_the_whole_word():
    rows = np.full((3, 8), 2**30, np.int32)
    sums, released, said = gathering._run(
        rows,
        np.ones(3, bool),
        np.arange(3),
        np.zeros(3, int),
        np.arange(2, dtype=np.uint32),
        np.asarray(1),
        count=1,
        bits=8,
        graph=gathering.Graph(None, 0.1, 0.1),
    )
    assert released[0]
    np.testing.assert_array_equal(sums[0], (3 * 2**30) - 2**32)
    at = gathering.METRICS.index("secagg_bytes_up_masked_input")
    assert said[at] == 3 * 8 * 4


# Groups.


def test_a_group_follows_from_the_round_and_the_client_alone():
    ids = jnp.arange(200, dtype=jnp.int32)
    for population in (None, 500):
        group_of = jax.jit(
            lambda key, ids, n=population: gathering.group_of(key, ids, 7, n)
        )
        whole = np.asarray(group_of(root_key(3), ids))
        some = np.array([150, 3, 77, 20])
        alone = group_of(root_key(3), jnp.asarray(some))
        np.testing.assert_array_equal(alone, whole[some])
        later = np.asarray(group_of(root_key(4), ids))
        assert np.mean(later == whole) < 0.3
        assert set(whole) == set(range(7))


@pytest.mark.parametrize(("population", "count"), [(100, 10), (101, 7), (20, 20)])
def test_a_population_is_dealt_out_evenly(population, count):
    ids = jnp.arange(population, dtype=jnp.int32)
    groups = gathering.group_of(root_key(0), ids, count, population)
    sizes = np.bincount(groups, minlength=count)
    assert sizes.max() - sizes.min() <= 1


def test_a_rule_over_groups_by_hand():
    x, weights = stacked()["kernel"], some_weights()
    for rule in (aggregators.median(), aggregators.trimmed_mean(1)):
        made, _, metrics = apply(
            grouped_secure(3, rule, value_range=REACH, population=ROWS, bits=24),
            x,
            weights,
        )
        key = jax.random.fold_in(root_key(0), 0)
        groups = np.asarray(gathering.group_of(key, jnp.arange(ROWS), 3, ROWS))
        w = np.asarray(weights, np.float64)
        means, counts = [], []
        for g in range(3):
            here = (groups == g) & (w > 0)
            counts.append(here.sum())
            means.append(np.tensordot(w[here], x[here], 1) / w[here].sum())
        assert min(counts) >= 2
        assert metrics["groups_released"] == 3
        np.testing.assert_allclose(made, np.median(means, axis=0), atol=1e-5)


@every_fidelity
def test_a_group_too_small_is_left_out(fidelity):
    ids = jnp.arange(ROWS, dtype=jnp.int32)
    key = jax.random.fold_in(root_key(0), 0)
    groups = np.asarray(gathering.group_of(key, ids, 3, ROWS))
    # One member of group 0 alone is there, with a message that would show.
    members = np.flatnonzero(groups == 0)
    weights = np.ones(ROWS, np.float32)
    weights[members[1:]] = 0
    x = np.ones((ROWS, 2), np.float32)
    x[members] = 5
    rule = grouped_secure(
        3, aggregators.mean(), value_range=REACH, population=ROWS, fidelity=fidelity
    )
    made, _, metrics = apply(rule, jnp.asarray(x), jnp.asarray(weights))
    assert metrics["groups_released"] == 2
    np.testing.assert_allclose(made, 1.0, atol=1e-4)


def test_the_rule_keeps_its_own_state_and_says_nothing_of_clients():
    rule = grouped_secure(
        3, aggregators.centered_clip(radius=0.1), value_range=REACH, population=ROWS
    )
    x = stacked()["kernel"]
    _, state, _ = apply(rule, x, jnp.ones(ROWS))
    before = rule.init(x[0])
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(state.rule), jax.tree.leaves(before.rule), strict=True
        )
    ]
    assert any(changed)
    krum = grouped_secure(3, aggregators.krum(0), value_range=REACH, population=ROWS)
    assert "kept" not in apply(krum, x, jnp.ones(ROWS))[2]


def test_trust_of_the_server_reaches_the_rule():
    x = stacked()["kernel"]
    rule = grouped_secure(3, aggregators.fltrust(), value_range=REACH, population=ROWS)
    known = context()._replace(root_updates=jnp.ones((3, 4)))
    made = apply(rule, x, jnp.ones(ROWS), context=known)[0]
    assert np.all(np.isfinite(made))


@pytest.mark.parametrize(
    ("share", "largest"), [(0.05, 13), (0.1, 6), (0.2, 3), (0.5, 0), (0, None)]
)
def test_the_largest_group_that_is_clean_more_often_than_not(share, largest):
    assert secagg.largest_group(share) == largest
    if largest:
        assert (1 - share) ** largest > 0.5 >= (1 - share) ** (largest + 1)


# What is checked before anything runs.


def plain(**changes):
    return dataclasses.replace(Message(num_params=100), **changes)


def test_check_says_what_is_sent():
    made = secure_mean(threshold=5).check(plain(bound="0/clip_norm"), 100)
    assert (made.bits, made.modulus_bits, made.min_messages) == (27, 27, 5)
    assert (made.unit, made.groups, made.bound) == ("client", 1, "0/clip_norm")
    assert made.uplink_bytes() == 338
    made = build("groups").check(plain(), 10)
    assert (made.unit, made.groups, made.min_messages) == ("group", 4, 2)
    assert made.modulus_bits == 24


@pytest.mark.parametrize(
    ("rule", "message", "cohort", "text"),
    [
        (secure_mean(), {}, 10, "clip the messages"),
        (secure_mean(value_range=1.0), {"bits": 8}, 10, "quantised to 8 bits"),
        (secure_mean(value_range=1.0, bits=24), {}, 1000, "at most bits=22"),
        (secure_mean(value_range=1.0, threshold=11), {}, 10, "cohort has 10"),
        (secure_mean(value_range=1.0), {"modulus_bits": 20}, 10, "already"),
        (secure_mean(value_range=1.0, fidelity="protocol"), {}, 1, "2 clients"),
        (
            secure_mean(value_range=1.0, fidelity="protocol", degree=4),
            {},
            200,
            "use 35 or more",
        ),
        (build("groups"), {}, 3, "use secure_mean"),
        (
            grouped_secure(2, aggregators.krum(3), value_range=1.0),
            {},
            10,
            "krum",
        ),
    ],
)
def test_compositions_that_cannot_be_are_refused(rule, message, cohort, text):
    with pytest.raises(CompositionError, match=text):
        rule.check(plain(**message), cohort)


def test_a_secure_sum_of_secure_sums_is_refused():
    with pytest.raises(CompositionError, match=r"such as median\(\)"):
        grouped_secure(3, secure_mean())


def test_sparsity_of_each_client_is_warned_of_and_counted_as_dense():
    with pytest.warns(CompositionWarning, match="shared seed"):
        made = secure_mean(value_range=1.0).check(
            plain(density=0.1, index_bits=17.0), 10
        )
    assert (made.density, made.index_bits) == (1.0, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = secure_mean(value_range=1.0).check(plain(density=0.1), 10)
    assert made.density == 0.1


def test_groups_that_are_mostly_spoilt_are_warned_of():
    rule = build("groups", malicious=0.3)
    with pytest.warns(CompositionWarning, match="at most 1|no group size"):
        rule.check(plain(), 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build("groups", malicious=0.2).check(plain(), 30)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: secure_mean(bits=1), "bits=1"),
        (lambda: secure_mean(value_range=0.0), "value_range"),
        (lambda: secure_mean(max_weight=float("inf")), "max_weight"),
        (lambda: secure_mean(fidelity="real"), "ideal, view, protocol"),
        (lambda: secure_mean(threshold=0), "threshold"),
        (lambda: secure_mean(degree=1), "degree"),
        (lambda: secure_mean(corrupt=1.0), "corrupt"),
        (lambda: grouped_secure(1, aggregators.median()), "is its message"),
        (lambda: grouped_secure(3, aggregators.median(), min_group=1), "min_group"),
        (lambda: grouped_secure(3, aggregators.median(), min_group=4), "lower it"),
        (lambda: grouped_secure(3, aggregators.median(), population=1), "population"),
        (lambda: grouped_secure(3, aggregators.median(), malicious=-1), "malicious"),
    ],
)
def test_settings_out_of_range_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@every_fidelity
def test_equal_arguments_share_their_functions(fidelity):
    one, other = build("mean", fidelity), build("mean", fidelity, max_weight=3.0)
    assert one.update is other.update
    assert one.secure == other.secure
    one, other = build("groups", fidelity), build("groups", fidelity, min_group=3)
    assert one.update is other.update
    assert one.secure == other.secure
