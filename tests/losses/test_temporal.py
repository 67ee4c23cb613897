import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import Detection, ModalityColumns
from fedjax_health.losses import embedding_smoothness, logit_smoothness

KEY = jax.random.key(0)


def make(*, examples=5, time=6, seed=0):
    rng = np.random.default_rng(seed)
    shape = (examples, time)
    batch = {
        "x": rng.normal(0, 0.5, (*shape, 4)),
        "label": rng.random(shape) < 0.4,
        "valid": np.ones(shape),
        "weight": np.ones(examples),
    }
    batch["valid"][0, :3] = 0
    batch["weight"][-1] = 0
    outputs = Detection(
        logits=jnp.asarray(rng.normal(0, 2, shape), jnp.float32),
        unimodal={},
        aligned={},
        embedding=jnp.asarray(rng.normal(size=(*shape, 3)), jnp.float32),
    )
    return outputs, {n: jnp.asarray(v, jnp.float32) for n, v in batch.items()}


def counted(batch):
    """The pairs of steps that count, one at a time."""
    examples, time = batch["label"].shape
    for i in range(examples):
        for t in range(time - 1):
            here = batch["valid"][i, t] and batch["valid"][i, t + 1]
            if here and batch["weight"][i]:
                yield i, t


def logit_oracle(outputs, batch, masked):
    p = 1 / (1 + np.exp(-np.asarray(outputs.logits, np.float64)))
    label = np.asarray(batch["label"])
    moves = [
        (p[i, t + 1] - p[i, t]) ** 2
        for i, t in counted(batch)
        if not masked or label[i, t] == label[i, t + 1]
    ]
    return np.mean(moves)


def embedding_oracle(outputs, batch, sigma):
    z, x = (np.asarray(a, np.float64) for a in (outputs.embedding, batch["x"]))
    moves = [
        np.exp(-np.mean((x[i, t + 1] - x[i, t]) ** 2) / sigma**2)
        * np.mean((z[i, t + 1] - z[i, t]) ** 2)
        for i, t in counted(batch)
    ]
    return np.mean(moves)


def value(term, outputs, batch):
    return jax.jit(lambda o, b: term.value(o, b, None, KEY))(outputs, batch)


@pytest.mark.parametrize("masked", [True, False])
def test_logit_smoothness_equals_the_oracle(masked):
    outputs, batch = make()
    want = logit_oracle(outputs, batch, masked)
    found = value(logit_smoothness(masked=masked), outputs, batch)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert abs(want - logit_oracle(outputs, batch, not masked)) > 1e-3
    # Bare logits will do.
    np.testing.assert_allclose(
        value(logit_smoothness(masked=masked), outputs.logits, batch), want, rtol=1e-5
    )


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_embedding_smoothness_equals_the_oracle(sigma):
    outputs, batch = make()
    found = value(embedding_smoothness(sigma=sigma), outputs, batch)
    want = embedding_oracle(outputs, batch, sigma)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_the_step_of_the_input_is_that_of_its_values():
    """Flags, times and gaps are no standard deviations."""
    layout = (
        ModalityColumns("flow", (0, 2)),
        ModalityColumns("vitals", (2, 4), (4, 6)),
        ModalityColumns("labs", (6, 7), (7, 8), (8, 9)),
    )
    outputs, batch = make()
    rng = np.random.default_rng(3)
    x = rng.normal(0, 0.5, (5, 6, 9))
    x[..., [4, 5, 7]] = rng.random((5, 6, 3)) < 0.6
    x[..., 2:4] *= x[..., 4:6]
    x[..., 8] = rng.integers(0, 40, (5, 6))
    batch["x"] = jnp.asarray(x, jnp.float32)
    z = np.asarray(outputs.embedding, np.float64)
    moves = []
    for i, t in counted(batch):
        steps = [x[i, t + 1, c] - x[i, t, c] for c in (0, 1, 6)]
        steps += [
            x[i, t + 1, c] - x[i, t, c]
            for c in (2, 3)
            if x[i, t, c + 2] and x[i, t + 1, c + 2]
        ]
        weight = np.exp(-np.mean(np.square(steps)) / 0.7**2)
        moves.append(weight * np.mean((z[i, t + 1] - z[i, t]) ** 2))
    term = embedding_smoothness(sigma=0.7, layout=layout)
    np.testing.assert_allclose(value(term, outputs, batch), np.mean(moves), rtol=1e-5)
    assert term == embedding_smoothness(sigma=0.7, layout=tuple(layout))
    # Nothing observed at both steps: the input is not known to have moved.
    gone = batch | {"x": batch["x"].at[..., :].set(0)}
    still = np.mean([np.mean((z[i, t + 1] - z[i, t]) ** 2) for i, t in counted(batch)])
    np.testing.assert_allclose(value(term, outputs, gone), still, rtol=1e-5)


def test_an_onset_costs_nothing_where_masked():
    outputs, batch = make(examples=2)
    step = jnp.tile(jnp.arange(6) >= 3, (2, 1)).astype(jnp.float32)
    batch |= {"label": step, "valid": jnp.ones((2, 6)), "weight": jnp.ones(2)}
    outputs = outputs._replace(logits=40 * step - 20)
    assert float(value(logit_smoothness(), outputs, batch)) < 1e-9
    np.testing.assert_allclose(
        value(logit_smoothness(masked=False), outputs, batch), 1 / 5, rtol=1e-4
    )


TERMS = [logit_smoothness(), logit_smoothness(masked=False), embedding_smoothness()]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("name", ["valid", "weight"])
def test_nothing_that_counts_gives_zero_and_a_finite_gradient(term, name):
    outputs, batch = make()
    batch[name] = jnp.zeros_like(batch[name])
    gradient = jax.jit(jax.value_and_grad(lambda o: term.value(o, batch, None, KEY)))
    found, slope = gradient(outputs)
    assert float(found) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("term", TERMS)
def test_filler_changes_nothing(term):
    outputs, batch = make()
    out = (batch["valid"] == 0) | (batch["weight"] == 0)[:, None]
    other = batch | {
        "x": jnp.where(out[..., None], 7.0, batch["x"]),
        "label": jnp.where(out, 1 - batch["label"], batch["label"]),
    }
    changed = outputs._replace(
        logits=jnp.where(out, 50.0, outputs.logits),
        embedding=jnp.where(out[..., None], -9.0, outputs.embedding),
    )
    np.testing.assert_allclose(
        value(term, outputs, batch), value(term, changed, other), rtol=1e-6
    )


def test_what_a_detector_lacks_is_named():
    outputs, batch = make()
    with pytest.raises(ValueError, match="needs an answer at each step"):
        logit_smoothness().value(outputs.logits[:, -1], batch, None, KEY)
    with pytest.raises(ValueError, match="Detection with an embedding"):
        embedding_smoothness().value(outputs.logits, batch, None, KEY)
    with pytest.raises(ValueError, match="Detection with an embedding"):
        embedding_smoothness().value(outputs._replace(embedding=None), batch, None, KEY)
    with pytest.raises(ValueError, match="sigma must be finite and above 0, not 0"):
        embedding_smoothness(sigma=0)


def test_equal_settings_give_equal_terms():
    assert logit_smoothness(weight=1) == logit_smoothness(weight=1.0, masked=1)
    assert embedding_smoothness() != embedding_smoothness(sigma=2)
