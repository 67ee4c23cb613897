import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import ModalityColumns
from fedjax_health.models import ft_transformer

LABS = ModalityColumns("labs", (0, 2), (2, 4), (4, 6))
VITALS = ModalityColumns("vitals", (6, 8), (8, 10))
STATIC = ModalityColumns("static", (10, 11))
LAYOUT = (LABS, VITALS, STATIC)
WIDTH, HEADS, BLOCKS = 6, 2, 2


@functools.cache
def make(**changes):
    settings = {"width": WIDTH, "heads": HEADS, "blocks": BLOCKS, **changes}
    model = ft_transformer(LAYOUT, **settings)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    return jax.jit(model.apply), params


def inputs(*shape, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*shape, 11))
    for first in (2, 8):
        x[..., first : first + 2] = rng.random((*shape, 2)) < 0.5
    x[..., 4:6] = np.abs(x[..., 4:6])
    return jnp.asarray(x, jnp.float32)


def layer_norm(x, params):
    apart = x - x.mean(-1, keepdims=True)
    scaled = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * params["scale"] + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def oracle(params, x):
    """One row and one head at a time; every token goes through every block."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    own = params["encoder"]["tokens"]
    logits = []
    for row in np.asarray(x, np.float64):
        tokens, j = [own["cls"][0]], 0
        for columns in LAYOUT:
            for i in range(columns.values[1] - columns.values[0]):
                token = row[columns.values[0] + i] * own["weight"][j] + own["bias"][j]
                gone = columns.observed and not row[columns.observed[0] + i]
                if columns.elapsed:
                    token = token + row[columns.elapsed[0] + i] * own["elapsed"][j]
                    token = token + gone * own["missing"][j]
                elif gone:
                    token = own["missing"][j]
                tokens.append(token)
                j += 1
        tokens = np.stack(tokens)
        for block in range(BLOCKS):
            layer = own[f"block_{block}"]
            read = tokens if block == 0 else layer_norm(tokens, layer["attention_norm"])
            query = dense(read, layer["query"])
            key, value = np.split(dense(read, layer["key_value"]), 2, axis=1)
            found = np.zeros_like(tokens)
            for head in range(HEADS):
                part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                scores = query[:, part] @ key[:, part].T / np.sqrt(WIDTH / HEADS)
                weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
                found[:, part] = weights @ value[:, part]
            tokens = tokens + dense(found, layer["out"])
            hidden = dense(layer_norm(tokens, layer["dense_norm"]), layer["dense_in"])
            gate, value = np.split(hidden, 2, axis=1)
            tokens = tokens + dense(np.maximum(gate, 0) * value, layer["dense_out"])
        state = layer_norm(tokens[0], own["norm"])
        logits.append(dense(state, params["head"])[0])
    return np.array(logits)


def test_logits_equal_the_formula():
    apply, params = make()
    x = inputs(5)
    np.testing.assert_allclose(apply(params, {"x": x}), oracle(params, x), atol=1e-4)


def test_streams_are_read_row_by_row_and_stays_by_their_last():
    _, params = make()
    each, _ = make(streams=True)
    last, _ = make(streams=True, target="entity")
    x = inputs(3, 4)
    want = oracle(params, x.reshape(12, 11)).reshape(3, 4)
    np.testing.assert_allclose(each(params, {"x": x}), want, atol=1e-4)
    np.testing.assert_allclose(last(params, {"x": x}), want[:, -1], atol=1e-4)


def test_what_was_not_observed_does_not_matter_where_nothing_is_carried():
    apply, params = make()
    x = inputs(8)
    gone = x[:, 8:10] == 0
    assert 0 < gone.mean() < 1
    other = x.at[:, 6:8].set(jnp.where(gone, 50.0, x[:, 6:8]))
    np.testing.assert_array_equal(apply(params, {"x": x}), apply(params, {"x": other}))
    assert not np.allclose(
        apply(params, {"x": x}), apply(params, {"x": x.at[:, 0].add(1.0)})
    )


def test_dropout_acts_with_a_key_only():
    apply, params = make(dropout=0.5)
    still, _ = make()
    batch = {"x": inputs(5)}
    np.testing.assert_array_equal(apply(params, batch), still(params, batch))
    dropped = apply(params, batch, key=jax.random.key(0))
    assert not np.allclose(dropped, still(params, batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": 0}, "blocks=0"),
        ({"width": 6, "heads": 4}, "width=6 must be a multiple of heads=4"),
        ({"dropout": -0.1}, "dropout=-0.1"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ft_transformer(LAYOUT, **change)


def test_equal_settings_give_the_same_functions():
    assert ft_transformer(5) is ft_transformer(np.int64(5), width=32, dropout=0)
    assert ft_transformer(5).apply is not ft_transformer(5, blocks=1).apply
