"""CoMM's objective against a loop over anchors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import Detection, ModalityColumns
from fedjax_health.losses import bce, combine, comm
from fedjax_health.losses.temporal import noisy
from fedjax_health.models import MlpEncoder, fusion_detector

KEY = jax.random.key(0)
EXAMPLES, TIME = 9, 3
LAYOUT = (
    ModalityColumns("a", (0, 2), (2, 4)),
    ModalityColumns("b", (4, 5), (5, 6)),
    ModalityColumns("c", (6, 7)),
)
WEIGHTS = np.random.default_rng(9).normal(size=(3, 4)).astype(np.float32)


def make(*, time=TIME, seed=0):
    """Returns a batch with gaps, two examples of a patient and one without weight."""
    rng = np.random.default_rng(seed)
    steps = (EXAMPLES,) if time is None else (EXAMPLES, time)
    x = rng.normal(size=(*steps, 7))
    flags = rng.random((EXAMPLES, *[1] * (len(steps) - 1), 3)) < 0.6
    x[..., 2:4], x[..., 5:6] = flags[..., :1], flags[..., 1:2]
    batch = {
        "x": x,
        "label": rng.integers(0, 2, steps),
        "weight": np.r_[np.ones(EXAMPLES - 1), 0],
        "patient": np.r_[0, 0, 1 : EXAMPLES - 1],
    }
    if time is not None:
        batch["patient"] = np.repeat(batch["patient"][:, None], time, axis=1)
        batch["valid"] = np.ones(steps)
    ints = ("patient",)
    return {
        name: jnp.asarray(values, jnp.int32 if name in ints else jnp.float32)
        for name, values in batch.items()
    }


def present_of(batch):
    x = batch["x"]
    flags = [x[..., 2] > 0, x[..., 5] > 0, jnp.ones(x.shape[:-1], bool)]
    present = jnp.stack(flags, axis=-1)
    if "absent" in batch:
        gone = batch["absent"]
        present &= ~(gone if x.ndim == 2 else gone[:, None])
    return present


def apply(batch, key):
    """A detector whose embedding is a curved sum over what is present."""
    del key
    x, present = batch["x"], present_of(batch)
    values = jnp.stack([x[..., 0] + x[..., 1], x[..., 4], x[..., 6]], axis=-1)
    z = jnp.where(present, values, 0.5) @ WEIGHTS
    return Detection(x[..., 0], {}, {}, embedding=jnp.sin(2 * z) + z, present=present)


def last(values):
    return np.asarray(values if values.ndim == 2 else values[:, -1])


def one_contrast(u, v, taking, patient, temperature):
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (u, v))
    losses = []
    for i in taking:
        others = [j for j in taking if patient[j] != patient[i]]
        if not others:
            continue
        for one, two in ((u, v), (v, u)):
            own = np.exp(one[i] @ two[i] / temperature)
            rest = sum(np.exp(one[i] @ two[j] / temperature) for j in others)
            losses.append(-np.log(own / (own + rest)))
    return np.mean(losses) if losses else 0.0


def oracle(batch, temperature, jitter, scaling):
    keys = jax.random.split(KEY, 3)
    noise = {"layout": LAYOUT, "jitter": jitter, "scaling": scaling}
    views = [
        last(apply({**batch, "x": noisy(batch, key, **noise)}, None).embedding)
        for key in keys[:2]
    ]
    present = last(present_of(batch))
    weighs = np.asarray(batch["weight"]) > 0
    patient = np.asarray(batch["patient"]).reshape(EXAMPLES, -1)[:, -1]
    taking = np.flatnonzero(weighs & present.any(1))
    total = one_contrast(*views, taking, patient, temperature)
    for i in range(3):
        gone = np.tile(np.arange(3) != i, (EXAMPLES, 1))
        if "absent" in batch:
            gone |= np.asarray(batch["absent"])
        alone = last(apply({**batch, "absent": jnp.asarray(gone)}, None).embedding)
        taking = np.flatnonzero(weighs & present[:, i] & (present.sum(1) > 1))
        for view in views:
            total += one_contrast(alone, view, taking, patient, temperature) / 2
    return total


def value(term, batch):
    return jax.jit(lambda b: term.value(apply(b, None), b, apply, KEY))(batch)


@pytest.mark.parametrize("time", [TIME, None])
@pytest.mark.parametrize("decreed", [False, True])
def test_comm_equals_the_oracle(time, decreed):
    batch = make(time=time)
    if decreed:
        gone = np.random.default_rng(1).random((EXAMPLES, 3)) < 0.3
        gone[3] = True
        batch["absent"] = jnp.asarray(gone)
    present = last(present_of(batch))
    assert 0 < present[:, :2].mean() < 1
    term = comm(temperature=0.5, jitter=0.3, scaling=0.2, layout=LAYOUT)
    want = oracle(batch, 0.5, 0.3, 0.2)
    assert want > 0.5
    np.testing.assert_allclose(value(term, batch), want, rtol=1e-4)


def test_what_takes_no_part_changes_nothing():
    batch = make()
    term = comm(layout=LAYOUT)
    before = value(term, batch)
    other = batch | {
        "x": batch["x"].at[-1].set(9.0),
        "label": 1 - batch["label"],
    }
    np.testing.assert_allclose(value(term, other), before, rtol=1e-5)
    nothing = batch | {"weight": jnp.zeros(EXAMPLES)}
    assert float(value(term, nothing)) == 0
    one = batch | {"patient": jnp.zeros_like(batch["patient"])}
    assert float(value(term, one)) == 0


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (jnp.zeros(3), "comm needs a detector that returns a Detection with an embed"),
        (Detection(jnp.zeros(3), {}, {}), "comm needs a detector that returns a"),
        (
            Detection(
                jnp.zeros(3),
                {},
                {},
                embedding=jnp.zeros((3, 2)),
                present=jnp.ones((3, 1), bool),
            ),
            "two or more modalities",
        ),
    ],
)
def test_a_detector_without_fused_modalities_is_refused(outputs, message):
    with pytest.raises(ValueError, match=message):
        comm().value(outputs, {"x": jnp.zeros((3, 2))}, apply, KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "temperature must be finite and above 0"),
        ({"jitter": -0.1}, "jitter must be"),
        ({"scaling": float("inf")}, "scaling must be"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        comm(**change)


def test_equal_settings_give_equal_terms():
    assert comm(weight=1) == comm(weight=1.0, temperature=0.1)
    assert comm() != comm(layout=LAYOUT)


@pytest.mark.parametrize("fuse", ["gated", "cross_attention"])
def test_a_step_down_its_gradient_makes_it_smaller(fuse):
    model = fusion_detector(
        LAYOUT,
        encoders=dict.fromkeys("abc", MlpEncoder((5,))),
        joint=8,
        aligned=0,
        modality_dropout=0.0,
        fuse=fuse,
        streams=False,
    )
    batch = make(time=None)
    loss_fn = combine(model, bce(), alignment=comm(weight=1.0, layout=LAYOUT))

    @jax.jit
    def own(params):
        return loss_fn(params, batch, KEY)[1]["alignment"]

    params = model.init(KEY)
    found, gradient = jax.jit(jax.value_and_grad(own))(params)
    # The learned vector of an absent modality learns from it.
    assert np.any(gradient["modality_a"]["missing"])
    after = jax.tree.map(lambda p, g: p - 0.02 * g, params, gradient)
    assert 0 < float(own(after)) < float(found)
