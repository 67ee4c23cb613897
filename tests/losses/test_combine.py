import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import Detection, Model
from fedjax_health.losses import Term, bce, combine, focal_bce, masked_bce

KEY = jax.random.key(0)
NAMES = ("zeta", "alpha")


def apply(params, batch, *, key=None):
    x = batch["x"]
    return Detection(
        logits=params * x.sum(-1),
        # Not in the order of the alphabet.
        unimodal={name: params * x[..., i] for i, name in enumerate(NAMES)},
        aligned={},
        present=batch["x"] > 0,
    )


MODEL = Model(lambda key: jnp.ones(()), apply)
PLAIN = Model(
    MODEL.init, lambda params, batch, *, key=None: params * batch["x"].sum(-1)
)


def make(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": jnp.asarray(rng.normal(size=(*shape, 2)), jnp.float32),
        "label": jnp.asarray(rng.random(shape) < 0.4, jnp.float32),
        "class_weight": jnp.asarray(rng.random(shape) + 0.5, jnp.float32),
        "weight": jnp.ones(shape[0]).at[-1].set(0),
    }


def bce_oracle(logits, batch, counts):
    total = count = 0.0
    for place in np.ndindex(*logits.shape):
        weight = float(batch["weight"][place[0]]) * float(counts[place])
        p = 1 / (1 + np.exp(-float(logits[place])))
        y = float(batch["label"][place])
        loss = -np.log(p) if y else -np.log(1 - p)
        total += weight * float(batch["class_weight"][place]) * loss
        count += weight
    return total / count


@pytest.mark.parametrize("shape", [(9,), (4, 6)])
def test_the_sum_of_its_parts(shape):
    batch = make(*shape)
    temporal = Term(0.5, lambda o, b, a, k: jnp.sum(o.logits))
    alignment = Term(2.0, lambda o, b, a, k: jnp.mean(a(b, k).logits ** 2))
    loss_fn = combine(
        MODEL, bce(), unimodal_weight=0.3, temporal=temporal, alignment=alignment
    )
    loss, metrics = jax.jit(loss_fn)(jnp.float32(1), batch, KEY)
    x = np.asarray(batch["x"], np.float64)
    supervised = bce_oracle(x.sum(-1), batch, np.ones(shape))
    unimodal = sum(bce_oracle(x[..., i], batch, x[..., i] > 0) for i in range(2))
    smooth, agree = x.sum(), np.mean(x.sum(-1) ** 2)
    want = supervised + 0.3 * unimodal + 0.5 * smooth + 2 * agree
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    parts = {
        "supervised": supervised,
        "unimodal": unimodal,
        "temporal": smooth,
        "alignment": agree,
    }
    for name, part in parts.items():
        np.testing.assert_allclose(metrics[name], part, rtol=1e-4)
    assert set(metrics) == {*parts, "accuracy"}


def test_a_modality_that_no_example_has_costs_nothing():
    batch = make(6)
    batch["x"] = batch["x"].at[:, 1].set(-jnp.abs(batch["x"][:, 1]))
    loss_fn = combine(MODEL, bce(), unimodal_weight=1.0)
    (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
        jnp.float32(1), batch, KEY
    )
    x = np.asarray(batch["x"])
    want = bce_oracle(x[:, 0], batch, x[:, 0] > 0)
    np.testing.assert_allclose(metrics["unimodal"], want, rtol=1e-5)
    assert np.isfinite(gradient)


def test_without_further_parts_it_is_the_supervised_loss():
    batch = make(4, 6)
    for model, weight in ((MODEL, 0.0), (PLAIN, 0.3)):
        found = combine(model, bce(), unimodal_weight=weight)
        loss, metrics = found(jnp.float32(1), batch, KEY)
        want, accuracy = masked_bce(model)(jnp.float32(1), batch, KEY)
        np.testing.assert_array_equal(loss, want)
        assert set(metrics) == {"accuracy"} == set(accuracy)


def test_terms_draw_from_keys_of_their_own():
    seen = []
    note = Term(1.0, lambda o, b, a, k: seen.append(jax.random.key_data(k)) or 0.0)
    combine(MODEL, bce(), temporal=note, alignment=note._replace(weight=2.0))(
        jnp.float32(1), make(3), KEY
    )
    keys = {tuple(np.asarray(k).tolist()) for k in [*seen, jax.random.key_data(KEY)]}
    assert len(keys) == 3


def test_equal_settings_give_the_same_function():
    assert combine(MODEL, bce()) is combine(MODEL, bce(), unimodal_weight=0.3)
    assert combine(MODEL, bce()) is not combine(MODEL, focal_bce())
    assert bce() is bce(positive_weight=1, burn_in=0)
    assert focal_bce() is focal_bce(gamma=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unimodal_weight": -1.0}, "unimodal_weight must be finite and 0 or more"),
        ({"temporal": Term(float("nan"), apply)}, "temporal.weight must be finite"),
        ({"alignment": Term(-0.1, apply)}, "alignment.weight must be finite"),
    ],
)
def test_weights_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        combine(MODEL, bce(), **change)
