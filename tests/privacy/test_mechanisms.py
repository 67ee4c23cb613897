"""Mechanisms: what a message can move, what noise is added, what is refused."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_health import privacy
from fedjax_health.core import hadamard
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import Sampling
from fedjax_health.privacy import distributed, lattice, ledger
from fedjax_health.transforms import clip_l2
from tests.transforms.test_clip import apply

SAMPLING = Sampling("poisson", 1000, 50)
CYCLIC = Sampling("cyclic", 1000, 50, cycle=4)
BOUND = jnp.float32(0.7)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
DISTRIBUTED = {
    "gaussian": privacy.distributed_discrete_gaussian,
    "skellam": privacy.distributed_skellam,
}


def message(d=1000, **known):
    return Message(num_params=d, bound="clip_norm", **known)


def secure(d=1000, threshold=40, **known):
    return message(d, modulus_bits=32, min_messages=threshold, **known)


def updates_of(norm, d=1000, seed=0):
    values = np.random.default_rng(seed).normal(size=d).astype(np.float32)
    values *= norm / np.linalg.norm(values)
    return {"a": jnp.asarray(values[: d - 10]), "b": jnp.asarray(values[d - 10 :])}


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@functools.cache
def central(z=1.3, d=1000, groups=1):
    bound = privacy.central_gaussian(z).bind(message(d, groups=groups), SAMPLING)
    return bound, bound.init(updates_of(0, d))


def noise_of(z, d=100_000):
    """The server's noise alone, in units of the bound."""
    mechanism, state = central(z, d)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), updates_of(0, d))
    noised, _ = jax.jit(mechanism.server)(zeros, state, root_key(0), BOUND)
    return flat(noised) / float(state["scale"])


def test_central_noise_has_the_stated_width_and_is_added_before_any_division():
    for z in (0.5, 4.0):
        noise = noise_of(z)
        # Not divided by a cohort, and rounding is paid for by less than 1 %.
        assert noise.std() == pytest.approx(z, rel=0.02)
        assert abs(noise.mean()) < 5 * z / np.sqrt(len(noise))


def test_central_sums_are_those_of_the_messages():
    mechanism, state = central()
    messages = [updates_of(0.7, seed=s) for s in range(5)]
    total = None
    for one in messages:
        integers, saturated = mechanism.codec.encode(
            one, jnp.float32(1), state, root_key(0), BOUND
        )
        assert saturated == 0
        assert all(x.dtype == jnp.int32 for x in jax.tree.leaves(integers))
        total = integers if total is None else jax.tree.map(jnp.add, total, integers)
    back = mechanism.codec.decode(total, state, BOUND, messages[0])
    expected = sum(flat(one) for one in messages)
    step = 0.7 / float(state["scale"])
    np.testing.assert_allclose(flat(back), expected, atol=3 * step, rtol=1e-5)
    noised, _ = mechanism.server(total, state, root_key(1), BOUND)
    difference = (flat(noised) - flat(total)) / float(state["scale"])
    assert difference.std() == pytest.approx(1.3, rel=0.1)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=FLOATS),
    st.floats(1e-4, 1e4),
    st.sampled_from([2, 8, 16, 22]),
)
def test_no_rounded_message_exceeds_the_sensitivity_that_is_paid_for(
    values, bound, bits
):
    sent, _ = apply(clip_l2(bound), jnp.asarray(values))
    integers = lattice.round_to_lattice(
        sent, jnp.float32(bound), jnp.float32(2.0**bits)
    )
    norm = np.linalg.norm(np.asarray(integers, np.float64))
    assert norm <= lattice.integer_norm(bits, len(values))


def test_the_worst_rounding_is_reached_and_allowed():
    # Every coordinate just above a half: the worst that nearest rounding can do.
    d, bits = 10_000, 7
    values = np.full(d, 0.501 / 2**bits, np.float32)
    integers = lattice.round_to_lattice(
        jnp.asarray(values), jnp.float32(1), jnp.float32(2.0**bits)
    )
    norm = np.linalg.norm(np.asarray(integers, np.float64))
    assert 0.9 * (50.1 + np.sqrt(d) / 2) < norm <= lattice.integer_norm(bits, d)


