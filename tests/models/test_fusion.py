import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import Detection, ModalityColumns, logits_of
from fedjax_health.models import GruEncoder, MlpEncoder, fusion_detector
from fedjax_health.models.fusion import keep_modalities

# Two features each; "a" and "b" may be missing, "c" is complete.
LAYOUT = (
    ModalityColumns("a", (0, 2), (2, 4)),
    ModalityColumns("b", (4, 6), (6, 8), (8, 10)),
    ModalityColumns("c", (10, 12)),
)
MASKED = LAYOUT[:2]
SMALL = {
    "a": GruEncoder(5, pooling="attention", statistics=True),
    "b": GruEncoder(4, norm=True, pooling="mean"),
    "c": MlpEncoder((3,)),
}
RECORDS = dict.fromkeys("abc", MlpEncoder((9,)))
KINDS = ["row", "entity", "records"]


def settings(kind):
    if kind == "records":
        return {"encoders": RECORDS, "streams": False}
    return {"encoders": SMALL, "target": kind}


@functools.cache
def make(kind, *, layout=LAYOUT, **changes):
    """Returns ``apply``, compiled, and parameters."""
    chosen = settings(kind)
    names = {columns.name for columns in layout}
    encoders = {n: e for n, e in chosen.pop("encoders").items() if n in names}
    sizes = {"joint": 6, "aligned": 3}
    model = fusion_detector(layout, encoders=encoders, **{**sizes, **chosen, **changes})
    # Drawn here, so that biases and missing tokens are not zero and each one matters.
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(0, 0.4, p.shape), p.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    return jax.jit(model.apply), params


def make_batch(kind, *, examples=6, time=5, seed=0, layout=LAYOUT):
    rng = np.random.default_rng(seed)
    shape = (examples,) if kind == "records" else (examples, time)
    width = max(c.values[1] for c in LAYOUT) if layout is LAYOUT else 10
    x = rng.normal(size=(*shape, width))
    for columns in layout:
        if columns.observed is not None:
            first, end = columns.observed
            x[..., first:end] = rng.random((*shape, 2)) < 0.6
    x[..., 8:10] = np.abs(x[..., 8:10])
    batch = {"x": jnp.asarray(x, jnp.float32)}
    if kind != "records":
        valid = np.ones(shape)
        valid[0, :2] = 0
        batch["valid"] = jnp.asarray(valid, jnp.float32)
    return batch


def drop(batch, columns, example):
    """Takes a modality's flags away from one example."""
    x = batch["x"].at[example, ..., columns.observed[0] : columns.observed[1]].set(0)
    return batch | {"x": x}


def expected_presence(batch, kind, layout=LAYOUT):
    x = np.asarray(batch["x"])
    shape = x.shape[:1] if kind == "entity" else x.shape[:-1]
    want = np.ones((*shape, len(layout)), bool)
    for place in np.ndindex(*shape):
        for m, columns in enumerate(layout):
            if columns.observed is None:
                continue
            flags = x[place[0], ..., columns.observed[0] : columns.observed[1]]
            if kind == "row":
                flags = flags[: place[1] + 1]
            want[(*place, m)] = flags.any()
    return want


