"""What every public transform promises; a new one joins by being in ``__all__``."""

import functools
import inspect

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import transforms
from fedjax_health.core import trees
from fedjax_health.core.message import Message
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import ClientContext, ClientTransform
from fedjax_health.transforms.compose import bound_leaf

# A constructor that cannot be called without arguments has its own here.
ARGUMENTS: dict[str, tuple] = {
    "adaptive_clip": (0.7,),
    "chain": (transforms.clip_l2(1.5), transforms.identity()),
    "clip_l2": (2.0,),
    "clip_per_leaf": (2.0,),
    "ef21": (transforms.top_k(0.3),),
    "error_feedback": (transforms.random_k(0.3),),
    "random_k": (0.3,),
    "threshold": (0.5,),
    "top_k": (0.3,),
}
# What sends a message of another structure: its coordinates alone.
COMPACT = ("error_feedback", "random_k")
KEYWORDS: dict[str, dict] = {"adaptive_clip": {"cohort": 40}}


def build(name) -> ClientTransform:
    constructor = getattr(transforms, name)
    return constructor(*ARGUMENTS.get(name, ()), **KEYWORDS.get(name, {}))


def public_transforms():
    return [
        name
        for name in transforms.__all__
        if callable(getattr(transforms, name))
        and not inspect.isclass(getattr(transforms, name))
    ]


every_transform = pytest.mark.parametrize("name", public_transforms())
# Those whose many operations take seconds to compile one by one, or under vmap.
HEAVY = ("drive", "eden", "ef21", "error_feedback", "qsgd", "sign", "terngrad")
every_light_transform = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name
        for name in public_transforms()
    ],
)


def trees_of_updates():
    rng = np.random.default_rng(0)
    return {
        "nested": {
            "kernel": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32),
            "rest": [jnp.asarray(rng.normal(size=7), jnp.float32), jnp.float32(0.3)],
        },
        "bare": jnp.asarray(rng.normal(size=33), jnp.float32),
    }


def context_for(transform, params, seed=0):
    return ClientContext(
        key=root_key(seed),
        round=jnp.int32(4),
        weight=jnp.float32(3),
        params=params,
        shared=transform.init_server(params),
    )


def assert_same_kind(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert jnp.shape(x) == jnp.shape(y)
        assert jnp.result_type(x) == jnp.result_type(y)


def assert_close(a, b):
    assert_same_kind(a, b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@functools.cache
def compiled(name, kind):
    transform = build(name)
    updates = trees_of_updates()[kind]
    return transform, updates, jax.jit(transform.update)


every_tree = pytest.mark.parametrize(
    "kind", ["nested", pytest.param("bare", marks=pytest.mark.slow)]
)


@every_tree
@every_transform
def test_structure_shapes_and_dtypes_are_kept(name, kind):
    transform, updates, update = compiled(name, kind)
    context = context_for(transform, updates)
    memory = transform.init(updates)
    sent, kept, report = update(updates, memory, context)
    if name not in COMPACT:
        assert_same_kind(sent, updates)
    assert_same_kind(kept, memory)
    shared = context.shared
    if transform.restore is not None:
        restored, shared = transform.restore(sent, shared, updates)
        assert_same_kind(restored, updates)
        assert_same_kind(shared, context.shared)
    shared = transform.reduce(shared, report, root_key(1))
    assert_same_kind(shared, context.shared)
    # And once more from the memory that it left.
    again, kept, _ = update(updates, kept, context._replace(shared=shared))
    assert_same_kind(again, sent)
    assert_same_kind(kept, memory)


@every_tree
@every_light_transform
def test_jit_equals_eager(name, kind):
    transform, updates, update = compiled(name, kind)
    arguments = updates, transform.init(updates), context_for(transform, updates)
    assert_close(update(*arguments), transform.update(*arguments))


@every_tree
@every_light_transform
def test_a_mapped_cohort_equals_its_clients_one_by_one(name, kind):
    transform, updates, update = compiled(name, kind)
    factors = [1.0, -0.5, 20.0]
    many = [jax.tree.map(lambda x, f=f: x * f, updates) for f in factors]
    context = context_for(transform, updates)
    keys = jax.random.split(root_key(3), 3)
    stack = jax.tree.map(lambda *x: jnp.stack(x), *many)
    memory = transform.init(updates)

    def one(value, key):
        return transform.update(value, memory, context._replace(key=key))

    mapped = jax.jit(jax.vmap(one))(stack, keys)
    for i, value in enumerate(many):
        alone = update(value, memory, context._replace(key=keys[i]))
        assert_close(jax.tree.map(lambda x, i=i: x[i], mapped), alone)


@every_tree
@every_transform
def test_the_same_key_gives_the_same_message(name, kind):
    transform, updates, update = compiled(name, kind)
    arguments = updates, transform.init(updates), context_for(transform, updates)
    first, second = update(*arguments), update(*arguments)
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(x, y)


@every_transform
def test_zero_updates_give_zero_messages(name):
    transform, updates, update = compiled(name, "nested")
    zeros = jax.tree.map(jnp.zeros_like, updates)
    context = context_for(transform, updates)
    sent, kept, report = update(zeros, transform.init(updates), context)
    for x in jax.tree.leaves((sent, kept, report)):
        assert np.all(np.isfinite(np.asarray(x, np.float64)))
    for x in jax.tree.leaves(sent):
        np.testing.assert_array_equal(x, 0)


@every_tree
@every_transform
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_update_leaves_its_mark(name, kind, bad):
    transform, updates, update = compiled(name, kind)
    context = context_for(transform, updates)
    for place in range(0, trees.num_params(updates), 5):
        flat, back = jax.flatten_util.ravel_pytree(updates)
        broken = back(flat.at[place].set(bad))
        sent, _, _ = update(broken, transform.init(updates), context)
        assert not bool(trees.all_finite(sent))


@every_transform
def test_measures_are_numbers_of_the_round(name):
    transform, updates, update = compiled(name, "nested")
    context = context_for(transform, updates)
    _, _, report = update(updates, transform.init(updates), context)
    if transform.measure is None:
        # What nobody reads is not summed over the cohort either.
        assert not jax.tree.leaves(report)
        return
    said = transform.measure(report, context.shared, jnp.float32(1))
    for x in said.values():
        assert x.shape == ()
        assert np.isfinite(x)


@every_transform
def test_check_yields_a_message_of_the_same_model(name):
    message = build(name).check(Message(num_params=1000))
    assert message.num_params == 1000
    assert 0 < message.density <= 1
    assert message.bits > 0
    assert message.uplink_bytes() > 0


@every_transform
def test_equal_arguments_share_their_functions(name):
    one, other = build(name), build(name)
    assert one.update is other.update
    assert one.reduce is other.reduce


@every_tree
@every_transform
def test_an_announced_bound_holds(name, kind):
    transform, updates, update = compiled(name, kind)
    message = transform.check(Message(num_params=trees.num_params(updates)))
    if message.bound is None:
        pytest.skip("announces no bound")
    context = context_for(transform, updates)
    bound = float(bound_leaf(context.shared, message.bound))
    assert 0 < bound < np.inf
    for factor in (0.0, 1e-8, 1e-3, 1.0, 1e3, 1e12):
        large = jax.tree.map(lambda x, f=factor: x * f, updates)
        sent, _, _ = update(large, transform.init(updates), context)
        leaves = [np.ravel(x).astype(np.float64) for x in jax.tree.leaves(sent)]
        assert np.linalg.norm(np.concatenate(leaves)) <= bound * (1 + 1e-5)
