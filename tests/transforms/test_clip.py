"""Clipping: bounds, counts, and the quantile that an adaptive bound follows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_health.core.message import Message
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import ClientContext
from fedjax_health.transforms import adaptive_clip, clip_l2, clip_per_leaf

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def apply(transform, updates, shared=None):
    context = ClientContext(
        key=root_key(0),
        round=jnp.int32(0),
        weight=jnp.float32(1),
        params=updates,
        shared=transform.init_server(updates) if shared is None else shared,
    )
    sent, _, report = transform.update(updates, (), context)
    return sent, report


def norm(tree):
    leaves = [np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(leaves))


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=1, max_side=40), elements=FLOATS),
    hnp.arrays(np.float32, (3, 2), elements=FLOATS),
    st.floats(1e-3, 1e3),
)
def test_no_update_exceeds_its_bound(first, second, bound):
    updates = {"a": jnp.asarray(first), "b": [jnp.asarray(second)]}
    for transform in (
        clip_l2(bound),
        clip_per_leaf(bound),
        adaptive_clip(bound, cohort=10),
    ):
        sent, _ = apply(transform, updates)
        assert norm(sent) <= bound * (1 + 4e-6)


def test_each_leaf_has_its_own_part_of_the_bound():
    updates = {"a": jnp.ones(4), "b": jnp.full(9, 0.1), "c": jnp.float32(-30)}
    sent, share = apply(clip_per_leaf(1.5), updates)
    part = 1.5 / np.sqrt(3)
    np.testing.assert_allclose(norm(sent["a"]), part, rtol=1e-6)
    np.testing.assert_allclose(sent["c"], -part, rtol=1e-6)
    np.testing.assert_array_equal(sent["b"], updates["b"])
    assert share == pytest.approx(2 / 3)
    everything = jax.tree.map(lambda x: x * 1e6, updates)
    assert norm(apply(clip_per_leaf(1.5), everything)[0]) == pytest.approx(1.5)


def test_the_share_of_clipped_clients_is_told():
    updates = [jnp.full(4, x) for x in (0.1, 0.4, 0.6, 5.0, 0.0)]
    for transform, expected in (
        (clip_l2(1.0), 2 / 5),
        (clip_per_leaf(1.0), 2 / 5),
        (adaptive_clip(1.0, cohort=9), 2 / 5),
    ):
        shared = transform.init_server(updates[0])
        reports = [apply(transform, x)[1] for x in updates]
        total = jnp.sum(jnp.asarray(reports, jnp.float32))
        told = transform.measure(total, shared, jnp.float32(5))
        assert told["clip_fraction"] == pytest.approx(expected)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("initial", [0.1, 50.0])
def test_the_bound_goes_to_the_quantile_from_both_sides(quantile, initial):
    cohort = 200
    norms = np.random.default_rng(0).lognormal(size=cohort).astype(np.float32)
    transform = adaptive_clip(initial, quantile, cohort=cohort)
    bits = jax.jit(
        lambda shared: jnp.sum(
            jax.vmap(lambda x: apply(transform, x, shared)[1])(norms[:, None])
        )
    )
    reduce = jax.jit(transform.reduce)
    shared, path = transform.init_server(jnp.zeros(1)), []
    for round in range(120):
        key = jax.random.fold_in(root_key(1), round)
        shared = reduce(shared, bits(shared), key)
        path.append(float(shared["clip_norm"]))
    wanted = np.quantile(norms, quantile)
    assert np.mean(path[-30:]) == pytest.approx(wanted, rel=0.15)


def test_one_step_falls_where_all_lie_within():
    transform = adaptive_clip(1.0, 0.5, 0.2, 0.2, cohort=100)
    shared = transform.init_server(jnp.zeros(1))
    reduce = jax.jit(transform.reduce)
    low = reduce(shared, jnp.int32(100), root_key(0))["clip_norm"]
    high = reduce(shared, jnp.int32(-100), root_key(0))["clip_norm"]
    # Within 0.4 / 200 of the noise-free steps.
    assert low == pytest.approx(np.exp(-0.2 * 0.5), rel=5e-3)
    assert high == pytest.approx(np.exp(0.2 * 0.5), rel=5e-3)


def test_the_bits_are_noised_as_accounted():
    sigma = 3.0
    transform = adaptive_clip(1.0, 0.5, 1.0, sigma, cohort=50)
    message = transform.check(Message(num_params=10))
    assert message.side_multiplier == 2 * sigma
    assert message.bound == "clip_norm"
    shared = transform.init_server(jnp.zeros(1))
    keys = jax.random.split(root_key(0), 4000)
    steps = jax.vmap(lambda k: transform.reduce(shared, jnp.int32(0), k)["clip_norm"])(
        keys
    )
    # -log C is the noise on the sum of +-1/2 over the cohort.
    assert np.std(np.log(steps)) * 50 == pytest.approx(sigma, rel=0.05)
    assert adaptive_clip(cohort=80).check(
        Message(num_params=10)
    ).side_multiplier == pytest.approx(2 * 0.05 * 80)


@pytest.mark.parametrize(
    "arguments",
    [
        {"initial": 0.0},
        {"quantile": 1.0},
        {"learning_rate": float("nan")},
        {"bit_noise": 0.0},
        {"cohort": 0},
    ],
)
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="adaptive_clip"):
        adaptive_clip(**{"cohort": 10, **arguments})
    with pytest.raises(ValueError, match="clip_per_leaf"):
        clip_per_leaf(-1.0)


def test_a_zero_update_stays_zero():
    for transform in (clip_l2(1.0), clip_per_leaf(1.0), adaptive_clip(cohort=10)):
        sent, _ = apply(transform, {"a": jnp.zeros(3), "b": jnp.zeros(())})
        assert norm(sent) == 0
