"""Chains: order, memory, keys, and the bound that a chain announces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import ClientContext, ClientTransform
from fedjax_health.transforms import chain, identity
from fedjax_health.transforms.compose import bound_leaf


def _add(updates, memory, context):
    grown = jax.tree.map(lambda x: x + context.shared["step"], updates)
    return grown, memory + 1, {"norm": jnp.sum(updates["w"])}


def _double(updates, memory, context):
    del context
    return jax.tree.map(lambda x: 2 * x, updates), memory, ()


def _noise(updates, memory, context):
    draw = jax.random.normal(context.key, updates["w"].shape)
    return {"w": updates["w"] + draw}, memory, draw


def _grow(shared, report, key):
    del key
    return {"step": shared["step"] + report["norm"]}


def _draw(shared, report, key):
    del shared, report
    return jax.random.uniform(key)


def _keep(shared, report, key):
    del report, key
    return shared


def _same(message):
    return message


def adder(step):
    return ClientTransform(
        init=lambda params: jnp.int32(0),
        init_server=lambda params: {"step": jnp.float32(step)},
        update=_add,
        reduce=_grow,
        check=_same,
    )


def doubler():
    return ClientTransform(lambda params: (), lambda params: (), _double, _keep, _same)


def noiser():
    return ClientTransform(
        lambda params: (), lambda params: jnp.float32(0), _noise, _draw, _same
    )


def clipper(bound, name="clip_norm"):
    """Announces a bound, and carries it in its shared value."""
    return ClientTransform(
        init=lambda params: (),
        init_server=lambda params: {name: jnp.float32(bound)},
        update=lambda updates, memory, context: (updates, memory, ()),
        reduce=lambda shared, report, key: shared,
        check=lambda message: dataclasses.replace(message, bound=name),
    )


def unbounded():
    return doubler()._replace(check=lambda m: dataclasses.replace(m, bound=None))


def context_for(transform, params, seed=0):
    return ClientContext(
        key=root_key(seed),
        round=jnp.int32(0),
        weight=jnp.float32(1),
        params=params,
        shared=transform.init_server(params),
    )


def apply(transform, params):
    return jax.jit(transform.update)(
        params, transform.init(params), context_for(transform, params)
    )


PARAMS = {"w": jnp.array([1.0, -2.0, 3.0])}


def test_the_identity_passes_everything_on():
    transform = identity()
    assert transform is identity()
    updates, memory, report = apply(transform, PARAMS)
    np.testing.assert_array_equal(updates["w"], PARAMS["w"])
    assert jax.tree.leaves((memory, report)) == []
    message = Message(num_params=3, bits=8)
    assert transform.check(message) == message


def test_parts_are_applied_in_order():
    first, _, _ = apply(chain(adder(10.0), doubler()), PARAMS)
    np.testing.assert_array_equal(first["w"], 2 * (PARAMS["w"] + 10))
    second, _, _ = apply(chain(doubler(), adder(10.0)), PARAMS)
    np.testing.assert_array_equal(second["w"], 2 * PARAMS["w"] + 10)


def test_every_part_has_its_memory_report_and_shared_value():
    transform = chain(adder(1.0), doubler(), adder(5.0))
    updates, memory, report = apply(transform, PARAMS)
    assert [int(m) for m in (memory[0], memory[2])] == [1, 1]
    assert memory[1] == ()
    assert float(report[0]["norm"]) == 2.0
    assert float(report[2]["norm"]) == 2 * (2.0 + 3)
    shared = transform.reduce(transform.init_server(PARAMS), report, root_key(0))
    assert float(shared[0]["step"]) == 1.0 + 2.0
    assert float(shared[2]["step"]) == 5.0 + 10.0
    np.testing.assert_array_equal(updates["w"], 2 * (PARAMS["w"] + 1) + 5)


def test_every_part_has_a_key_of_its_own():
    transform = chain(noiser(), noiser(), chain(noiser(), noiser()))
    _, _, report = apply(transform, PARAMS)
    draws = jnp.stack(jax.tree.leaves(report))
    assert len(np.unique(np.asarray(draws))) == 12
    shared = transform.reduce(transform.init_server(PARAMS), report, root_key(1))
    assert len(set(map(float, jax.tree.leaves(shared)))) == 4


def test_an_empty_chain_is_the_identity():
    transform = chain()
    updates, memory, report = apply(transform, PARAMS)
    np.testing.assert_array_equal(updates["w"], PARAMS["w"])
    assert jax.tree.leaves((memory, report)) == []
    assert transform.check(Message(num_params=3)) == Message(num_params=3)


def test_chains_nest():
    flat, _, _ = apply(chain(adder(1.0), doubler(), adder(5.0)), PARAMS)
    for nested in (
        chain(chain(adder(1.0), doubler()), adder(5.0)),
        chain(adder(1.0), chain(doubler(), chain(adder(5.0)))),
    ):
        np.testing.assert_array_equal(apply(nested, PARAMS)[0]["w"], flat["w"])


def test_chains_that_differ_in_numbers_share_their_functions():
    """What a program is compiled for: the same objects for the same parts."""
    one, other = chain(adder(1.0), doubler()), chain(adder(2.0), doubler())
    assert one.update is other.update
    assert one.reduce is other.reduce
    assert chain(doubler(), adder(1.0)).update is not one.update


BOUNDS = {
    "none": (chain(doubler()), None),
    "one clip": (chain(clipper(1.0)), 1.0),
    "clip after another": (chain(doubler(), clipper(2.0)), 2.0),
    "kept through others": (chain(clipper(3.0), adder(0.0)), 3.0),
    "the last clip counts": (chain(clipper(3.0), clipper(4.0)), 4.0),
    "another name": (chain(clipper(3.0), clipper(4.0, "radius")), 4.0),
    "dropped": (chain(clipper(3.0), unbounded()), None),
    "dropped and found again": (
        chain(clipper(3.0), unbounded(), clipper(5.0)),
        5.0,
    ),
    "nested": (chain(adder(0.0), chain(doubler(), clipper(6.0))), 6.0),
    "nested after a clip": (chain(clipper(1.0), chain(clipper(7.0))), 7.0),
    "nested, kept from outside": (chain(clipper(1.0), chain(doubler())), 1.0),
    "deeply nested": (
        chain(clipper(1.0), chain(clipper(2.0), chain(clipper(8.0), adder(0.0)))),
        8.0,
    ),
    "nested first, then kept": (chain(chain(clipper(9.0)), doubler()), 9.0),
    "beyond nine": (chain(*[doubler()] * 11, clipper(11.0)), 11.0),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_the_bound_names_the_leaf_that_carries_it(name):
    transform, value = BOUNDS[name]
    message = transform.check(Message(num_params=3))
    if value is None:
        assert message.bound is None
    else:
        assert message.bound is not None
        assert "." not in message.bound
        shared = transform.init_server(PARAMS)
        assert float(bound_leaf(shared, message.bound)) == value


def test_check_folds_from_the_left_and_passes_errors_on():
    def refuse(message):
        if message.bits < 32:
            raise CompositionError("quantise last")
        return message

    def quantise(message):
        return dataclasses.replace(message, bits=8, density=message.density / 2)

    strict = doubler()._replace(check=refuse)
    coarse = doubler()._replace(check=quantise)
    message = chain(strict, coarse, coarse).check(Message(num_params=16))
    assert (message.bits, message.density) == (8, 0.25)
    with pytest.raises(CompositionError, match="quantise last"):
        chain(coarse, strict).check(Message(num_params=16))


def test_a_bound_is_found_in_records_too():
    state = chain(clipper(2.0)).init_server(PARAMS)
    assert float(bound_leaf((jnp.int32(0), *state), "1/clip_norm")) == 2.0
    context = context_for(identity(), PARAMS)
    assert float(bound_leaf((context,), "0/weight")) == 1.0