def test_equal_settings_give_the_same_functions():
    assert fusion_detector(LAYOUT) is fusion_detector(
        LAYOUT, encoders={"c": GruEncoder(np.int64(48), 0)}, joint=np.int64(32)
    )
    # As tuples, two encoders of different kinds with the same numbers would be equal.
    one = fusion_detector(LAYOUT, streams=False, encoders={"a": MlpEncoder((8,))})
    assert one.apply is not fusion_detector(LAYOUT, streams=False).apply


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_presence(kind):
    apply, params = make(kind)
    batch = drop(make_batch(kind), LAYOUT[0], 1)
    found = apply(params, batch)
    shape = (6, 5) if kind == "row" else (6,)
    assert isinstance(found, Detection)
    assert found.logits.shape == shape
    assert set(found.unimodal) == set(found.aligned) == {"a", "b", "c"}
    assert all(logits.shape == shape for logits in found.unimodal.values())
    assert all(u.shape == (*shape, 3) for u in found.aligned.values())
    assert found.embedding.shape == (*shape, 6)
    want = expected_presence(batch, kind)
    assert 0 < want.mean() < 1
    np.testing.assert_array_equal(found.present, want)
    np.testing.assert_array_equal(found.shares > 0, want)
    np.testing.assert_allclose(found.shares.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_logit_is_the_gated_sum_and_the_joint_logit(kind):
    apply, params = make(kind)
    found = apply(params, make_batch(kind))
    own = np.stack([found.unimodal[c.name] for c in LAYOUT], axis=-1)
    gate, head = params["gate"], params["head"]
    scores = np.asarray(found.embedding @ gate["kernel"] + gate["bias"], np.float64)
    weights = np.exp(scores) * np.asarray(found.present)
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(found.shares, weights, atol=1e-5)
    joint = np.asarray(found.embedding @ head["kernel"] + head["bias"])[..., 0]
    want = (weights * own).sum(-1) + joint
    np.testing.assert_allclose(found.logits, want, atol=1e-5)


def test_the_joint_layer_equals_its_formula():
    apply, params = make("records")
    batch = drop(make_batch("records"), LAYOUT[0], 1)
    found = apply(params, batch)
    x, present = np.asarray(batch["x"]), np.asarray(found.present)
    embeddings, spaces = [], []
    for m, columns in enumerate(LAYOUT):
        own = params[f"modality_{columns.name}"]
        spans = [s for s in columns[1:] if s is not None]
        inputs = [x[:, slice(*span)] for span in spans]
        if columns.name == "a":
            inputs[0] = inputs[0] * inputs[1]
        dense = own["encoder"]["dense"]["dense_0"]
        inputs = np.concatenate(inputs, axis=1)
        z = np.maximum(inputs @ dense["kernel"] + dense["bias"], 0)
        own_logit = (z @ own["head"]["kernel"] + own["head"]["bias"])[:, 0]
        own_logit = np.where(present[:, m], own_logit, 0)
        np.testing.assert_allclose(found.unimodal[columns.name], own_logit, atol=1e-5)
        u = z @ own["aligned"]["kernel"] + own["aligned"]["bias"]
        u = u / np.sqrt((u**2).mean(axis=1, keepdims=True) + 1e-6)
        spaces.append(np.where(present[:, [m]], u, 0))
        np.testing.assert_allclose(found.aligned[columns.name], spaces[m], atol=1e-5)
        embeddings.append(np.where(present[:, [m]], z, np.asarray(own["missing"])))
    evidence = [*embeddings, present]
    for a, b in itertools.combinations(range(3), 2):
        both = (present[:, a] & present[:, b])[:, None]
        evidence.append(both * np.abs(spaces[a] - spaces[b]))
        evidence.append(both * spaces[a] * spaces[b])
    evidence = np.concatenate(evidence, axis=1)
    joint = params["joint"]
    want = np.maximum(evidence @ joint["kernel"] + joint["bias"], 0)
    np.testing.assert_allclose(found.embedding, want, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_examples_do_not_see_one_another(kind):
    apply, params = make(kind)
    batch = make_batch(kind)
    order = np.array([3, 0, 5, 1, 4, 2])
    before = apply(params, batch)
    after = apply(params, {n: values[order] for n, values in batch.items()})
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(one[order], other, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", [0, 1])
def test_values_of_a_missing_modality_change_nothing(kind, modality):
    apply, params = make(kind)
    columns = LAYOUT[modality]
    batch = drop(make_batch(kind), columns, 2)
    first, end = columns.values
    other = batch | {"x": batch["x"].at[2, ..., first:end].set(1e6)}
    for one, two in zip(
        jax.tree.leaves(apply(params, batch)),
        jax.tree.leaves(apply(params, other)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)
    # What is there does matter.
    seen = batch["x"].at[..., first:end].add(1.0)
    changed = apply(params, batch | {"x": seen})
    assert not np.allclose(changed.logits, apply(params, batch).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_without_any_modality_there_is_an_answer_and_a_finite_gradient(kind):
    apply, params = make(kind, layout=MASKED)
    batch = make_batch(kind, layout=MASKED)
    for columns in MASKED:
        batch = drop(batch, columns, 0)

    def total(params):
        found = apply(params, batch, key=jax.random.key(1))
        return jnp.sum(found.logits) + sum(jnp.sum(u) for u in found.aligned.values())

    found = apply(params, batch)
    assert not np.any(found.shares[0])
    assert np.all(np.isfinite(found.logits))
    gradients = jax.jit(jax.grad(total))(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


def test_streams_are_causal():
    apply, params = make("row")
    batch = make_batch("row")
    later = batch | {"x": batch["x"].at[:, 3:].add(1.0)}
    before, after = apply(params, batch), apply(params, later)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(one[:, :3], other[:, :3], atol=1e-5)
    assert float(jnp.abs(before.logits - after.logits)[:, 3:].min()) > 0


def test_modality_dropout_acts_with_a_key_only_and_leaves_unimodal_answers():
    apply, params = make("row", modality_dropout=0.6)
    batch = make_batch("row", examples=40)
    still, dropped = (apply(params, batch, key=key) for key in (None, KEY))
    np.testing.assert_array_equal(still.present, dropped.present)
    for name in "abc":
        np.testing.assert_array_equal(still.unimodal[name], dropped.unimodal[name])
    gone = np.asarray(still.present) & (np.asarray(dropped.shares) == 0)
    # A whole modality in the whole window, and in some windows only.
    assert set(np.unique(gone.any(1))) == {False, True}
    np.testing.assert_array_equal(gone, gone.any(1)[:, None] & still.present)
    at_end = np.asarray(dropped.shares)[:, -1].sum(-1)
    np.testing.assert_allclose(at_end, 1, atol=1e-6)


KEY = jax.random.key(3)


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_never_all_that_an_example_has(rate):
    present = jnp.asarray(np.random.default_rng(0).random((4000, 2)) < 0.8)
    kept = np.asarray(keep_modalities(KEY, present, rate=rate))
    has = np.asarray(present)
    assert np.all((kept & has).any(1) == has.any(1))
    both = has.all(1)
    # One of two is lost where the other is kept.
    np.testing.assert_allclose(1 - kept[both, 0].mean(), rate * (1 - rate), atol=0.03)
    assert np.all(kept[both].any(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_modality(kind):
    layout = LAYOUT[:1]
    apply, params = make(kind, layout=layout)
    batch = {**make_batch(kind), "x": make_batch(kind)["x"][..., :4]}
    found = apply(params, batch)
    assert set(params) == {"encoder", "head"}
    assert (found.unimodal, found.aligned, found.shares) == ({}, {}, None)
    want = expected_presence(batch, kind, layout)
    np.testing.assert_array_equal(found.present, want)
    head = params["head"]
    logits = (found.embedding @ head["kernel"] + head["bias"])[..., 0]
    np.testing.assert_allclose(logits_of(found), logits, atol=1e-5)


def test_without_a_shared_space():
    apply, params = make("row", aligned=0)
    assert "aligned" not in params["modality_a"]
    assert params["joint"]["kernel"].shape[0] == 10 + 4 + 3 + 3
    assert apply(params, make_batch("row")).aligned == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoders": {"d": GruEncoder()}}, "'d'; the layout has a, b, c"),
        ({"joint": 0}, "joint=0"),
        ({"aligned": -1}, "aligned=-1"),
        ({"modality_dropout": 1.0}, "modality_dropout=1.0"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"target": "window"}, "target='window'"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fusion_detector(LAYOUT, **change)


def test_layouts_and_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="each once"):
        fusion_detector((LAYOUT[0], LAYOUT[0]))
    with pytest.raises(ValueError, match="needs examples with a time axis"):
        fusion_detector(LAYOUT, streams=False, encoders={"a": GruEncoder()}).init(KEY)
    apply, params = make("row")
    with pytest.raises(ValueError, match=r"time, 12\], not \(6, 5, 11\)"):
        apply(params, {"x": jnp.zeros((6, 5, 11))})
