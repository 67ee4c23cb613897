"""The compressors against slow versions, their statistics, bounds and bytes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import transforms
from fedjax_health.core import trees
from fedjax_health.core.hadamard import padded_size, random_signs
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import ClientContext
from fedjax_health.transforms import coding
from fedjax_health.transforms.flat import flatten, kept_count, unflatten
from fedjax_health.transforms.quantise import (
    bucket_sizes,
    quantise_qsgd,
    quantise_ternary,
)
from fedjax_health.transforms.random_k import index_set
from fedjax_health.transforms.rotated import centroids, compress, decompress
from fedjax_health.transforms.top_k import select_by_bisection, select_by_sorting
from tests.transforms import oracles

SIZE = 300


def slow(*values):
    """A case that costs a compilation more than it tells."""
    return pytest.param(*values, marks=pytest.mark.slow)


def normal(size=SIZE, seed=0):
    values = np.random.default_rng(seed).normal(size=size)
    return jnp.asarray(values, jnp.float32)


@functools.cache
def jitted(transform):
    return jax.jit(transform.update)


def context_for(transform, params, seed=0):
    return ClientContext(
        root_key(seed),
        jnp.int32(0),
        jnp.float32(1),
        params,
        transform.init_server(params),
    )


def send(transform, x, seed=0):
    """The message and its bytes."""
    context = context_for(transform, x, seed)
    sent, _, report = jitted(transform)(x, transform.init(x), context)
    return sent, int(report["kib"]) * 1024 + int(report["bytes"])


HARD = {
    "normal": np.random.default_rng(0).normal(size=257),
    "few values": np.random.default_rng(1).integers(-3, 4, 257),
    "all equal": np.full(257, 0.5),
    "zeros": np.zeros(257),
    "mostly zeros": np.where(np.arange(257) % 50 == 3, 1.5, 0.0),
    "tiny": np.random.default_rng(2).normal(size=257) * 1e-37,
    "huge": np.random.default_rng(3).normal(size=257) * 1e37,
    "one ulp apart": 1 + np.arange(257)[::-1] // 2 * 2.0**-23,
    "signs tie": np.where(np.arange(257) % 2, 1.0, -1.0),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("k", [1, 25, 256, slow(2), slow(128), slow(257)])
def test_top_k_keeps_exactly_k_and_lower_indices_of_ties(name, k):
    x = HARD[name].astype(np.float32)
    expected = oracles.top_k(x, k)
    for select in (select_by_bisection, select_by_sorting):
        mask = np.asarray(jax.jit(select, static_argnums=1)(jnp.asarray(x), k))
        assert mask.sum() == k
        np.testing.assert_array_equal(np.where(mask, x, 0), expected)


def test_top_k_under_vmap_settles_every_row():
    rows = np.stack([v.astype(np.float32) for v in HARD.values()])
    pick = jax.jit(jax.vmap(lambda x: select_by_bisection(x, 40)))
    for row, mask in zip(rows, np.asarray(pick(rows)), strict=True):
        np.testing.assert_array_equal(np.where(mask, row, 0), oracles.top_k(row, 40))


@pytest.mark.parametrize(
    ("keep", "k"), [slow(1e-9, 1), slow(0.01, 10), (0.1, 100), slow(1, 1000)]
)
def test_top_k_of_a_share_and_its_bytes(keep, k):
    x = normal(1000)
    sent, count = send(transforms.top_k(keep), x)
    np.testing.assert_array_equal(sent, oracles.top_k(np.asarray(x), k))
    assert kept_count(keep, 1000) == k
    scheme = coding.Scheme(1000)
    data = coding.encode(np.asarray(sent), scheme)
    assert len(data) == count
    np.testing.assert_array_equal(coding.decode(data, scheme), sent)


def test_threshold_keeps_what_is_large_enough():
    x = normal().at[5].set(0.75).at[6].set(-0.75)
    sent, count = send(transforms.threshold(0.75), x)
    np.testing.assert_array_equal(sent, oracles.threshold(np.asarray(x), 0.75))
    assert sent[5] != 0
    assert sent[6] != 0
    assert count == len(coding.encode(np.asarray(sent), coding.Scheme(SIZE)))


def nested():
    return {"a": normal(120, 1).reshape(10, 12), "b": [normal(7, 2), jnp.float32(0.2)]}


@pytest.mark.parametrize("per_leaf", [True, False])
def test_sign_sends_the_mean_magnitude(per_leaf):
    updates = nested()
    updates["a"] = updates["a"].at[0, 3].set(0)
    sent, count = send(transforms.sign(per_leaf=per_leaf), updates)
    leaves = [np.asarray(x) for x in jax.tree.leaves(updates)]
    flat = np.concatenate([np.ravel(x) for x in leaves])
    parts = [np.ravel(x) for x in leaves] if per_leaf else [flat]
    expected = np.concatenate(oracles.sign(parts))
    np.testing.assert_allclose(flatten(sent), expected, rtol=1e-5)
    segments = tuple(p.size for p in parts)
    scales = np.array(
        [np.abs(p).max() for p in np.split(flat, np.cumsum(segments))[:-1]]
    )
    scales = np.array(
        [
            np.abs(p).max()
            for p in np.split(np.asarray(flatten(sent)), np.cumsum(segments))[:-1]
        ],
        np.float32,
    )
    scheme = coding.Scheme(flat.size, 1, segments)
    data = coding.encode(np.asarray(flatten(sent)), scheme, scales)
    assert len(data) == count
    np.testing.assert_array_equal(coding.decode(data, scheme), flatten(sent))


def test_sign_takes_one_bit_where_nothing_is_zero():
    _, count = send(transforms.sign(), normal(8000))
    assert count == 1 + 4 + 1000


@pytest.mark.parametrize(
    ("levels", "bucket"),
    [slow(1, 64), (4, 128), slow(127, 50)],
)
def test_qsgd_sends_levels_of_the_norm(levels, bucket):
    x = normal().at[:60].set(0).at[60:140].multiply(1e-3)
    quantise = jax.jit(functools.partial(quantise_qsgd, levels=levels, bucket=bucket))
    sent, scales = map(np.asarray, quantise(x, root_key(5)))
    for i, first in enumerate(range(0, SIZE, bucket)):
        part = np.asarray(x[first : first + bucket], np.float64)
        norm = np.linalg.norm(part)
        np.testing.assert_allclose(scales[i], norm / levels, rtol=1e-5)
        exact = levels * np.abs(part) / max(norm, 1e-30)
        got = np.abs(sent[first : first + bucket]) / max(scales[i], 1e-30)
        assert np.all((got >= np.floor(exact) - 1e-3) & (got <= np.ceil(exact) + 1e-3))
        moved = sent[first : first + bucket] * np.sign(part)
        assert np.all(moved >= 0)
    scheme = coding.Scheme(SIZE, levels, bucket_sizes(SIZE, bucket))
    data = coding.encode(sent, scheme, scales)
    np.testing.assert_array_equal(
        coding.decode(data, scheme).view(np.uint32), sent.view(np.uint32)
    )
    whole, count = send(transforms.qsgd(levels, bucket=bucket), x, seed=5)
    np.testing.assert_array_equal(whole, sent)
    assert count == len(data)


def test_terngrad_sends_the_largest_magnitude_or_nothing():
    updates = nested()
    sent, count = send(transforms.terngrad(), updates)
    scales = [np.abs(np.asarray(x)).max() for x in jax.tree.leaves(updates)]
    for got, x, scale in zip(
        jax.tree.leaves(sent), jax.tree.leaves(updates), scales, strict=True
    ):
        got, x = np.ravel(got), np.ravel(x)
        assert set(np.abs(got)) <= {np.float32(0), scale}
        assert np.all(got * x >= 0)
    scheme = coding.Scheme(128, 1, (120, 7, 1))
    flat = np.asarray(flatten(sent))
    data = coding.encode(flat, scheme, np.array(scales))
    assert len(data) == count
    np.testing.assert_array_equal(coding.decode(data, scheme), flat)


def test_terngrad_uses_a_key_for_each_leaf():
    sent, _ = send(transforms.terngrad(), {"a": normal(), "b": normal()})
    assert np.any(np.asarray(sent["a"]) != np.asarray(sent["b"]))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_centroids_are_those_of_lloyd_and_max(bits):
    found = np.array(centroids(bits))
    assert found.shape == (2**bits,)
    np.testing.assert_allclose(found, -found[::-1], atol=1e-12)
    # Max, 1960, table I: outermost levels and mean squared errors.
    outermost = {1: 0.7980, 2: 1.510, 3: 2.152, 4: 2.733}[bits]
    np.testing.assert_allclose(found[-1], outermost, atol=1e-3)
    draws = np.random.default_rng(0).normal(size=400_000)
    edges = oracles.lloyd_edges(found)
    error = np.mean((found[np.searchsorted(edges, draws)] - draws) ** 2)
    expected = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}[bits]
    np.testing.assert_allclose(error, expected, rtol=0.03)


@pytest.mark.parametrize(
    ("transform", "bits", "unbiased"),
    [
        (transforms.drive(), 1, True),
        (transforms.drive(unbiased=False), 1, False),
        slow(transforms.eden(1), 1, True),
        (transforms.eden(2), 2, True),
        slow(transforms.eden(4), 4, True),
    ],
)
def test_rotated_quantisers_are_the_matrix_written_out(transform, bits, unbiased):
    x = normal()
    sent, count = send(transform, x, seed=9)
    n = padded_size(SIZE)
    signs = np.asarray(random_signs(root_key(9), n), np.float64)
    expected = oracles.rotated_quantiser(
        np.asarray(x, np.float64), signs, centroids(bits), unbiased=unbiased
    )
    np.testing.assert_allclose(sent, expected, rtol=1e-3, atol=1e-4)
    # To bytes and back: the same message.
    codes, scale = jax.jit(functools.partial(compress, bits=bits, unbiased=unbiased))(
        x, root_key(9)
    )
    seed = np.asarray(jax.random.key_data(root_key(9)))
    data = coding.encode_codes(np.asarray(codes), bits, np.float32(scale), seed)
    assert len(data) == count
    codes, scale, words = coding.decode_codes(data, bits, n)
    key = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    back = jax.jit(functools.partial(decompress, bits=bits, size=SIZE))(
        jnp.asarray(codes, jnp.int32), jnp.float32(scale), key
    )
    np.testing.assert_allclose(back, sent, rtol=1e-6, atol=1e-7)


DRAWS = 4000
UNBIASED = {
    "qsgd 1": transforms.qsgd(1, bucket=32),
    "qsgd 8": transforms.qsgd(8, bucket=64),
    "terngrad": transforms.terngrad(),
    "drive": transforms.drive(),
    "eden 2": transforms.eden(2),
    "eden 3": transforms.eden(3),
    "random_k of its own": transforms.random_k(0.25, shared=False, unbiased=True),
}


@functools.cache
def many(name):
    transform, x = UNBIASED[name], normal(100, 3)
    context = context_for(transform, x)
    keys = jax.random.split(root_key(11), DRAWS)

    def one(key):
        return transform.update(x, (), context._replace(key=key))[0]

    return np.asarray(x, np.float64), np.asarray(jax.jit(jax.vmap(one))(keys))


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("qsgd 8", "drive", "eden 2", "terngrad") else slow(n)
        for n in UNBIASED
    ],
)
def test_the_mean_message_is_the_update(name):
    x, sent = many(name)
    error = sent.mean(axis=0) - x
    deviation = sent.std(axis=0) / np.sqrt(DRAWS)
    # A Hadamard rotation is not quite uniform: a bias of .02 deviations is let pass.
    room = 5 * deviation + 0.02
    assert np.all(np.abs(error) < room)
    # The votes of all coordinates together find a bias that none of them shows.
    assert abs(sent.mean(axis=0) @ x / (x @ x) - 1) < 0.02


def test_the_errors_are_those_that_the_papers_state():
    for name, expected in {"drive": np.pi / 2 - 1, "eden 2": 0.1331}.items():
        x, sent = many(name)
        # Padding spreads the error over 128 coordinates, of which 100 are kept.
        error = np.mean(np.sum((sent - x) ** 2, axis=1)) / (x @ x) * 128 / 100
        np.testing.assert_allclose(error, expected, rtol=0.1)
    x, sent = many("qsgd 8")
    assert np.mean(np.sum((sent - x) ** 2, axis=1)) / (x @ x) < min(64 / 64, 8 / 8)


def test_shared_random_k_is_sent_compact_and_put_back():
    transform, x = transforms.random_k(0.1), nested()
    shared = transform.init_server(x)
    k = kept_count(0.1, 128)
    assert shared["indices"].shape == (k,)
    sent, count = send(transform, x)
    assert sent.shape == (k,)
    assert count == 4 * k
    indices = np.asarray(shared["indices"])
    assert len(set(indices)) == k
    np.testing.assert_array_equal(sent, np.asarray(flatten(x))[indices])
    restored, kept = transform.restore(sent, shared, x)
    expected = np.zeros(128, np.float32)
    expected[indices] = np.asarray(flatten(x))[indices]
    np.testing.assert_array_equal(flatten(restored), expected)
    assert kept is shared
    scaled = transforms.random_k(0.1, unbiased=True)
    np.testing.assert_allclose(
        flatten(scaled.restore(sent, shared, x)[0]), expected * 128 / k, rtol=1e-6
    )


def test_the_server_draws_a_new_set_every_round():
    transform = transforms.random_k(0.1)
    shared = transform.init_server(jnp.zeros(2000))
    sets = []
    for i in range(20):
        sets.append(frozenset(np.asarray(shared["indices"]).tolist()))
        assert len(sets[-1]) == 200
        assert all(0 <= j < 2000 for j in sets[-1])
        shared = transform.reduce(shared, (), root_key(i + 1))
    assert len(set(sets)) == 20
    again = transform.reduce(shared, (), root_key(20))
    np.testing.assert_array_equal(again["indices"], shared["indices"])


def test_every_coordinate_is_drawn_as_often():
    size, k, draws = 50, 10, 8000
    keys = jax.random.split(root_key(2), draws)
    sets = np.asarray(jax.jit(jax.vmap(lambda key: index_set(key, k, size)))(keys))
    counts = np.bincount(sets.ravel(), minlength=size)
    spread = np.sqrt(draws * 0.2 * 0.8)
    assert np.all(np.abs(counts - draws * 0.2) < 5 * spread)
    # Pairs too: k (k - 1) / (size (size - 1)) of the draws hold both.
    member = np.zeros((draws, size))
    member[np.arange(draws)[:, None], sets] = 1
    pairs = (member.T @ member)[np.triu_indices(size, 1)] / draws
    expected = 10 * 9 / (50 * 49)
    assert np.all(np.abs(pairs - expected) < 6 * np.sqrt(expected / draws))


def test_random_k_of_its_own_sends_values_and_a_seed():
    transform, x = transforms.random_k(0.2, shared=False), normal()
    sent, count = send(transform, x, seed=4)
    assert count == 8 + 4 * 60
    indices = np.asarray(index_set(root_key(4), 60, SIZE))
    expected = np.zeros(SIZE, np.float32)
    expected[indices] = np.asarray(x)[indices]
    np.testing.assert_array_equal(sent, expected)
    other, _ = send(transform, x, seed=5)
    assert np.any(np.asarray(other) != np.asarray(sent))


BOUND_KEPT = {
    "top_k": transforms.top_k(0.2),
    "random_k": transforms.random_k(0.2),
    "random_k unbiased": transforms.random_k(0.2, unbiased=True),
    "random_k own": transforms.random_k(0.2, shared=False),
    "threshold": transforms.threshold(0.3),
}
BOUND_LOST = {
    "random_k own unbiased": transforms.random_k(0.2, shared=False, unbiased=True),
    "qsgd": transforms.qsgd(4),
    "terngrad": transforms.terngrad(),
    "sign": transforms.sign(),
    "drive": transforms.drive(),
    "eden": transforms.eden(2),
    "error_feedback": transforms.error_feedback(transforms.top_k(0.2)),
    "ef21": transforms.ef21(transforms.top_k(0.2)),
}


@pytest.mark.parametrize("name", [*BOUND_KEPT, *BOUND_LOST])
def test_what_becomes_of_a_bound(name):
    transform = {**BOUND_KEPT, **BOUND_LOST}[name]
    chained = transforms.chain(transforms.clip_l2(1.0), transform)
    bound = chained.check(Message(num_params=SIZE)).bound
    assert bound == ("0/clip_norm" if name in BOUND_KEPT else None)
    if name in BOUND_KEPT:
        for seed in range(5):
            x = normal(seed=seed)
            sent, _ = send(transform, x, seed)
            norm = np.linalg.norm(np.asarray(sent, np.float64))
            assert norm <= np.linalg.norm(np.asarray(x, np.float64)) * (1 + 1e-6)
    clipped = transforms.chain(transform, transforms.clip_l2(1.0))
    assert clipped.check(Message(num_params=SIZE)).bound == "1/clip_norm"


@pytest.mark.parametrize(
    "transform",
    [
        transforms.top_k(0.1),
        transforms.random_k(0.1),
        transforms.random_k(0.1, shared=False),
        slow(transforms.top_k(0.01)),
        slow(transforms.sign()),
        slow(transforms.drive()),
        transforms.eden(3),
    ],
)
def test_the_static_estimate_is_close_to_what_is_sent(transform):
    x = normal(20_000)
    _, count = send(transform, x)
    estimate = transform.check(Message(num_params=20_000)).uplink_bytes()
    assert abs(estimate / count - 1) < 0.02


def test_quantisers_of_sparse_messages_count_them_as_such():
    x = normal(10_000)
    both = transforms.chain(transforms.top_k(0.1), transforms.qsgd(127))
    context = context_for(both, x)
    _, _, report = jitted(both)(x, both.init(x), context)
    said = both.measure(report, context.shared, jnp.float32(1))["uplink_bytes"]
    # One byte a value, some five bits a position, a scale a bucket.
    assert 1000 < said < 1000 + 700 + 85
    message = both.check(Message(num_params=10_000))
    assert (message.density, message.bits) == (0.1, 8)
    assert abs(message.uplink_bytes() / float(said) - 1) < 0.05


COMPRESSORS = {
    "top_k": transforms.top_k(0.1),
    "top_k 1 %": transforms.top_k(0.01),
    "random_k": transforms.random_k(0.1),
    "random_k own": transforms.random_k(0.1, shared=False),
    "threshold": transforms.threshold(0.8),
    "sign": transforms.sign(),
    "qsgd": transforms.qsgd(16),
    "terngrad": transforms.terngrad(),
    "drive": transforms.drive(unbiased=False),
    "eden": transforms.eden(2),
    "chain": transforms.chain(transforms.top_k(0.3), transforms.sign()),
}


# The others take seconds to compile.
QUICK = ("top_k", "random_k", "eden")
every_compressor = pytest.mark.parametrize(
    "name",
    [name if name in QUICK else slow(name) for name in COMPRESSORS],
)


def rounds_of(transform, x, rounds):
    """Runs one client; yields update, message as the server reads it, and memory."""
    memory, shared = transform.init(x), transform.init_server(x)
    for i in range(rounds):
        update = jax.tree.map(lambda v, i=i: v * (1 + i % 3) - 0.1 * i, x)
        context = context_for(transform, x, seed=i)._replace(shared=shared)
        sent, memory, report = jitted(transform)(update, memory, context)
        yield update, sent, memory, shared
        if transform.restore is not None:
            _, shared = transform.restore(sent, shared, x)
        shared = transform.reduce(shared, report, root_key(100 + i))


@every_compressor
def test_messages_and_memory_are_all_updates(name):
    """The telescoping identity of error feedback, whatever the compressor."""
    transform, x = transforms.error_feedback(COMPRESSORS[name]), nested()
    given, heard = np.zeros(128), np.zeros(128)
    for update, sent, memory, shared in rounds_of(transform, x, 12):
        given += np.asarray(flatten(update), np.float64)
        if transform.restore is not None:
            sent = transform.restore(sent, shared, x)[0]
        heard += np.asarray(flatten(sent), np.float64)
        left = np.asarray(flatten(memory), np.float64)
        np.testing.assert_allclose(heard + left, given, rtol=1e-4, atol=1e-4)
    assert np.any(left != 0)


@every_compressor
def test_the_server_holds_the_mean_of_what_clients_hold(name):
    """EF21: g is the mean of all g_i, those of absent clients included."""
    inner, population = COMPRESSORS[name], 6
    transform = transforms.ef21(inner, participation=0.5)
    assert transform.restore is not None
    params = nested()
    rng = np.random.default_rng(7)
    goals = [jax.tree.map(lambda v, i=i: v + i, params) for i in range(population)]
    held = [transform.init(params)] * population
    restore, reduce = jax.jit(transform.restore), jax.jit(transform.reduce)
    shared = transform.init_server(params)
    for step in range(10):
        cohort = rng.choice(population, 3, replace=False)
        messages, reports = [], []
        for i in cohort:
            context = context_for(transform, params, seed=10 * step + i)
            context = context._replace(shared=shared)
            sent, held[i], report = jitted(transform)(goals[i], held[i], context)
            messages.append(sent)
            reports.append(report)
        mean = trees.scale(trees.ordered_sum(messages), 1 / 3)
        estimate, shared = restore(mean, shared, params)
        shared = reduce(shared, trees.ordered_sum(reports), root_key(step))
        truth = np.mean([np.asarray(flatten(h), np.float64) for h in held], axis=0)
        np.testing.assert_allclose(flatten(estimate), truth, rtol=1e-3, atol=1e-4)


def test_ef21_learns_a_constant_update_exactly():
    transform, x = transforms.ef21(transforms.top_k(0.25)), normal(64)
    estimate = None
    for _, sent, _, shared in rounds_of_constant(transform, x, 4):
        estimate = transform.restore(sent, shared, x)[0]
    np.testing.assert_allclose(estimate, x, rtol=1e-6)


def rounds_of_constant(transform, x, rounds):
    memory, shared = transform.init(x), transform.init_server(x)
    for i in range(rounds):
        context = context_for(transform, x, seed=i)._replace(shared=shared)
        sent, memory, report = jitted(transform)(x, memory, context)
        yield x, sent, memory, shared
        _, shared = transform.restore(sent, shared, x)
        shared = transform.reduce(shared, report, root_key(i))


def test_ef21_outlives_a_round_that_broke():
    transform, x = transforms.ef21(transforms.top_k(0.5)), normal(8)
    shared = transform.init_server(x)
    _, shared = transform.restore(x, shared, x)
    estimate, after = transform.restore(x.at[0].set(np.nan), shared, x)
    assert not np.all(np.isfinite(estimate))
    np.testing.assert_array_equal(after["estimate"], x)


def adds_noise():
    def check(message):
        return dataclasses.replace(message, noised=True)

    return transforms.identity()._replace(check=check)


@pytest.mark.parametrize("wrap", [transforms.error_feedback, transforms.ef21])
def test_memory_around_the_wrong_stage_is_refused(wrap):
    message = Message(num_params=SIZE)
    for inner, words in [
        (transforms.clip_l2(1.0), "put the clipping after"),
        (transforms.clip_per_leaf(1.0), "put the clipping after"),
        (
            transforms.chain(transforms.top_k(0.1), transforms.clip_l2(1.0)),
            "put the clipping after",
        ),
        (transforms.adaptive_clip(1.0, cohort=100), "noise comes last"),
        (adds_noise(), "noise comes last"),
    ]:
        with pytest.raises(CompositionError, match=words):
            wrap(inner).check(message)
    with pytest.raises(CompositionError, match="then noise"):
        wrap(transforms.top_k(0.1)).check(Message(num_params=SIZE, noised=True))
    with pytest.raises(CompositionError, match="memory of its own"):
        wrap(transforms.error_feedback(transforms.top_k(0.1)))
    for shared in (True, False):
        with pytest.raises(CompositionError, match="diverges"):
            wrap(transforms.random_k(0.1, shared=shared, unbiased=True))


def test_a_clip_before_error_feedback_leaves_no_bound_for_a_mechanism():
    feedback = transforms.error_feedback(transforms.random_k(0.1))
    before = transforms.chain(transforms.clip_l2(1.0), feedback)
    after = transforms.chain(feedback, transforms.clip_l2(1.0))
    assert before.check(Message(num_params=SIZE)).bound is None
    assert after.check(Message(num_params=SIZE)).bound == "1/clip_norm"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: transforms.top_k(0.0), "keep"),
        (lambda: transforms.top_k(1.5), "keep"),
        (lambda: transforms.top_k(float("nan")), "keep"),
        (lambda: transforms.random_k(-0.1), "keep"),
        (lambda: transforms.threshold(0.0), "value"),
        (lambda: transforms.threshold(float("inf")), "value"),
        (lambda: transforms.qsgd(0), "levels"),
        (lambda: transforms.qsgd(4, bucket=0), "bucket"),
        (lambda: transforms.eden(5), "bits"),
        (lambda: transforms.ef21(transforms.top_k(0.1), participation=0.0), "partic"),
    ],
)
def test_numbers_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: transforms.top_k(0.1),
        lambda: transforms.random_k(0.1),
        lambda: transforms.error_feedback(transforms.random_k(0.1)),
        lambda: transforms.ef21(transforms.qsgd(4)),
        lambda: transforms.error_feedback(
            transforms.chain(transforms.top_k(0.1), transforms.qsgd(4))
        ),
    ],
)
def test_equal_settings_share_every_traced_function(make):
    one, other = make(), make()
    for name in ("update", "reduce", "restore", "measure"):
        assert getattr(one, name) is getattr(other, name)


def test_arguments_may_be_written_either_way():
    assert transforms.top_k(0.1) is transforms.top_k(keep=0.1)
    assert transforms.qsgd() is transforms.qsgd(levels=127, bucket=512)
    assert transforms.sign() is transforms.sign(per_leaf=True)
    assert transforms.drive() is transforms.drive(unbiased=True)
    assert transforms.eden() is transforms.eden(bits=2)
    assert transforms.random_k(0.1) is transforms.random_k(0.1, shared=True)


def test_numbers_that_may_vary_do_not_compile_again():
    assert transforms.threshold(0.1).update is transforms.threshold(0.2).update
    inner = transforms.top_k(0.1)
    one, other = (transforms.ef21(inner, participation=q) for q in (0.5, 1.0))
    assert one.update is other.update
    assert one.restore is other.restore


def test_leaves_of_other_dtypes_come_back_as_they_were():
    tree = {"a": normal(6).astype(jnp.bfloat16), "b": normal(3)}
    back = unflatten(flatten(tree), tree)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_ternary_of_nothing_is_nothing():
    sent, scale = quantise_ternary(jnp.zeros(4), root_key(0))
    np.testing.assert_array_equal(sent, 0)
    assert scale == 0
