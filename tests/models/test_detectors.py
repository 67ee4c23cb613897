import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.models.detectors import mlp


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_equal_settings_give_the_same_functions():
    assert mlp(5) is mlp(5, hidden=[128, 64], dropout=0, norm=False, streams=False)
    assert mlp(5).apply is not mlp(5, hidden=(128, 63)).apply
    assert mlp(5).apply is not mlp(5, streams=True).apply


def statistics(values):
    """The step, and mean, least and greatest value so far, by a loop."""
    values = np.asarray(values)
    return np.stack(
        [
            np.concatenate(
                [
                    values[:, t],
                    values[:, : t + 1].mean(1),
                    values[:, : t + 1].min(1),
                    values[:, : t + 1].max(1),
                ],
                axis=-1,
            )
            for t in range(values.shape[1])
        ],
        axis=1,
    )


@pytest.mark.parametrize("hidden", [(), (4,), (6, 3)])
@pytest.mark.parametrize("streams", [False, True])
def test_logits_equal_the_formula(hidden, streams):
    model = mlp(5, hidden=hidden, streams=streams)
    params = jax.tree.map(lambda leaf: leaf + 0.1, model.init(jax.random.key(0)))
    x = normal(4, 6, 5) if streams else normal(4, 5)
    values = statistics(x) if streams else np.asarray(x)
    for layer in range(len(hidden)):
        dense = params["encoder"]["dense"][f"dense_{layer}"]
        values = np.maximum(values @ dense["kernel"] + dense["bias"], 0)
    want = (values @ params["head"]["kernel"] + params["head"]["bias"])[..., 0]
    got = model.apply(params, {"x": x})
    assert got.shape == x.shape[:-1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_streams_are_causal():
    model = mlp(5, hidden=(8,), streams=True)
    params = model.init(jax.random.key(0))
    before = model.apply(params, {"x": normal(4, 6, 5)})
    after = model.apply(params, {"x": normal(4, 6, 5).at[:, 3:].add(1.0)})
    np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert float(jnp.abs(before[:, 3:] - after[:, 3:]).min()) > 0


def test_initial_parameters_and_norm_leaves():
    params = mlp(50, hidden=(200, 100), norm=True).init(jax.random.key(0))
    dense = params["encoder"]["dense"]
    assert {"norm_0", "norm_1"} < set(dense)
    assert not np.any(params["head"]["bias"])
    spread = np.std(np.asarray(dense["dense_0"]["kernel"]))
    np.testing.assert_allclose(spread, np.sqrt(2 / 50), rtol=0.05)


def test_dropout_acts_with_a_key_only():
    model = mlp(5, dropout=0.5)
    params = model.init(jax.random.key(0))
    batch = {"x": normal(4, 5)}
    still = model.apply(params, batch)
    np.testing.assert_array_equal(still, mlp(5).apply(params, batch))
    assert not np.allclose(still, model.apply(params, batch, key=jax.random.key(1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 0}, "features=0"),
        ({"features": 5, "hidden": (4, 0)}, r"hidden=\(4, 0\)"),
        ({"features": 5, "dropout": -0.1}, "dropout=-0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        mlp(**settings)


@pytest.mark.parametrize(("streams", "shape"), [(False, (4, 6, 5)), (True, (4, 5))])
def test_inputs_of_another_shape_are_refused(streams, shape):
    model = mlp(5, streams=streams)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=f"streams={streams}"):
        model.apply(params, {"x": normal(*shape)})
