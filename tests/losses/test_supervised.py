import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import Detection, Model
from fedjax_health.losses.supervised import focal, masked_bce, step_weight


def apply(params, batch, *, key=None):
    return params + batch["x"]


MODEL = Model(lambda key: jnp.zeros(()), apply)
KEY = jax.random.key(0)


def make_batch(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": jnp.asarray(rng.normal(0, 3, shape), jnp.float32),
        "label": jnp.asarray(rng.random(shape) < 0.4, jnp.float32),
        "valid": jnp.asarray(rng.random(shape) < 0.7, jnp.float32),
        "weight": jnp.asarray(rng.random(shape[0]) < 0.7, jnp.float32),
    }


def oracle(batch, positive_weight, burn_in):
    """One logit at a time."""
    logits = np.asarray(batch["x"], np.float64)
    total = count = right = 0.0
    for place in np.ndindex(logits.shape):
        weight = float(batch["weight"][place[0]]) if "weight" in batch else 1.0
        weight *= float(batch["valid"][place]) if "valid" in batch else 1.0
        if burn_in and place[1] < burn_in:
            weight = 0.0
        p = 1 / (1 + np.exp(-logits[place]))
        y = float(batch["label"][place])
        total -= weight * (positive_weight * y * np.log(p) + (1 - y) * np.log(1 - p))
        right += weight * ((logits[place] > 0) == (y == 1))
        count += weight
    return total / count, right / count


@pytest.mark.parametrize("positive_weight", [1.0, 3.0])
@pytest.mark.parametrize(("shape", "burn_in"), [((9,), 0), ((6, 5), 0), ((6, 5), 2)])
@pytest.mark.parametrize("absent", [(), ("valid",), ("weight",), ("valid", "weight")])
def test_equals_the_oracle(shape, burn_in, positive_weight, absent):
    batch = {k: v for k, v in make_batch(*shape).items() if k not in absent}
    loss_fn = masked_bce(MODEL, positive_weight=positive_weight, burn_in=burn_in)
    loss, metrics = jax.jit(loss_fn)(jnp.zeros(()), batch, KEY)
    want_loss, want_accuracy = oracle(batch, positive_weight, burn_in)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], want_accuracy, rtol=1e-6)