@pytest.mark.parametrize(("d", "cohort", "z"), [(10, 5, 0.1), (10**6, 5000, 20.0)])
def test_sum_and_noise_stay_below_the_modulus(d, cohort, z):
    for modulus in (32, 28):
        grid = lattice.choose_lattice("x", message(d, modulus_bits=modulus), cohort, z)
        reach = cohort * (2**grid.bits + 1) + 10 * grid.sigma
        assert reach < 2 ** (modulus - 1)
        assert grid.sigma == pytest.approx(z * grid.sensitivity)
        finer = cohort * 2 ** (grid.bits + 1) + 20 * grid.sigma
        assert grid.bits == lattice.MOST_BITS or finer > 2 ** (modulus - 2)
    with pytest.raises(CompositionError, match="larger modulus"):
        lattice.choose_lattice("x", message(10**6, modulus_bits=12), 5000, 1.0)


def test_each_group_gets_noise_of_its_own():
    mechanism, state = central(groups=3)
    assert mechanism.server is None
    sums = {"a": jnp.zeros((3, 990), jnp.int32), "b": jnp.zeros((3, 10), jnp.int32)}
    noised = mechanism.group(sums, state, root_key(0), BOUND)["a"]
    rows = np.asarray(noised) / float(state["scale"])
    assert rows.std(axis=1) == pytest.approx([1.3] * 3, rel=0.1)
    assert np.abs(np.corrcoef(rows)[np.triu_indices(3, 1)]).max() < 0.15


def released(kind, value, key):
    """The noised sum of one coordinate and 63 zeros, as the server would show it."""
    mechanism = privacy.central_gaussian(1.0, noise=kind)
    bound = mechanism.bind(message(64), SAMPLING)
    updates = jnp.zeros(64).at[0].set(value)
    state = bound.init(updates)
    if bound.codec is None:
        return bound.server(updates, state, key, jnp.float32(1))[0][0]
    integers, _ = bound.codec.encode(
        updates, jnp.float32(1), state, key, jnp.float32(1)
    )
    total, _ = bound.server(integers, state, key, jnp.float32(1))
    return bound.codec.decode(total, state, jnp.float32(1), updates)[0]


@jax.jit
def every_float_normal():
    """All values of ``jax.random.normal``, from all 2**23 words that it takes."""
    words = jnp.arange(2**23, dtype=jnp.uint32) | jnp.uint32(0x3F800000)
    uniform = jax.lax.bitcast_convert_type(words, jnp.float32) - jnp.float32(1)
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(low, uniform * (np.float32(1) - low) + low)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)


def tells_apart(kind, inputs=(0.0, 0.9), draws=300):
    """Share of releases that only one of two known inputs can have given.

    Mironov, 2012: whoever knows the generator looks whether ``y - x`` is one of its
    values, here after rounding as the release rounds.
    """
    keys = jax.random.split(root_key(3), draws)
    outputs = np.asarray(jax.vmap(lambda k: released(kind, inputs[1], k))(keys))
    if kind == "float":
        support = np.asarray(every_float_normal())
        possible = [
            np.isin(outputs, (np.float32(x) + support).astype(np.float32))
            for x in inputs
        ]
    else:
        state = central(1.0, 64)[1]
        scale = float(state["scale"])
        # Integers less a rounded input: every one of them has a positive chance.
        possible = [
            (outputs.astype(np.float64) * scale - np.round(x * scale)) % 1 == 0
            for x in inputs
        ]
        assert np.all(np.abs(outputs) < 12)
    return float(np.mean(possible[0] != possible[1]))


def test_a_distinguisher_catches_float_noise_and_never_the_discrete_one():
    assert tells_apart("float") > 0.8
    assert tells_apart("discrete") == 0


@pytest.mark.slow
def test_releases_of_neighbours_differ_by_what_the_multiplier_says():
    """The likelihood ratio of one release, by histogram: no more than Gaussian."""
    keys = jax.random.split(root_key(4), 40_000)
    one, other = (
        np.asarray(jax.jit(jax.vmap(lambda k, x=x: released("discrete", x, k)))(keys))
        for x in (0.0, 1.0)
    )
    assert other.mean() - one.mean() == pytest.approx(1.0, abs=0.03)
    edges = np.linspace(-1, 2, 7)
    p, q = (np.histogram(v, edges)[0] / len(v) for v in (one, other))
    losses = np.log(q / p)
    middle = (edges[1:] + edges[:-1]) / 2
    np.testing.assert_allclose(losses, middle - 0.5, atol=0.12)


