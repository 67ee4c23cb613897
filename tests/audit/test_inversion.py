"""Inversion of messages whose content is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import build, models
from fedjax_health.audit import inversion
from fedjax_health.core.types import Model
from fedjax_health.losses import masked_bce
from tests import tiny

RECORDS = (
    "window.length=1",
    "window.stride=1",
    "model=mlp",
    "model.hidden=[16]",
    "local.optimizer.momentum=0.0",
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.write_table(tmp_path_factory.mktemp("table") / "ward.csv")


def inverted(table, *overrides, batches=(1,), steps=60):
    config = tiny.config(table, *RECORDS, *overrides)
    prepared = build.prepare(config, build.build_dataset(config))
    built = build.build(config, prepared)
    found = inversion.invert(
        config,
        prepared,
        built,
        seed=0,
        batches=batches,
        victims={1: 6, 4: 3},
        steps=steps,
    )
    return {(one.attack, one.message, one.batch): one for one in found}


def test_one_record_is_read_from_a_message_and_noise_hides_it(table):
    found = inverted(
        table,
        'weighting="uniform"',
        'transforms=[{kind="clip_l2",max_norm=1.0}]',
        "mechanism=central_gaussian",
        "mechanism.noise_multiplier=1.0",
    )
    for message in ("bare", "sent"):
        exact = found["analytic", message, 1]
        assert exact.correlation > 0.99
        assert exact.error < 0.01
    noised = found["analytic", "released", 1]
    assert noised.correlation < 0.7
    assert noised.error > 0.5


def test_matching_finds_a_single_record_too(table):
    found = inverted(table, steps=300)["matching", "bare", 1]
    assert found.correlation > 0.95
    assert found.correlation > found.control


def test_the_input_layer_is_found_by_trying_and_not_where_there_is_none():
    model = models.mlp(3, hidden=(8,))
    loss_fn = masked_bce(inversion.without_dropout(model))
    params = model.init(jax.random.key(1))
    batch = {
        "x": jnp.array([[0.3, -1.0, 2.0]]),
        "label": jnp.ones(1),
        "weight": jnp.ones(1),
    }
    layer = inversion.find_input_layer(loss_fn, params, batch, np.arange(3))
    assert layer is not None
    gradient = jax.tree.leaves(inversion.bare_gradient(loss_fn, params, batch))
    kernel, bias = gradient[layer.kernel], gradient[layer.bias]
    unit = int(jnp.argmax(jnp.abs(bias)))
    np.testing.assert_allclose(
        kernel[layer.rows, unit] / bias[unit], batch["x"][0], rtol=1e-4
    )
    assert (
        inversion.find_input_layer(
            loss_fn, params, {**batch, "x": batch["x"][None]}, np.arange(3)
        )
        is None
    )

    def bent(params, batch, *, key=None):
        del key
        return (jnp.tanh(batch["x"]) @ params["kernel"] + params["bias"])[:, 0]

    other = masked_bce(Model(lambda key: None, bent))
    start = {"kernel": jnp.ones((3, 1)), "bias": jnp.zeros(1)}
    assert inversion.find_input_layer(other, start, batch, np.arange(3)) is None


def test_each_example_is_dealt_the_guess_that_fits_best():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(5, 7))
    order = rng.permutation(5)
    values, dealt = inversion.correlations(true, true[order], np.ones((5, 7), bool))
    np.testing.assert_allclose(values, 1)
    assert order[dealt].tolist() == list(range(5))


def test_values_that_are_not_there_do_not_count():
    true, guess = np.array([[1.0, 2.0, 3.0, 9.0]]), np.array([[2.0, 4.0, 6.0, -50.0]])
    values, _ = inversion.correlations(
        true, guess, np.array([[True, True, True, False]])
    )
    assert values[0] == pytest.approx(1)


def test_an_example_that_does_not_vary_counts_as_not_found():
    values, _ = inversion.correlations(
        np.ones((1, 4)), np.arange(4.0)[None], np.ones((1, 4), bool)
    )
    assert values[0] == 0


def test_a_message_goes_through_the_runs_own_clipping(table):
    config = tiny.config(table, *RECORDS, 'transforms=[{kind="clip_l2",max_norm=0.25}]')
    prepared = build.prepare(config, build.build_dataset(config))
    built = build.build(config, prepared)
    params = build.initial_params(config, built.model)
    seen = inversion.messages(built, params, released=False)
    large = jax.tree.map(lambda x: jnp.full_like(x, 3.0), params)
    value = seen(large, jax.random.key(0, impl="threefry2x32"))
    norm = np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(value)))
    assert norm == pytest.approx(0.25, rel=1e-5)
