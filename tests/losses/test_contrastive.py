"""Alignment and window contrast against loops over pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import Detection, ModalityColumns
from fedjax_health.losses import alignment, window_contrast
from fedjax_health.losses.temporal import noisy

KEY = jax.random.key(0)
EXAMPLES, TIME, WIDTH = 12, 4, 3


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def make(*, time=TIME, entity=False, seed=0):
    """Returns outputs and a batch in which some pairs do not take part."""
    rng = np.random.default_rng(seed)
    steps = (EXAMPLES,) if time is None else (EXAMPLES, time)
    shape = (EXAMPLES,) if entity else steps
    batch = {
        "x": normal(*steps, 5),
        "label": (rng.random(steps) < 0.05).astype(np.float32),
        "weight": np.ones(EXAMPLES, np.float32),
        "patient": rng.integers(0, 6, EXAMPLES).astype(np.int32),
    }
    batch["weight"][-1] = 0
    if time is not None:
        batch["patient"] = np.repeat(batch["patient"][:, None], time, axis=1)
        batch["valid"] = np.ones(steps, np.float32)
        batch["valid"][0, :2] = 0
        # An attack that only fills up a window is none.
        batch["label"][0, 0] = 1
    batch = {name: jnp.asarray(values) for name, values in batch.items()}
    present = jnp.asarray(rng.random((*shape, 2)) < 0.85)
    outputs = Detection(
        logits=normal(*shape),
        unimodal={},
        aligned={
            "b": normal(*shape, WIDTH, seed=1),
            "a": normal(*shape, WIDTH, seed=2),
        },
        present=present,
    )
    return outputs, batch


def unit(x):
    return x / np.linalg.norm(x)


def last(values):
    values = np.asarray(values)
    return values[:, -1] if values.ndim == 2 else values


def alike(batch, i, j):
    patient = last(batch["patient"])
    same = patient[i] == patient[j]
    if "position" in batch:
        moments = np.asarray(batch["position"]).reshape(EXAMPLES, -1)
        valid = np.asarray(batch.get("valid", np.ones(moments.shape))) > 0
        one, two = (moments[k][valid.reshape(moments.shape)[k]] for k in (i, j))
        same = same and not (one.max() < two.min() or two.max() < one.min())
    return same


def oracle(outputs, batch, temperature):
    """One anchor and one direction at a time."""
    u, v = (np.asarray(a, np.float64) for a in outputs.aligned.values())
    present = np.asarray(outputs.present)
    if u.ndim == 3:
        u, v, present = u[:, -1], v[:, -1], present[:, -1]
    valid = np.asarray(batch.get("valid", np.ones(batch["label"].shape)))
    attacked = (np.asarray(batch["label"]) * valid).reshape(EXAMPLES, -1).max(1) > 0
    taking = [
        i
        for i in range(EXAMPLES)
        if batch["weight"][i] > 0 and present[i].all() and not attacked[i]
    ]
    losses = []
    for i in taking:
        others = [j for j in taking if j != i and not alike(batch, i, j)]
        if not others:
            continue
        for one, two in ((u, v), (v, u)):
            own = np.exp(unit(one[i]) @ unit(two[i]) / temperature)
            rest = sum(
                np.exp(unit(one[i]) @ unit(two[j]) / temperature) for j in others
            )
            losses.append(-np.log(own / (own + rest)) / 2)
    return (2 * np.sum(losses) / len(losses) if losses else 0.0), len(taking)


def value(term, outputs, batch, key=KEY):
    return jax.jit(lambda o, b, k: term.value(o, b, None, k))(outputs, batch, key)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("time", "entity"), [(TIME, False), (TIME, True), (None, False)]
)
def test_alignment_equals_the_oracle(time, entity, seed):
    outputs, batch = make(time=time, entity=entity, seed=seed)
    want, pairs = oracle(outputs, batch, 0.3)
    assert 2 <= pairs < EXAMPLES
    assert want > 0.1
    # Outside jit, where the order of the modalities is that of the detector.
    found = alignment(temperature=0.3).value(outputs, batch, None, KEY)
    np.testing.assert_allclose(found, want, rtol=1e-4)


def test_windows_of_a_patient_that_do_not_overlap_are_told_apart():
    outputs, batch = make()
    batch["patient"] = jnp.zeros_like(batch["patient"])
    assert float(value(alignment(), outputs, batch)) == 0
    start = np.random.default_rng(0).integers(0, 30, (EXAMPLES, 1))
    batch["position"] = jnp.asarray(start + np.arange(TIME), jnp.int32)
    found = alignment().value(outputs, batch, None, KEY)
    np.testing.assert_allclose(found, oracle(outputs, batch, 0.1)[0], rtol=1e-4)
    assert float(found) > 0


def test_without_patients_each_example_is_told_from_every_other():
    outputs, batch = make()
    del batch["patient"]
    found = value(alignment(), outputs, batch)
    batch["patient"] = jnp.arange(EXAMPLES)
    np.testing.assert_allclose(found, value(alignment(), outputs, batch), rtol=1e-6)


def test_perfect_agreement_costs_next_to_nothing():
    outputs, batch = make()
    shared = jnp.tile(10 * jnp.eye(EXAMPLES)[:, None], (1, TIME, 1))
    outputs = outputs._replace(aligned={"a": shared, "b": shared})
    assert float(value(alignment(), outputs, batch)) < 1e-3


@pytest.mark.parametrize("change", ["weight", "present", "label", "one pair"])
def test_fewer_than_two_pairs_give_zero_and_a_finite_gradient(change):
    outputs, batch = make()
    match change:
        case "weight":
            batch["weight"] = jnp.zeros(EXAMPLES)
        case "present":
            outputs = outputs._replace(present=outputs.present.at[..., 1].set(False))
        case "label":
            batch["label"] = jnp.ones((EXAMPLES, TIME))
        case "one pair":
            batch["weight"] = jnp.eye(EXAMPLES)[1]

    def loss(aligned):
        return alignment().value(outputs._replace(aligned=aligned), batch, None, KEY)

    zeros = jax.tree.map(jnp.zeros_like, outputs.aligned)
    for aligned in (outputs.aligned, zeros):
        found, gradient = jax.jit(jax.value_and_grad(loss))(aligned)
        assert float(found) == 0
        assert not any(np.any(g) for g in jax.tree.leaves(gradient))


def test_pairs_that_take_no_part_change_nothing():
    outputs, batch = make()
    before = value(alignment(), outputs, batch)
    present = np.asarray(outputs.present[:, -1]).all(1)
    label = np.asarray(batch["label"] * batch["valid"]).max(1) > 0
    out = ~present | label | (np.asarray(batch["weight"]) == 0)
    assert 0 < out.sum() < EXAMPLES - 1
    aligned = {
        name: jnp.where(out[:, None, None], 100 + rows[::-1], rows)
        for name, rows in outputs.aligned.items()
    }
    after = value(alignment(), outputs._replace(aligned=aligned), batch)
    np.testing.assert_allclose(before, after, rtol=1e-6)


def test_a_random_step_is_a_valid_one():
    outputs, batch = make()
    # Steps differ in one coordinate: those that fill up are far from their partners.
    filler = (batch["valid"] == 0)[..., None]
    other = {
        name: jnp.where(filler, 50.0, rows) for name, rows in outputs.aligned.items()
    }
    term = alignment(step="random")
    keys = jax.random.split(KEY, 20)

    @jax.jit
    @jax.vmap
    def draws(key):
        return [
            term.value(outputs._replace(aligned=a), batch, None, key)
            for a in (outputs.aligned, other)
        ]

    one, two = draws(keys)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    assert len(set(np.asarray(one).tolist())) > 5


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (jnp.zeros(3), "two or more aligned modalities"),
        (Detection(jnp.zeros(3), {}, {"a": jnp.zeros((3, 2))}), "two or more aligned"),
    ],
)
def test_alignment_refuses_a_detector_without_two_modalities(outputs, message):
    with pytest.raises(ValueError, match=message):
        alignment().value(outputs, {"label": jnp.zeros(3)}, None, KEY)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: alignment(temperature=0), "temperature must be finite and above 0"),
        (lambda: alignment(step="first"), "step='first'"),
        (lambda: window_contrast(temperature=-1), "temperature must be"),
        (lambda: window_contrast(jitter=-0.1), "jitter must be"),
        (lambda: window_contrast(scaling=float("nan")), "scaling must be"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_equal_settings_give_equal_terms():
    assert alignment(weight=1) == alignment(weight=1.0, temperature=0.1)
    assert window_contrast() == window_contrast(jitter=0.1)
    assert alignment() != alignment(step="random")


# Window contrast

LAYOUT = (ModalityColumns("a", (0, 2), (2, 4)), ModalityColumns("b", (4, 5)))


def apply(batch, key):
    """An embedding that depends on the last step alone."""
    x = batch["x"]
    z = jnp.stack([x[..., 0], x[..., 1] * x[..., 4], x[..., 4] ** 2], axis=-1)
    return Detection(x[..., 0], {}, {}, embedding=z)


@pytest.mark.parametrize("time", [TIME, None])
def test_window_contrast_equals_the_oracle(time):
    _, batch = make(time=time)
    term = window_contrast(layout=LAYOUT, temperature=0.5, jitter=0.3, scaling=0.2)
    found = jax.jit(lambda b, k: term.value(None, b, apply, k))(batch, KEY)
    keys = jax.random.split(KEY, 3)
    views = []
    for key in keys[:2]:
        x = noisy(batch, key, layout=LAYOUT, jitter=0.3, scaling=0.2)
        z = apply({"x": x}, None).embedding
        views.append(np.asarray(z if time is None else z[:, -1], np.float64))
    taking = [i for i in range(EXAMPLES) if batch["weight"][i] > 0]
    losses = []
    for i in taking:
        others = [j for j in taking if j != i and not alike(batch, i, j)]
        if not others:
            continue
        for one, two in (views, views[::-1]):
            own = np.exp(unit(one[i]) @ unit(two[i]) / 0.5)
            rest = sum(
                np.exp(unit(one[i]) @ unit(side[j]) / 0.5)
                for j in others
                for side in (one, two)
            )
            losses.append(-np.log(own / (own + rest)))
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-4)


def test_noise_leaves_flags_and_what_was_not_observed():
    batch = {"x": normal(200, TIME, 5), "valid": jnp.ones((200, TIME)).at[0, :2].set(0)}
    x = batch["x"].at[..., 2:4].set(normal(200, TIME, 2, seed=1) > 0)
    batch["x"] = x
    view = noisy(batch, KEY, layout=LAYOUT, jitter=0.1, scaling=0.5)
    np.testing.assert_array_equal(view[..., 2:4], x[..., 2:4])
    gone = x[..., 2:4] == 0
    changed = np.asarray(view != x)
    assert not changed[..., :2][gone].any()
    assert not changed[0, :2].any()
    assert changed[1:, :, :2][~gone[1:]].all()
    # One factor for each feature of a window, and noise of its own on each value.
    clean = noisy(batch, KEY, layout=LAYOUT, jitter=0.0, scaling=0.5)[..., 4]
    factor = np.asarray(clean / x[..., 4])[1:]
    np.testing.assert_allclose(factor, factor[:, :1].repeat(TIME, 1), rtol=1e-3)
    np.testing.assert_allclose(factor[:, 0].std(), 0.5, rtol=0.15)
    still = noisy(batch, KEY, layout=None, jitter=0.1, scaling=0.0) - x
    np.testing.assert_allclose(np.asarray(still)[1:].std(), 0.1, rtol=0.05)


def test_examples_without_weight_do_not_change_the_window_contrast():
    _, batch = make()
    term = window_contrast()
    found = [
        term.value(None, b, apply, KEY)
        for b in (batch, batch | {"x": batch["x"].at[-1].set(9.0)})
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    nothing = batch | {"weight": jnp.zeros(EXAMPLES)}
    assert float(term.value(None, nothing, apply, KEY)) == 0


def test_window_contrast_refuses_a_detector_without_embedding():
    _, batch = make()
    with pytest.raises(ValueError, match="window_contrast needs a detector that"):
        window_contrast().value(None, batch, lambda b, k: b["x"][..., 0], KEY)