def test_float_noise_and_the_sum_of_integers_under_a_modulus():
    mechanism = privacy.central_gaussian(2.0, noise="float")
    plain = mechanism.bind(message(), SAMPLING)
    assert plain.codec is None
    zeros = {"a": jnp.zeros(20_000)}
    noised, _ = plain.server(zeros, plain.init(zeros), root_key(0), BOUND)
    assert np.std(noised["a"]) == pytest.approx(1.4, rel=0.03)
    hidden = mechanism.bind(secure(), SAMPLING)
    integers = {"a": jnp.zeros(20_000, jnp.int32)}
    state = hidden.init(zeros)
    noised, _ = hidden.server(integers, state, root_key(0), BOUND)
    assert noised["a"].dtype == jnp.int32
    assert np.std(noised["a"]) / float(state["scale"]) == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("noise", ["discrete", "float"])
def test_local_noise_is_on_every_message(noise):
    mechanism = privacy.local_gaussian(noise_multiplier=5.0, noise=noise)
    bound = mechanism.bind(message(), SAMPLING)
    assert bound.server is None
    updates = updates_of(0.7, 20_000)
    sent = bound.client(updates, bound.init(updates), root_key(0), BOUND)
    difference = flat(sent) - flat(updates)
    assert difference.std() == pytest.approx(5 * 0.7, rel=0.03)
    if noise == "discrete":
        units = flat(sent) / 0.7 * float(bound.init(updates)["scale"])
        np.testing.assert_allclose(units, np.round(units), rtol=1e-6)
    with pytest.raises(CompositionError, match="distributed_skellam"):
        mechanism.bind(secure(), SAMPLING)


def tree_run(restart, rounds, z=1.0, d=400):
    sampling = Sampling("cyclic", 1000, 20, cycle=restart)
    bound = privacy.tree_aggregation(z, restart_every=restart).bind(
        message(d), sampling
    )
    params = {"a": jnp.zeros(d)}
    state, total, path = bound.init(params), np.zeros(d), []
    server = jax.jit(bound.server)
    for t in range(rounds):
        key = jax.random.fold_in(root_key(0), t)
        noised, state = server({"a": jnp.zeros(d, jnp.int32)}, state, key, BOUND)
        total = total + np.asarray(noised["a"]) / float(state["scale"])
        path.append(total.copy())
    return np.array(path)


def test_a_tree_adds_as_many_nodes_as_a_round_has_ones():
    path = tree_run(16, 16)
    for t in range(1, 17):
        assert path[t - 1].var() == pytest.approx(bin(t).count("1"), rel=0.3)
    # Rounds of one node share its noise: 4 and 5 have the first four's.
    assert np.corrcoef(path[3], path[4])[0, 1] > 0.6
    assert abs(np.corrcoef(path[2], path[3])[0, 1]) < 0.2


def test_a_restarted_tree_begins_afresh():
    path = tree_run(4, 9)
    assert path[3].var() == pytest.approx(1, rel=0.3)
    assert (path[4] - path[3]).var() == pytest.approx(1, rel=0.3)
    assert (path[7] - path[3]).var() == pytest.approx(1, rel=0.3)
    assert (path[8] - path[7]).var() == pytest.approx(1, rel=0.3)
    assert abs(np.corrcoef(path[8] - path[7], path[7] - path[3])[0, 1]) < 0.2


def test_a_tree_needs_one_turn_for_each_client():
    mechanism = privacy.tree_aggregation(1.0, restart_every=4)
    for sampling in (SAMPLING, Sampling("cyclic", 1000, 50, cycle=6)):
        with pytest.raises(CompositionError, match="cycle that is a multiple"):
            mechanism.bind(message(), sampling)
    with pytest.raises(CompositionError, match="clip_l2"):
        mechanism.bind(message(side_multiplier=50.0), CYCLIC)
    with pytest.raises(CompositionError, match="the same parameters"):
        mechanism.bind(message(moving=True), CYCLIC)
    event = mechanism.event(message(), Sampling("cyclic", 1000, 50, cycle=8), 17)
    assert event.count == 3


compiled_rounding = jax.jit(distributed.conditional_rounding)


def encode_all(bound, state, messages, threshold=None):
    def one(updates, key):
        return bound.codec.encode(updates, jnp.float32(1), state, key, BOUND)[0]

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *messages)
    keys = jax.random.split(root_key(7), len(messages))
    return jnp.sum(jax.jit(jax.vmap(one))(stacked, keys), axis=0, dtype=jnp.int32)


