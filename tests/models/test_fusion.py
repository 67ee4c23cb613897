import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_health.core.types import Detection, ModalityColumns, logits_of
from fedjax_health.models import GruEncoder, MlpEncoder, fusion_detector
from fedjax_health.models.fuse import CrossAttention
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
# Compiled in no time, and still a sum over the steps so far.
QUICK = dict.fromkeys("abc", MlpEncoder((4,)))
KINDS = ["row", "entity", "records"]
FUSES = ["gated", "concatenation", "cross_attention", "late"]


def settings(kind):
    if kind == "records":
        return {"encoders": RECORDS, "streams": False}
    if kind == "quick":
        return {"encoders": QUICK}
    return {"encoders": SMALL, "target": kind}


@functools.cache
def make(kind, *, layout=LAYOUT, **changes):
    """Returns ``apply``, compiled, and parameters."""
    chosen = settings(kind)
    names = {columns.name for columns in layout}
    encoders = {n: e for n, e in chosen.pop("encoders").items() if n in names}
    sizes = {"joint": 6, "aligned": 3, "heads": 2}
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
    # Without a shared space nothing can disagree; without attention heads are nothing.
    plain = fusion_detector(LAYOUT, fuse="concatenation", aligned=0)
    assert plain is fusion_detector(
        LAYOUT, fuse="concatenation", aligned=0, disagreement=False, heads=3
    )
    assert len({fusion_detector(LAYOUT, fuse=fuse).apply for fuse in FUSES}) == 4


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


def affine(layer, x):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def known_parts(params, batch, present):
    """Embeddings or missing tokens, own logits and shared spaces, of records."""
    x = np.asarray(batch["x"])
    embeddings, logits, spaces = [], [], []
    for m, columns in enumerate(LAYOUT):
        own = params[f"modality_{columns.name}"]
        spans = [s for s in columns[1:] if s is not None]
        inputs = [x[:, slice(*span)] for span in spans]
        if columns.name == "a":
            inputs[0] = inputs[0] * inputs[1]
        dense = own["encoder"]["dense"]["dense_0"]
        z = np.maximum(affine(dense, np.concatenate(inputs, axis=1)), 0)
        logits.append(np.where(present[:, m], affine(own["head"], z)[:, 0], 0))
        u = affine(own["aligned"], z)
        u = u / np.sqrt((u**2).mean(axis=1, keepdims=True) + 1e-6)
        spaces.append(np.where(present[:, [m]], u, 0))
        embeddings.append(np.where(present[:, [m]], z, np.asarray(own["missing"])))
    return embeddings, logits, spaces


def attended(params, embeddings, present):
    """What cross-attention makes of embeddings, one example and head at a time."""
    layer, heads, width = params["attention"], 2, 6
    size = width // heads
    tokens = np.stack(
        [
            affine(params[f"modality_{c.name}"]["token"], z)
            for c, z in zip(LAYOUT, embeddings, strict=True)
        ],
        axis=1,
    )
    read = tokens / np.sqrt((tokens**2).mean(axis=-1, keepdims=True) + 1e-6)
    query, key_value = affine(layer["query"], read), affine(layer["key_value"], read)
    key, value = key_value[..., :width], key_value[..., width:]
    taken = np.zeros_like(tokens)
    for e, m, h in np.ndindex(len(tokens), 3, heads):
        part = slice(h * size, (h + 1) * size)
        others = [n for n in range(3) if n != m and present[e, n]]
        scores = [query[e, m, part] @ key[e, n, part] / size**0.5 for n in others]
        whole = 1 + np.sum(np.exp(scores))
        for n, score in zip(others, scores, strict=True):
            taken[e, m, part] += np.exp(score) / whole * value[e, n, part]
    return list(np.moveaxis(tokens + affine(layer["out"], taken), 1, 0))


