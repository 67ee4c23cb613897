"""What every public aggregator promises; a new one joins by being in ``__all__``."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import aggregators
from fedjax_health.core.message import Message
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import AggregationContext, Aggregator

ROWS = 9
# A constructor that cannot be called without arguments has its own here; one malicious
# client serves every rule whose first parameter is ``num_malicious``.
ARGUMENTS: dict[str, tuple] = {}
# Rules that cannot work without a context, with what their refusal names.
NEED_CONTEXT = {"fltrust": "context.root_updates"}
# Rules that do not return a message on which all agree: noise, identical clients taken
# for sybils, signs alone.
OUTSIDE = {"flame", "foolsgold", "sign_majority"}


@functools.cache
def build(name) -> Aggregator:
    constructor = getattr(aggregators, name)
    if name in ARGUMENTS:
        return constructor(*ARGUMENTS[name])
    if "num_malicious" in inspect.signature(constructor).parameters:
        return constructor(num_malicious=1)
    return constructor()


def public_rules():
    return [name for name in aggregators.__all__ if isinstance(build(name), Aggregator)]


every_rule = pytest.mark.parametrize("name", public_rules())


def stacks():
    rng = np.random.default_rng(0)

    def rows(*shape):
        return jnp.asarray(rng.normal(size=(ROWS, *shape)), jnp.float32)

    return {
        "bare": rows(17),
        "nested": {"kernel": rows(3, 4), "rest": [rows(5), rows()]},
    }


every_stack = pytest.mark.parametrize("kind", stacks())


def some_weights():
    return jnp.array([3, 1, 2, 5, 1, 4, 2, 2, 1], jnp.float32)


def context_for(stacked, ids=None):
    return AggregationContext(
        client_ids=jnp.arange(ROWS, dtype=jnp.int32) if ids is None else ids,
        mask=jnp.ones(ROWS, bool),
        round=jnp.int32(0),
        root_updates=jax.tree.map(lambda x: x[0], stacked),
    )


def start(rule, stacked):
    return rule.init(jax.tree.map(lambda x: x[0], stacked))


@functools.cache
def compiled(name):
    rule = build(name)

    @jax.jit
    def update(stacked, weights, state, context):
        return rule.update(stacked, weights, state, root_key(0), context=context)

    return update


def apply(name, stacked, weights, context=None):
    state = start(build(name), stacked)
    context = context_for(stacked) if context is None else context
    return compiled(name)(stacked, weights, state, context)


def assert_same_kind(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert jnp.shape(x) == jnp.shape(y)
        assert jnp.result_type(x) == jnp.result_type(y)


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    assert_same_kind(a, b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


@every_stack
@every_rule
def test_one_message_of_the_same_structure_comes_out(name, kind):
    stacked = stacks()[kind]
    state = start(build(name), stacked)
    aggregate, after, metrics = apply(name, stacked, some_weights())
    assert_same_kind(aggregate, jax.tree.map(lambda x: x[0], stacked))
    assert_same_kind(after, state)
    assert isinstance(metrics, dict)
    assert all(isinstance(metric, str) for metric in metrics)
    for x in jax.tree.leaves(aggregate):
        assert np.all(np.isfinite(x))


@every_rule
def test_half_precision_is_kept(name):
    stacked = stacks()["bare"].astype(jnp.bfloat16)
    aggregate, _, _ = apply(name, stacked, some_weights())
    assert aggregate.dtype == jnp.bfloat16
    full, _, _ = apply(name, stacked.astype(jnp.float32), some_weights())
    np.testing.assert_allclose(
        np.asarray(aggregate, np.float32), full, rtol=0.05, atol=0.05
    )


@every_stack
@every_rule
def test_jit_equals_eager(name, kind):
    stacked = stacks()[kind]
    rule = build(name)
    context = context_for(stacked)
    eager = rule.update(
        stacked, some_weights(), start(rule, stacked), root_key(0), context=context
    )
    assert_close(apply(name, stacked, some_weights()), eager)


@every_rule
def test_a_bare_array_without_a_context_is_enough(name):
    stacked = stacks()["bare"]
    rule = build(name)
    weights, key = some_weights(), root_key(0)
    if name in NEED_CONTEXT:
        with pytest.raises(ValueError, match=NEED_CONTEXT[name]):
            rule.update(stacked, weights, rule.init(stacked[0]), key)
        return
    alone, _, _ = rule.update(stacked, weights, rule.init(stacked[0]), key)
    assert_close(alone, apply(name, stacked, weights)[0])


@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf, 1e30])
@every_stack
@every_rule
def test_rows_of_weight_zero_cannot_change_the_result(name, kind, filler):
    stacked = stacks()[kind]
    absent = jnp.zeros(ROWS, bool).at[jnp.array([2, 6])].set(True)
    weights = jnp.where(absent, 0.0, some_weights())
    context = context_for(stacked)._replace(mask=~absent)

    def fill(x, value):
        return jnp.where(absent.reshape(-1, *[1] * (x.ndim - 1)), value, x)

    quiet = jax.tree.map(lambda x: fill(x, 0.0), stacked)
    loud = jax.tree.map(lambda x: fill(x, filler), stacked)
    a = apply(name, quiet, weights, context)
    b = apply(name, loud, weights, context)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@every_stack
@every_rule
def test_the_order_of_the_rows_does_not_matter(name, kind):
    stacked = stacks()[kind]
    order = jnp.array([4, 0, 8, 2, 7, 1, 3, 6, 5])
    shuffled = jax.tree.map(lambda x: x[order], stacked)
    context = context_for(stacked)
    moved = context._replace(client_ids=context.client_ids[order])
    a, _, _ = apply(name, stacked, some_weights(), context)
    b, _, _ = apply(name, shuffled, some_weights()[order], moved)
    assert_close(a, b, rtol=1e-4, atol=1e-5)


@every_rule
def test_equal_messages_are_their_own_aggregate(name):
    row = stacks()["bare"][0]
    aggregate = apply(name, jnp.tile(row, (ROWS, 1)), some_weights())[0]
    assert np.allclose(aggregate, row) == (name not in OUTSIDE)


@pytest.mark.parametrize("name", [n for n in public_rules() if build(n).linear])
def test_a_rule_that_calls_itself_linear_is_the_weighted_mean(name):
    stacked = stacks()["nested"]
    weights = np.asarray(some_weights(), np.float64).copy()
    weights[3] = 0
    aggregate, _, _ = apply(name, stacked, jnp.asarray(weights, jnp.float32))

    def oracle(x):
        total = np.zeros(x.shape[1:])
        for row, weight in zip(np.asarray(x, np.float64), weights, strict=True):
            total += weight * row
        return total / weights.sum()

    for x, y in zip(jax.tree.leaves(aggregate), jax.tree.leaves(stacked), strict=True):
        np.testing.assert_allclose(x, oracle(y), rtol=1e-5, atol=1e-6)


@every_rule
def test_rows_of_nobody_reach_nothing(name):
    """The engine takes no step then, but what the rule remembers must stay clean."""
    stacked = stacks()["bare"]
    context = context_for(stacked)._replace(mask=jnp.zeros(ROWS, bool))
    aggregate, state, _ = apply(name, stacked, jnp.zeros(ROWS), context)
    loud, after, _ = apply(name, stacked * jnp.nan, jnp.zeros(ROWS), context)
    np.testing.assert_array_equal(aggregate, loud)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)


@every_rule
def test_check_accepts_a_plain_message(name):
    message = build(name).check(Message(num_params=100), ROWS)
    assert message.num_params == 100


@every_rule
def test_equal_arguments_share_their_functions(name):
    one = build(name)
    build.cache_clear()
    other = build(name)
    assert one.update is other.update


def test_the_mean_weighs_by_hand():
    aggregate, state, metrics = aggregators.mean().update(
        jnp.array([[1.0, 10.0], [4.0, 40.0], [9.0, jnp.nan]]),
        jnp.array([3.0, 1.0, 0.0]),
        (),
        root_key(0),
    )
    np.testing.assert_allclose(aggregate, [7 / 4, 70 / 4])
    assert state == ()
    assert metrics == {}


def test_the_mean_of_nobody_is_zero():
    stacked = jnp.full((3, 2), jnp.inf)
    aggregate, _, _ = aggregators.mean().update(stacked, jnp.zeros(3), (), root_key(0))
    np.testing.assert_array_equal(aggregate, 0)


def test_the_mean_is_a_mean_for_tiny_and_huge_weights():
    stacked = stacks()["bare"]
    base, _, _ = apply("mean", stacked, some_weights())
    for factor in (1e-20, 1e20):
        scaled, _, _ = apply("mean", stacked, some_weights() * factor)
        np.testing.assert_allclose(scaled, base, rtol=1e-5, atol=1e-7)