@pytest.mark.parametrize("kind", DISTRIBUTED)
def test_distributed_noise_adds_up_to_the_stated_width_at_the_threshold(kind):
    threshold, missing = 12, 2
    mechanism = DISTRIBUTED[kind](1.5, non_contributing=missing)
    bound = mechanism.bind(secure(1000, threshold), SAMPLING)
    messages = [updates_of(0.7, seed=s) for s in range(threshold)]
    state = bound.init(messages[0])
    total = encode_all(bound, state, messages)
    back = bound.codec.decode(total, state, BOUND, messages[0])
    assert jax.tree.structure(back) == jax.tree.structure(messages[0])
    noise = (flat(back) - sum(flat(one) for one in messages)) / 0.7
    # All contribute here, so there is more than is paid for.
    expected = 1.5 * np.sqrt(threshold / (threshold - missing))
    assert noise.std() == pytest.approx(expected, rel=0.1)
    assert abs(noise.mean()) < 5 * expected / np.sqrt(len(noise))


@pytest.mark.parametrize("kind", DISTRIBUTED)
def test_distributed_noise_is_refused_without_a_secure_sum(kind):
    mechanism = DISTRIBUTED[kind](1.0)
    with pytest.raises(CompositionError, match="secure_mean"):
        mechanism.bind(message(), SAMPLING)
    with pytest.raises(CompositionError, match="threshold"):
        DISTRIBUTED[kind](1.0, non_contributing=40).bind(secure(), SAMPLING)
    with pytest.raises(CompositionError, match="clip_l2"):
        mechanism.bind(secure(side_multiplier=9.0), SAMPLING)
    with pytest.raises(ValueError, match="non_contributing"):
        DISTRIBUTED[kind](1.0, non_contributing=-1)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.float32, 32, elements=st.floats(-1, 1, width=32)), st.integers(0))
def test_no_randomly_rounded_message_exceeds_its_norm_bound(values, seed):
    norm = np.float64(np.linalg.norm(values.astype(np.float64)))
    scaled = jnp.asarray(values * (16 / max(norm, 1e-3)), jnp.float32)
    turned = hadamard.rotate(scaled, root_key(0))
    limit = distributed.rounded_norm(max(float(jnp.linalg.norm(turned)), 16.0), 32)
    rounded = compiled_rounding(turned, jnp.float32(limit), root_key(seed % 2**32))
    assert np.linalg.norm(np.asarray(rounded, np.float64)) <= limit * (1 + 1e-6)
    assert np.max(np.abs(np.asarray(rounded) - np.asarray(turned))) <= 1


@pytest.mark.slow
def test_random_rounding_is_fair_and_ends_for_any_input():
    values = jnp.asarray(np.random.default_rng(0).uniform(-3, 3, 64), jnp.float32)
    limit = jnp.float32(distributed.rounded_norm(float(jnp.linalg.norm(values)), 64))
    keys = jax.random.split(root_key(0), 4000)
    rounded = jax.vmap(lambda k: distributed.conditional_rounding(values, limit, k))(
        keys
    )
    np.testing.assert_allclose(rounded.mean(axis=0), values, atol=0.05)
    for bad in (jnp.full(8, jnp.nan), jnp.full(8, 1e6)):
        cut = distributed.conditional_rounding(bad, jnp.float32(10), root_key(0))
        assert np.linalg.norm(np.asarray(cut, np.float64)) <= 10


def test_skellam_noise_is_widened_until_its_divergence_is_the_gaussians():
    for sigma, sensitivity, size in ((5.0, 4.0, 64), (1e5, 1e5, 10**6)):
        wide = distributed.skellam_scale(sigma, sensitivity, size)
        assert wide > sigma
        for order in range(2, 200):
            assert distributed.skellam_divergence(
                order, wide**2, sensitivity, size
            ) <= order * sensitivity**2 / (2 * sigma**2) * (1 + 1e-12)
    assert wide < sigma * 1.001


def test_zero_and_non_finite_messages_stay_in_range():
    for mechanism, bound in (
        (privacy.central_gaussian(1.0), message()),
        (privacy.distributed_skellam(1.0), secure()),
    ):
        bound = mechanism.bind(bound, SAMPLING)
        for norm in (0.0, np.nan):
            updates = jax.tree.map(lambda x, n=norm: x * 0 + n, updates_of(1.0))
            state = bound.init(updates)
            integers, saturated = bound.codec.encode(
                updates, jnp.float32(1), state, root_key(0), BOUND
            )
            assert np.isfinite(saturated)
            assert np.all(np.abs(flat(integers).astype(np.int64)) < 2**30)


