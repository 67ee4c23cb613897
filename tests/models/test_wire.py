"""The wire against NumPy, its noise against its law, its bytes against a packing."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.models.wire import (
    ClipExample,
    DropActivations,
    Marvell,
    MaxNorm,
    Noise,
    Quantise,
    TopK,
    compressive,
    crossing,
    protective,
    wire_bytes,
)

KEY = jax.random.key(3, impl="threefry2x32")


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def compiled(activations, cotangents, axis):
    """Returns ``(values, key, labels, counts, cotangent) -> (values, cotangent)``."""
    cross = crossing(activations, cotangents)

    @jax.jit
    def both(values, key, labels, counts, cotangent):
        def forward(v):
            return cross(v, key=key, examples_axis=axis, labels=labels, counts=counts)

        out, pull = jax.vjp(forward, values)
        return out, pull(cotangent)[0]

    return both


def send(steps, values, *, key=KEY, axis=0, labels=None, counts=None):
    values = jnp.asarray(values)
    run = compiled(tuple(steps), (), axis)
    return np.asarray(run(values, key, labels, counts, values)[0])


def pulled(steps, values, cotangent, *, key=KEY, axis=0):
    run = compiled(tuple(steps), (), axis)
    values, cotangent = jnp.asarray(values), jnp.asarray(cotangent)
    return np.asarray(run(values, key, None, None, cotangent)[1])


def back(steps, cotangent, *, key=KEY, axis=0, labels=None, counts=None):
    cotangent = jnp.asarray(cotangent)
    run = compiled((), tuple(steps), axis)
    return np.asarray(run(cotangent, key, labels, counts, cotangent)[1])


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: ClipExample(0), "max_norm"),
        (lambda: ClipExample(math.nan), "max_norm"),
        (lambda: Noise(-1), "multiplier"),
        (lambda: Noise(math.inf), "multiplier"),
        (lambda: Quantise(1), "2 to 16"),
        (lambda: Quantise(17), "2 to 16"),
        (lambda: Quantise(4.5), "2 to 16"),
        (lambda: TopK(0), "keep"),
        (lambda: TopK(1.1), "keep"),
        (lambda: DropActivations(1.0), "rate"),
        (lambda: Marvell(0), "power"),
        (lambda: crossing(("clip",), ()), "no step"),
        (lambda: crossing((Noise(1),), ()), "put a ClipExample before"),
        (lambda: crossing((Noise(1), ClipExample(1)), ()), "put a ClipExample before"),
        (lambda: crossing((TopK(0.5), TopK(0.2)), ()), "twice"),
        (lambda: crossing((MaxNorm(),), ()), "cotangents"),
        (lambda: crossing((Marvell(1),), ()), "cotangents"),
        (lambda: crossing((ClipExample(1), Quantise(4), Noise(1)), ()), "lengthen"),
        (
            lambda: crossing((), (ClipExample(1), DropActivations(0.1), Noise(1))),
            "lengthen",
        ),
        (
            lambda: crossing((), (Marvell(1), ClipExample(1), Noise(1))),
            "no guarantee",
        ),
        (
            lambda: crossing((), (ClipExample(1), Noise(1), Marvell(1))),
            "no guarantee",
        ),
        (lambda: wire_bytes((), 0), "numbers"),
    ],
)
def test_what_has_no_meaning_is_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_equal_steps_are_one_function():
    def steps():
        return [ClipExample(1.0), TopK(0.5), Noise(0.5), DropActivations(0.1)]

    assert {ClipExample(2.0), ClipExample(2)} == {ClipExample(2.0)}
    assert crossing(steps(), [MaxNorm()]) is crossing(tuple(steps()), (MaxNorm(),))
    assert crossing(steps(), ()) is not crossing((), ())


def test_shapes_that_do_not_fit_are_refused():
    cross, values = crossing((), ()), jnp.zeros((4, 2))
    for axis in (1, -1, 5):
        with pytest.raises(ValueError, match="examples_axis"):
            cross(values, key=None, examples_axis=axis)
    with pytest.raises(ValueError, match="labels"):
        cross(values, key=None, examples_axis=0, labels=jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="counts"):
        cross(values, key=None, examples_axis=0, counts=jnp.zeros(3))
    with pytest.raises(ValueError, match="give the labels"):
        crossing((), (Marvell(1),))(values, key=KEY, examples_axis=0)


def test_without_steps_nothing_happens():
    values = jnp.asarray(draw((3, 5, 4)))
    assert crossing((), ())(values, key=KEY, examples_axis=1) is values
    weights = jnp.asarray(draw((4, 4), 1))

    def loss(w, cut):
        hidden = jnp.tanh(values @ w)
        return jnp.sum(jnp.sin(cut(hidden) @ w))

    # A cut that acts on neither is the same program.
    cuts = (
        lambda h: h,
        lambda h: crossing((), ())(h, key=KEY, examples_axis=1),
        lambda h: crossing((), (MaxNorm(),))(h, key=None, examples_axis=1),
    )
    uncut, *others = (
        np.asarray(jax.jit(jax.grad(loss), static_argnums=1)(weights, c)) for c in cuts
    )
    for other in others:
        np.testing.assert_array_equal(other, uncut)
    # One that lets everything pass changes no bit either.
    steps = (ClipExample(1e30), TopK(1.0), DropActivations(0.0))
    whole = crossing(steps, steps)
    through = jax.jit(
        jax.grad(lambda w: loss(w, lambda h: whole(h, key=KEY, examples_axis=1)))
    )
    np.testing.assert_array_equal(np.asarray(through(weights)), uncut)


def test_clip_is_by_example_over_time_and_width_and_differentiable():
    values = draw((6, 3, 4)) * np.array([0.01, 1.0, 5.0], np.float32)[:, None]
    sent = send((ClipExample(2.0),), values, axis=1)
    norms = np.sqrt(np.sum(values**2, axis=(0, 2)))
    factor = np.minimum(1, 2 / norms)
    assert norms[0] < 2 < norms[1]
    np.testing.assert_allclose(sent, values * factor[:, None], rtol=1e-6)
    np.testing.assert_array_equal(sent[:, 0], values[:, 0])
    slope = pulled((ClipExample(2.0),), values, values**2, axis=1)
    g, v = (values**2)[:, 2], values[:, 2]
    inner = np.sum(g * v)
    oracle = 2 / norms[2] * (g - v * inner / norms[2] ** 2)
    np.testing.assert_allclose(slope[:, 2], oracle, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(slope[:, 0], (values**2)[:, 0])


def test_noise_has_its_law_and_the_gradient_passes_it():
    values = draw((200, 50)) * 0.01
    steps = (ClipExample(2.0), Noise(0.5))
    noise = send(steps, values) - values
    # 10,000 numbers of deviation 1: standard errors .01 and .007.
    assert abs(np.mean(noise)) < 0.04
    assert abs(np.std(noise) - 1.0) < 0.03
    assert abs(np.mean(np.abs(noise) > 1.96) - 0.05) < 0.01
    assert abs(np.mean(noise[:, :-1] * noise[:, 1:])) < 0.04
    other = send(steps, values, key=jax.random.fold_in(KEY, 1)) - values
    assert abs(np.mean(noise * other)) < 0.04
    np.testing.assert_array_equal(send(steps, values, key=None), values)
    # The way back has draws of its own.
    there = back(steps, values) - values
    assert abs(np.std(there) - 1.0) < 0.03
    assert abs(np.mean(noise * there)) < 0.04
    np.testing.assert_array_equal(pulled(steps, values, noise), noise)


@pytest.mark.parametrize("bits", [2, 16])
def test_quantise_is_on_its_grid_and_unbiased(bits):
    values = draw((4, 3, 5), bits)
    levels = 2 ** (bits - 1) - 1
    scale = np.max(np.abs(values), axis=(0, 2))[None, :, None]
    ratio = values / (scale / levels)
    nearest = send((Quantise(bits),), values, key=None, axis=1)
    np.testing.assert_allclose(nearest, np.round(ratio) * scale / levels, rtol=1e-5)
    cross = crossing((Quantise(bits),), ())
    keys = jax.random.split(KEY, 2000)
    drawn = np.asarray(
        jax.jit(jax.vmap(lambda k: cross(jnp.asarray(values), key=k, examples_axis=1)))(
            keys
        )
    )
    found = drawn / (scale / levels)
    np.testing.assert_allclose(found, np.round(found), atol=levels * 1e-5)
    assert np.max(np.abs(found - ratio)) < 1.01
    # Standard error of the mean of 2,000 draws: at most .5 / 45.
    assert np.max(np.abs(np.mean(found, axis=0, dtype=float) - ratio)) < 0.06
    slope = pulled((Quantise(bits),), np.ones((4, 3, 5), np.float32), values, axis=1)
    np.testing.assert_array_equal(slope, values)


@pytest.mark.parametrize("keep", [0.01, 0.3, 1.0])
def test_top_k_keeps_the_largest_and_the_first_of_equals(keep):
    values = np.round(draw((5, 7, 4)) * 2) / 2
    values[:, 1] = 0
    values[:, 2] = 1
    sent = send((TopK(keep),), values, axis=1)
    count = max(1, round(keep * 20))
    for i in range(7):
        flat = values[:, i].reshape(-1)
        order = np.argsort(-np.abs(flat), kind="stable")[:count]
        oracle = np.zeros_like(flat)
        oracle[order] = flat[order]
        np.testing.assert_array_equal(sent[:, i].reshape(-1), oracle)
    slope = pulled((TopK(keep),), values, np.full_like(values, 3), axis=1)
    assert np.all(slope[:, 3][sent[:, 3] != 0] == 3)
    assert np.sum(slope[:, 3] == 3) == count


def test_dropout_is_a_mask_in_both_directions_and_unbiased():
    values = draw((100, 100)) + 5
    sent = send((DropActivations(0.25),), values)
    dropped = sent == 0
    assert abs(np.mean(dropped) - 0.25) < 0.02
    np.testing.assert_allclose(sent[~dropped], values[~dropped] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(
        send((DropActivations(0.25),), values, key=None), values
    )
    slope = pulled((DropActivations(0.25),), values, np.ones_like(values))
    np.testing.assert_allclose(slope, np.where(dropped, 0, 1 / 0.75), rtol=1e-6)


def test_max_norm_evens_out_the_expected_norms_along_each_direction():
    cotangent = draw((6, 2, 3)) * 1e-12
    cotangent[0, 0] = 0
    keys = jax.random.split(KEY, 4000)
    cross = crossing((), (MaxNorm(),))

    def once(key):
        forward = functools.partial(cross, key=key, examples_axis=1)
        return jax.vjp(forward, jnp.zeros((6, 2, 3)))[1](jnp.asarray(cotangent))[0]

    sent = np.asarray(jax.jit(jax.vmap(once))(keys)).astype(float) * 1e12
    rows = cotangent.astype(float) * 1e12
    norms = np.sum(rows**2, axis=-1)
    largest = np.max(norms)
    found = np.mean(np.sum(sent**2, axis=-1), axis=0)
    assert found[0, 0] == 0
    rest = norms > 0
    # A squared normal has deviation sqrt(2) of its mean: standard error .022.
    np.testing.assert_allclose(found[rest], largest, rtol=0.15)
    np.testing.assert_allclose(np.mean(sent, axis=0), rows, atol=0.15)
    unit = rows[rest] / np.sqrt(norms[rest])[:, None]
    seen = sent[:, rest]
    along = np.sum(seen * unit, axis=-1, keepdims=True) * unit
    np.testing.assert_allclose(seen, along, atol=1e-4)
    top = np.unravel_index(np.argmax(norms), norms.shape)
    loudest = sent[:, top[0], top[1]]
    np.testing.assert_allclose(loudest, np.tile(rows[top], (4000, 1)), rtol=1e-5)


ALL_BACK = [
    (ClipExample(1.0), TopK(0.5), Noise(1.0), Quantise(4)),
    (DropActivations(0.3), ClipExample(1.0), MaxNorm()),
    (Marvell(2.0), TopK(0.5)),
]


@pytest.mark.parametrize("steps", ALL_BACK)
def test_filler_and_zero_rows_do_no_harm(steps):
    rng = np.random.default_rng(0)
    cotangent = draw((3, 8, 4))
    cotangent[:, 1] = 0
    labels = jnp.asarray(rng.integers(0, 2, (3, 8)))
    counts = np.ones(8, np.float32)
    counts[6:] = 0
    seen = {}
    for filler in (0.0, 1e3, np.nan):
        cotangent[:, 6:] = filler
        seen[filler] = back(
            steps, cotangent, axis=1, labels=labels, counts=jnp.asarray(counts)
        )
    for sent in seen.values():
        np.testing.assert_array_equal(sent[:, 6:], 0)
        np.testing.assert_array_equal(sent, seen[0.0])
        assert np.all(np.isfinite(sent))
    zeros = np.zeros((3, 8, 4), np.float32)
    zero = back(steps, zeros, axis=1, labels=labels, counts=jnp.ones(8))
    assert np.all(np.isfinite(zero))


def test_filler_steps_are_like_filler_examples():
    steps, cotangent = (ClipExample(1.0), Noise(1.0)), draw((3, 8, 4))
    counts = jnp.asarray([1.0] * 6 + [0.0] * 2)
    by_example = back(steps, cotangent, axis=1, counts=counts)
    by_row = back(steps, cotangent, axis=1, counts=jnp.broadcast_to(counts, (3, 8)))
    np.testing.assert_allclose(by_row, by_example, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(by_row[:, 6:], 0)


def test_zero_rows_have_gradients():
    steps = (DropActivations(0.3), ClipExample(1.0), TopK(0.5), Noise(1.0), Quantise(4))
    zeros = np.zeros((8, 4), np.float32)
    slope = pulled(steps, zeros, zeros + 1)
    assert np.all(np.isfinite(slope))
    assert np.any(slope)


@pytest.mark.slow
def test_clients_in_one_program_and_one_by_one():
    steps = (ClipExample(1.0), Noise(0.5), Quantise(4), TopK(0.5))
    cross = crossing(steps, (Marvell(1.0), Quantise(8)))
    values, labels = jnp.asarray(draw((3, 6, 4))), jnp.arange(18).reshape(3, 6) % 2
    keys = jax.random.split(KEY, 3)

    def slope(v, key, label):
        def of(v):
            return jnp.sum(
                cross(v, key=key, examples_axis=0, labels=label, counts=jnp.ones(6))
                ** 2
            )

        return jax.grad(of)(v)

    together = jax.jit(jax.vmap(slope))(values, keys, labels)
    alone = jnp.stack(
        [jax.jit(slope)(*each) for each in zip(values, keys, labels, strict=True)]
    )
    # The grid of Marvell is searched in float32: its best point is known to that.
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3)


def test_evaluation_leaves_cotangents_alone():
    cotangent = draw((5, 4))
    for steps in ALL_BACK:
        np.testing.assert_array_equal(back(steps, cotangent, key=None), cotangent)


def pack(message, steps, scale):
    """Returns the bytes of one message, as a sender would write them."""
    bits = next((s.bits for s in steps if isinstance(s, Quantise)), None)
    keep = next((s.keep for s in steps if isinstance(s, TopK)), 1.0)
    n = len(message)
    k = max(1, round(keep * n))
    # Zeros fill up a message of which fewer than k numbers differ from 0.
    at = np.sort(np.argsort(message == 0, kind="stable")[:k])
    out = b""
    if k < n:
        each = (n - 1).bit_length()
        if k * each < n:
            flags = (at[:, None] >> np.arange(each)[::-1]) & 1
        else:
            flags = np.isin(np.arange(n), at)
        out += np.packbits(flags.astype(np.uint8).reshape(-1)).tobytes()
    if bits is None:
        return out + message[at].astype("<f4").tobytes()
    most = 2 ** (bits - 1) - 1
    step = scale * np.float32(1 / most)
    level = np.zeros(k) if step == 0 else np.round(message[at] / step)
    words = (level + most).astype(np.int64)
    digits = (words[:, None] >> np.arange(bits)[::-1]) & 1
    packed = np.packbits(digits.astype(np.uint8).reshape(-1)).tobytes()
    return out + np.float32(scale).tobytes() + packed


def unpack(data, steps, n):
    """Returns the message of these bytes."""
    bits = next((s.bits for s in steps if isinstance(s, Quantise)), None)
    keep = next((s.keep for s in steps if isinstance(s, TopK)), 1.0)
    k = max(1, round(keep * n))
    at = np.arange(n)
    if k < n:
        each = (n - 1).bit_length()
        length = -(-min(k * each, n) // 8)
        flags = np.unpackbits(np.frombuffer(data[:length], np.uint8))
        if k * each < n:
            digits = flags[: k * each].reshape(k, each).astype(int)
            at = digits @ (1 << np.arange(each)[::-1])
        else:
            at = np.flatnonzero(flags[:n])
        data = data[length:]
    message = np.zeros(n, np.float32)
    if bits is None:
        message[at] = np.frombuffer(data, "<f4")
        return message
    scale = np.frombuffer(data[:4], np.float32)[0]
    digits = np.unpackbits(np.frombuffer(data[4:], np.uint8))[: k * bits]
    words = digits.reshape(k, bits).astype(int) @ (1 << np.arange(bits)[::-1])
    most = 2 ** (bits - 1) - 1
    step = scale * np.float32(1 / most)
    message[at] = (words - most).astype(np.float32) * step
    return message


@pytest.mark.parametrize(
    "shape", [(37,), pytest.param((5, 32), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "steps",
    [
        (),
        (ClipExample(1.0), Noise(1.0)),
        (Quantise(3),),
        (TopK(0.02),),
        (TopK(0.1), Quantise(6)),
        (Quantise(16), TopK(0.3)),
        (ClipExample(1.0), Noise(0.5), TopK(0.25), Quantise(4), DropActivations(0.2)),
    ],
)
def test_a_packed_message_has_that_many_bytes_and_is_the_message(steps, shape):
    values = draw((3, *shape), 5)
    numbers = math.prod(shape)
    before = tuple(s for s in steps if isinstance(s, ClipExample | Noise))
    # Zeros of dropout save nothing and are sent as what they are.
    coded = tuple(s for s in steps if not isinstance(s, DropActivations))
    sent = send(coded, values)
    scales = np.max(np.abs(send(before, values).reshape(3, -1)), axis=1)
    for message, scale in zip(sent.reshape(3, -1), scales, strict=True):
        data = pack(message, coded, scale)
        assert len(data) == wire_bytes(steps, numbers)
        np.testing.assert_array_equal(unpack(data, coded, numbers), message)


def test_bytes_by_hand():
    assert wire_bytes((), 64) == 256
    assert wire_bytes((Quantise(4),), 64) == 36
    assert wire_bytes((TopK(0.5),), 64) == 4 * 32 + 8
    assert wire_bytes((TopK(1 / 64),), 64) == 4 + 1
    # Noise and label protection fill the message up again.
    assert wire_bytes((ClipExample(1), TopK(0.1), Noise(1)), 64) == 256
    assert wire_bytes((Quantise(4), Marvell(1)), 64) == 256
    assert wire_bytes((ClipExample(1), TopK(0.5), Noise(0)), 64) == 4 * 32 + 8


def test_sublists():
    steps = (ClipExample(1.0), Noise(1.0), Quantise(4), TopK(0.5), MaxNorm())
    assert protective(steps) == (ClipExample(1.0), Noise(1.0), MaxNorm())
    assert compressive(steps) == (Quantise(4), TopK(0.5))