@pytest.mark.parametrize("disagreement", [True, False])
@pytest.mark.parametrize("fuse", FUSES)
def test_every_way_to_fuse_equals_its_formula(fuse, disagreement):
    apply, params = make("records", fuse=fuse, disagreement=disagreement)
    batch = drop(make_batch("records"), LAYOUT[0], 1)
    # The last example has nothing at all.
    absent = jnp.zeros((6, 3), bool).at[2, 2].set(True).at[5].set(True)
    batch["absent"] = absent
    found = apply(params, batch)
    present = np.asarray(found.present)
    want = expected_presence(batch, "records") & ~np.asarray(absent)
    np.testing.assert_array_equal(present, want)
    embeddings, logits, spaces = known_parts(params, batch, present)
    for m, columns in enumerate(LAYOUT):
        np.testing.assert_allclose(
            found.unimodal[columns.name], logits[m], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(found.aligned[columns.name], spaces[m], atol=1e-5)
    own = np.stack(logits, axis=1)
    if fuse == "late":
        shares = present / np.maximum(present.sum(1, keepdims=True), 1)
        total = (shares * own).sum(1)
        total[5] = np.mean(
            [
                affine(part["head"], np.asarray(part["missing"]))[0]
                for part in (params[f"modality_{c.name}"] for c in LAYOUT)
            ]
        )
        assert found.embedding is None
        assert not {"joint", "gate", "head"} & set(params)
        np.testing.assert_allclose(found.shares, shares, atol=1e-6)
        np.testing.assert_allclose(found.logits, total, rtol=1e-4, atol=1e-5)
        return
    if fuse == "cross_attention":
        embeddings = attended(params, embeddings, present)
    evidence = [*embeddings, present]
    if disagreement:
        for a, b in itertools.combinations(range(3), 2):
            both = (present[:, a] & present[:, b])[:, None]
            evidence.append(both * np.abs(spaces[a] - spaces[b]))
            evidence.append(both * spaces[a] * spaces[b])
    joint = np.maximum(affine(params["joint"], np.concatenate(evidence, axis=1)), 0)
    np.testing.assert_allclose(found.embedding, joint, rtol=1e-4, atol=1e-4)
    total = affine(params["head"], joint)[:, 0]
    if fuse == "gated":
        scores = np.exp(affine(params["gate"], joint)) * present
        shares = scores / np.maximum(scores.sum(1, keepdims=True), 1e-30)
        np.testing.assert_allclose(found.shares, shares, atol=1e-4)
        total = total + (shares * own).sum(1)
    else:
        assert found.shares is None
        assert "gate" not in params
    np.testing.assert_allclose(found.logits, total, rtol=1e-3, atol=1e-4)


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


@pytest.mark.parametrize("fuse", FUSES)
def test_neither_answer_nor_gradient_sees_a_missing_modality(fuse):
    apply, params = make("quick", fuse=fuse)

    @jax.jit
    def value(params, batch):
        def loss(params):
            found = apply(params, batch)
            return jnp.sum(found.logits**2), found

        return jax.grad(loss, has_aux=True)(params)

    for modality, columns in enumerate(MASKED):
        dropped = drop(make_batch("row"), columns, 2)
        dropped["absent"] = jnp.zeros((6, 3), bool)
        # The same by decree, with flags that say otherwise.
        decreed = make_batch("row")
        decreed["absent"] = jnp.zeros((6, 3), bool).at[2, modality].set(True)
        first, end = columns.values
        answers = []
        for batch in (dropped, decreed):
            other = batch | {"x": batch["x"].at[2, ..., first:end].set(30.0)}
            pair = value(params, batch), value(params, other)
            for one, two in zip(*map(jax.tree.leaves, pair), strict=True):
                np.testing.assert_array_equal(one, two)
            answers.append(pair[0][1])
        for one, two in zip(*map(jax.tree.leaves, answers), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-6)
        # The learned vector takes its place, but for the answer of "late", which rests
        # on what is there.
        own = value(params, decreed)[0][f"modality_{columns.name}"]
        assert np.any(own["missing"]) == (fuse != "late")


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


@pytest.mark.parametrize("fuse", FUSES)
def test_streams_are_causal(fuse):
    apply, params = make("row" if fuse == "gated" else "quick", fuse=fuse)
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


@pytest.mark.parametrize("fuse", ["cross_attention", "late"])
def test_modality_dropout_acts_on_every_way_to_fuse(fuse):
    apply, params = make("quick", fuse=fuse, modality_dropout=0.6)
    batch = make_batch("row", examples=40)
    still, dropped = (apply(params, batch, key=key) for key in (None, KEY))
    changed = np.asarray(still.logits != dropped.logits).any(1)
    assert 0 < changed.sum() < 40
    np.testing.assert_array_equal(still.present, dropped.present)
    # What is kept is what an example would have without the rest: its modalities are
    # found by trying each combination.
    gone = jnp.array(list(itertools.product([False, True], repeat=3)))
    tried = jax.vmap(
        lambda one: apply(params, {**batch, "absent": jnp.tile(one, (40, 1))}).logits
    )(gone)
    near = np.abs(tried - dropped.logits).max(-1).min(0)
    np.testing.assert_allclose(near, 0, atol=1e-5)


def test_without_any_other_modality_cross_attention_takes_nothing():
    module = CrossAttention(6, 2, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 6)), jnp.float32)
    nobody = jnp.zeros((4, 3), bool)
    np.testing.assert_allclose(module(tokens, nobody), tokens, atol=1e-6)
    alone = nobody.at[:, 1].set(True)
    found = module(tokens, alone)
    np.testing.assert_allclose(found[:, 1], tokens[:, 1], atol=1e-6)
    assert float(jnp.abs(found - tokens)[:, [0, 2]].max(-1).min()) > 1e-4


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


def test_a_shared_space_without_disagreement():
    apply, params = make("quick", disagreement=False)
    assert "aligned" in params["modality_a"]
    assert params["joint"]["kernel"].shape[0] == 3 * 4 + 3
    assert set(apply(params, make_batch("row")).aligned) == set("abc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoders": {"d": GruEncoder()}}, "'d'; the layout has a, b, c"),
        ({"joint": 0}, "joint=0"),
        ({"aligned": -1}, "aligned=-1"),
        ({"modality_dropout": 1.0}, "modality_dropout=1.0"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"target": "window"}, "target='window'"),
        (
            {"fuse": "early"},
            "fuse='early': gated, concatenation, cross_attention, late",
        ),
        ({"fuse": "cross_attention", "heads": 5}, "multiple of heads=5"),
        ({"heads": 0}, "heads=0"),
        ({"fuse": "late", "dropout": 0.1}, "dropout=0.1 acts on the joint layer"),
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
    with pytest.raises(ValueError, match=r"examples, 3\], not \(6, 2\)"):
        apply(params, {**make_batch("row"), "absent": jnp.zeros((6, 2), bool)})
    apply, params = make("row", layout=LAYOUT[:1])
    batch = {"x": jnp.zeros((6, 5, 4)), "absent": jnp.zeros((6, 1), bool)}
    with pytest.raises(ValueError, match="has one, a, without which nothing is left"):
        apply(params, batch)