def test_equal_structures_share_their_functions():
    one, other = (
        privacy.central_gaussian(z).bind(message(), SAMPLING) for z in (1.0, 2.0)
    )
    assert one.server is other.server
    assert one.codec is other.codec
    one, other = (
        privacy.distributed_skellam(z).bind(secure(), SAMPLING) for z in (1.0, 2.0)
    )
    assert one.codec is other.codec
    shapes = [
        jax.tree.map(jnp.shape, b.init({"a": jnp.zeros(3)})) for b in (one, other)
    ]
    assert shapes[0] == shapes[1]


def test_wrong_numbers_are_refused():
    for z in (0.0, -1.0, float("nan"), float("inf")):
        for build in (
            privacy.central_gaussian,
            lambda z: privacy.local_gaussian(noise_multiplier=z),
            lambda z: privacy.tree_aggregation(z, restart_every=2),
            privacy.distributed_skellam,
        ):
            with pytest.raises(ValueError, match="noise_multiplier"):
                build(z)
    with pytest.raises(ValueError, match="exactly one"):
        privacy.local_gaussian()
    with pytest.raises(ValueError, match="exactly one"):
        privacy.local_gaussian(1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="'discrete' or 'float'"):
        privacy.central_gaussian(1.0, noise="gaussian")


has_jax_privacy = importlib.util.find_spec("jax_privacy") is not None


@pytest.mark.skipif(has_jax_privacy, reason="jax-privacy is there")
def test_banded_noise_names_the_package_that_it_needs():
    with pytest.raises(ImportError, match=r"fedjax-health\[matrix-factorization\]"):
        privacy.banded_mf(1.0, bands=4, rounds=20)


def banded_run(coefficients, monkeypatch=None, d=3000, rounds=12, secured=False):
    bands = len(coefficients)
    sampling = Sampling("cyclic", 1000, 20, cycle=bands)
    bound = privacy.banded_mf(1.5, bands=bands, rounds=rounds).bind(
        secure(d) if secured else message(d), sampling
    )
    zeros = {"a": jnp.zeros(d, jnp.int32 if secured else jnp.float32)}
    state, path = bound.init(zeros), []
    for t in range(rounds):
        key = jax.random.fold_in(root_key(0), t)
        noised, state = jax.jit(bound.server)(zeros, state, key, BOUND)
        unit = float(state["scale"]) if secured else 0.7
        path.append(np.asarray(noised["a"]) / unit)
    return np.array(path)


@pytest.mark.parametrize("secured", [False, True])
def test_banded_noise_is_that_of_the_dense_matrix(monkeypatch, secured):
    from fedjax_health.privacy import banded

    coefficients = np.array([0.8, 0.5, 0.3])
    monkeypatch.setattr(banded, "strategy", lambda rounds, bands: coefficients)
    path = banded_run(coefficients, secured=secured)
    matrix = sum(np.diag([c] * (12 - i), -i) for i, c in enumerate(coefficients))
    inverse = np.linalg.inv(matrix)
    # Noise before correlation has the multiplier times the largest column norm.
    widest = np.linalg.norm(matrix, axis=0).max()
    expected = (1.5 * widest) ** 2 * inverse @ inverse.T
    np.testing.assert_allclose(np.cov(path), expected, atol=0.12 * expected.max())


@pytest.mark.skipif(not has_jax_privacy, reason="needs jax-privacy")
def test_the_strategy_is_jax_privacys():
    from fedjax_health.privacy import banded

    coefficients = banded.strategy(30, 5)
    assert coefficients.shape == (5,)
    path = banded_run(coefficients, rounds=30)
    plain = 1.5**2 * np.arange(1, 31)
    # Sums over rounds are less noisy than those of independent noise.
    assert np.cumsum(path, axis=0).var(axis=1).mean() < 0.7 * plain.mean()


def test_banded_noise_needs_turns_and_counts_rounds_of_a_block(monkeypatch):
    from fedjax_health.privacy import banded

    monkeypatch.setattr(banded, "strategy", lambda rounds, bands: np.ones(bands))
    mechanism = privacy.banded_mf(1.0, bands=10, rounds=100)
    with pytest.raises(CompositionError, match="cycle of 10 or more"):
        mechanism.bind(message(), SAMPLING)
    sampling = Sampling("cyclic", 10_000, 100, cap=1000, cycle=10)
    found = ledger.epsilon_after(mechanism, message(), sampling, 100)
    # By the plain rate .38 would be claimed.
    assert found == pytest.approx(2.85, abs=0.1)