def test_real_example_weights_count_in_proportion():
    batch = make_batch(2) | {"weight": jnp.array([3.0, 1.0])}
    del batch["valid"]
    loss, _ = masked_bce(MODEL)(jnp.zeros(()), batch, KEY)
    np.testing.assert_allclose(loss, oracle(batch, 1.0, 0)[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["valid", "weight"])
def test_nothing_that_counts_gives_zero_and_no_gradient(name):
    batch = make_batch(4, 3)
    batch[name] = jnp.zeros_like(batch[name])
    value = jax.value_and_grad(masked_bce(MODEL), has_aux=True)
    (loss, metrics), grad = value(jnp.ones(()), batch, KEY)
    assert (float(loss), float(metrics["accuracy"]), float(grad)) == (0.0, 0.0, 0.0)


def test_rows_that_do_not_count_change_nothing():
    batch = make_batch(6, 5)
    value = jax.value_and_grad(masked_bce(MODEL, positive_weight=3.0), has_aux=True)
    out = step_weight(batch, batch["x"]) == 0
    assert bool(out.any())
    other = batch | {
        "x": jnp.where(out, 50.0, batch["x"]),
        "label": jnp.where(out, -1.0, batch["label"]),
    }
    for got, want in zip(
        jax.tree.leaves(value(jnp.zeros(()), other, KEY)),
        jax.tree.leaves(value(jnp.zeros(()), batch, KEY)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("positive_weight", [1.0, 3.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-1e4, -80.0, 0.0, 80.0, 1e4])
def test_stable_and_right_far_out_and_at_zero(logit, label, positive_weight):
    batch = {"x": jnp.array([logit]), "label": jnp.array([label])}
    loss_fn = masked_bce(MODEL, positive_weight=positive_weight)
    value = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, _), grad = value(jnp.zeros(()), batch, KEY)
    scale = positive_weight if label else 1.0
    signed = -logit if label else logit
    np.testing.assert_allclose(loss, scale * np.logaddexp(0, signed), atol=1e-5)
    probability = 0.5 * (1 + np.tanh(logit / 2))
    np.testing.assert_allclose(grad, scale * (probability - label), atol=1e-6)


def test_the_key_reaches_the_model():
    def noisy(params, batch, *, key=None):
        return params + jax.random.normal(key, batch["x"].shape)

    loss_fn = masked_bce(Model(MODEL.init, noisy))
    losses = {
        float(loss_fn(jnp.zeros(()), make_batch(5), jax.random.key(i))[0])
        for i in range(3)
    }
    assert len(losses) == 3


def test_equal_settings_give_the_same_function():
    assert masked_bce(MODEL) is masked_bce(MODEL, positive_weight=1, burn_in=0)
    assert masked_bce(MODEL) is not masked_bce(MODEL, positive_weight=2)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_positive_weight_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match="positive_weight must be finite"):
        masked_bce(MODEL, positive_weight=value)


@pytest.mark.parametrize(
    ("shape", "change", "burn_in", "message"),
    [
        ((4, 3), {"label": jnp.zeros(4)}, 0, r"'label'\] has shape \(4,\)"),
        ((4, 3), {"valid": jnp.zeros(3)}, 0, r"'valid'\] has shape \(3,\)"),
        ((4, 3), {"weight": jnp.zeros(3)}, 0, r"'weight'\] has shape \(3,\)"),
        ((4, 3), {}, 3, "burn_in=3 leaves no step"),
        ((4,), {}, 1, "burn_in=1 leaves no step"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, change, burn_in, message):
    loss_fn = masked_bce(MODEL, burn_in=burn_in)
    with pytest.raises(ValueError, match=message):
        loss_fn(jnp.zeros(()), make_batch(*shape) | change, KEY)


def test_missing_label_and_negative_burn_in_are_refused():
    with pytest.raises(ValueError, match="label"):
        masked_bce(MODEL)(jnp.zeros(()), {"x": jnp.zeros(3)}, KEY)
    with pytest.raises(ValueError, match="burn_in must be 0 or more"):
        masked_bce(MODEL, burn_in=-1)


# Class weights, one answer for a window, the focal loss


def focal_oracle(batch, gamma, alpha):
    """One logit at a time, with the weights of classes."""
    logits = np.asarray(batch["x"], np.float64)
    total = count = 0.0
    for place in np.ndindex(logits.shape):
        weight = float(batch["weight"][place[0]]) * float(batch["valid"][place])
        y = float(batch["label"][place])
        p = 1 / (1 + np.exp(-logits[place]))
        q = p if y else 1 - p
        loss = -((1 - q) ** gamma) * np.log(q)
        if alpha is not None:
            loss *= alpha if y else 1 - alpha
        total += weight * float(batch["class_weight"][place]) * loss
        count += weight
    return total / count


def with_class_weights(*shape):
    weights = np.random.default_rng(5).random(shape) + 0.5
    return make_batch(*shape) | {"class_weight": jnp.asarray(weights, jnp.float32)}


@pytest.mark.parametrize("shape", [(9,), (6, 5)])
@pytest.mark.parametrize(
    ("gamma", "alpha"), [(0.0, None), (2.0, None), (2.0, 0.7), (0.5, 0.3)]
)
def test_focal_equals_the_oracle(shape, gamma, alpha):
    batch = with_class_weights(*shape)
    loss_fn = focal(MODEL, gamma=gamma, alpha=alpha)
    loss, metrics = jax.jit(loss_fn)(jnp.zeros(()), batch, KEY)
    np.testing.assert_allclose(loss, focal_oracle(batch, gamma, alpha), rtol=1e-5)
    assert 0 <= float(metrics["accuracy"]) <= 1


def test_focal_without_gamma_is_the_cross_entropy_with_class_weights():
    batch = with_class_weights(6, 5)
    one, other = (f(jnp.zeros(()), batch, KEY) for f in (BCE, focal(MODEL, gamma=0)))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
    without = {n: v for n, v in batch.items() if n != "class_weight"}
    assert abs(float(one[0]) - float(BCE(jnp.zeros(()), without, KEY)[0])) > 1e-3


BCE = masked_bce(MODEL)


def test_class_weights_are_not_part_of_the_denominator():
    batch = with_class_weights(6, 5)
    twice = batch | {"class_weight": 2 * batch["class_weight"]}
    one, other = (float(BCE(jnp.zeros(()), b, KEY)[0]) for b in (batch, twice))
    np.testing.assert_allclose(other, 2 * one, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-1e4, -80.0, 0.0, 80.0, 1e4])
def test_focal_is_stable_far_out(logit, label, gamma):
    batch = {"x": jnp.array([logit]), "label": jnp.array([label])}
    value = jax.value_and_grad(focal(MODEL, gamma=gamma), has_aux=True)
    (loss, _), grad = value(jnp.zeros(()), batch, KEY)
    assert np.isfinite(loss)
    assert np.isfinite(grad)
    wrong = (logit < 0) == (label == 1) and logit != 0
    assert (float(loss) > 10) == wrong


def test_one_logit_for_a_window_is_judged_by_its_last_step():
    windows = with_class_weights(6, 5)
    last = {n: v if v.ndim == 1 else v[:, -1] for n, v in windows.items()}
    whole = windows | {"x": windows["x"][:, -1]}
    for loss_fn in (BCE, focal(MODEL)):
        got, want = (loss_fn(jnp.zeros(()), b, KEY) for b in (whole, last))
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_detection_is_judged_by_its_logits():
    def detect(params, batch, *, key=None):
        return Detection(params + batch["x"], {}, {})

    batch = make_batch(6, 5)
    found = masked_bce(Model(MODEL.init, detect))(jnp.zeros(()), batch, KEY)
    np.testing.assert_array_equal(found[0], BCE(jnp.zeros(()), batch, KEY)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": -1}, "gamma must be finite and 0 or more"),
        ({"alpha": 1.0}, "alpha must lie in"),
        ({"burn_in": -1}, "burn_in must be 0 or more"),
    ],
)
def test_focal_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        focal(MODEL, **change)


def test_class_weights_of_another_shape_are_refused():
    batch = make_batch(4, 3) | {"class_weight": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"'class_weight'\] has shape \(4,\)"):
        BCE(jnp.zeros(()), batch, KEY)
