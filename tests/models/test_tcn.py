import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.models import tcn_detector
from fedjax_health.models.tcn import unfold

FEATURES, HIDDEN, LEVELS, KERNEL = 3, 4, 2, 3


@functools.cache
def make(**changes):
    settings = {"hidden": HIDDEN, "levels": LEVELS, "kernel": KERNEL, **changes}
    model = tcn_detector(FEATURES, **settings)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    return jax.jit(model.apply), params


def inputs(*, examples=3, time=9, seed=1):
    values = np.random.default_rng(seed).normal(size=(examples, time, FEATURES))
    return jnp.asarray(values, jnp.float32)


def layer_norm(x, params):
    apart = x - x.mean(-1, keepdims=True)
    scaled = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * params["scale"] + params["bias"]


def oracle(params, x, valid):
    """One step of one example at a time."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    encoder, head = params["encoder"]["convolutions"], params["head"]
    logits = np.zeros(x.shape[:2])
    for e, sequence in enumerate(np.asarray(x, np.float64)):
        values = sequence @ encoder["projection"]["kernel"]
        values = values + encoder["projection"]["bias"]
        for level in range(LEVELS):
            read = layer_norm(values, encoder[f"norm_{level}"])
            conv = encoder[f"conv_{level}"]
            found = np.zeros_like(values)
            for t in range(len(values)):
                total = conv["bias"].copy()
                for tap in range(KERNEL):
                    at = t - (KERNEL - 1 - tap) * 2**level
                    if at >= 0 and valid[e, at]:
                        rows = slice(tap * HIDDEN, (tap + 1) * HIDDEN)
                        total = total + read[at] @ conv["kernel"][rows]
                found[t] = np.maximum(total, 0)
            values = values + found
        states = layer_norm(values, encoder["norm"])
        logits[e] = (states @ head["kernel"] + head["bias"])[:, 0]
    return logits


@pytest.mark.parametrize("filled", [False, True])
def test_logits_equal_the_formula(filled):
    apply, params = make()
    x, valid = inputs(), np.ones((3, 9), np.float32)
    if filled:
        valid[0, :4] = 0
    batch = {"x": x, "valid": jnp.asarray(valid)} if filled else {"x": x}
    np.testing.assert_allclose(
        apply(params, batch), oracle(params, x, valid), atol=1e-4
    )


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (3, 2), (3, 8)])
def test_unfold_equals_a_loop(kernel, dilation):
    x = np.random.default_rng(0).normal(size=(7, 2, 3))
    want = np.zeros((7, 2, 3 * kernel))
    for t in range(7):
        for tap in range(kernel):
            at = t - (kernel - 1 - tap) * dilation
            if at >= 0:
                want[t, :, 3 * tap : 3 * tap + 3] = x[at]
    got = unfold(jnp.asarray(x), kernel=kernel, dilation=dilation)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_causal_with_the_stated_reach():
    apply, params = make(kernel=2, levels=2)
    x = inputs()
    before = apply(params, {"x": x})
    after = apply(params, {"x": x.at[:, 4].add(1.0)})
    moved = np.abs(np.asarray(before - after)).max(axis=0) > 1e-6
    # Itself and (2 - 1) (2^2 - 1) = 3 steps before: steps 4 to 7 see step 4.
    np.testing.assert_array_equal(np.flatnonzero(moved), [4, 5, 6, 7])


def test_rows_that_fill_up_a_window_change_nothing():
    apply, params = make()
    whole = inputs()
    short = apply(params, {"x": whole[:, 4:]})
    valid = jnp.ones((3, 9)).at[:, :4].set(0)
    filled = apply(params, {"x": whole, "valid": valid})
    np.testing.assert_allclose(filled[:, 4:], short, atol=1e-5)


def test_one_answer_for_a_window():
    apply, params = make(target="entity")
    row, _ = make()
    found = apply(params, {"x": inputs()})
    np.testing.assert_allclose(found, row(params, {"x": inputs()})[:, -1], atol=1e-5)


def test_dropout_acts_with_a_key_only():
    apply, params = make(dropout=0.5)
    still, _ = make()
    batch = {"x": inputs()}
    np.testing.assert_array_equal(apply(params, batch), still(params, batch))
    dropped = apply(params, batch, key=jax.random.key(0))
    assert not np.allclose(dropped, still(params, batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 0}, "hidden=0"),
        ({"levels": 0}, "levels=0"),
        ({"kernel": 1}, "kernel=1 must be 2 or more"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"pooling": "first"}, "pooling='first'"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tcn_detector(FEATURES, **change)


def test_equal_settings_give_the_same_functions():
    assert tcn_detector(3) is tcn_detector(np.int64(3), levels=np.int64(4), dropout=0)
    assert tcn_detector(3).apply is not tcn_detector(3, levels=3).apply
