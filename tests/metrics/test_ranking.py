import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from fedjax_health.metrics import host
from fedjax_health.metrics.ranking import (
    Ranking,
    auprc,
    auroc,
    client_auprc,
    client_auroc,
    spread,
)

PAIRS = [(auroc, roc_auc_score), (auprc, average_precision_score)]
# Few distinct scores make heavy ties.
ROWS = st.lists(
    st.tuples(
        st.sampled_from([-2.5, -1.0, -0.0, 0.0, 0.25, 1.0, 7.0]),
        st.integers(0, 1),
        st.sampled_from([0.0, 0.5, 1.0, 1.0, 3.0]),
    ),
    min_size=12,
    max_size=12,
)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@given(rows=ROWS)
@settings(deadline=None, max_examples=150)
def test_equals_scikit_learn_with_ties_and_weights(ours, theirs, rows):
    score, label, weight = (np.array(column) for column in zip(*rows, strict=True))
    ranking = jax.jit(ours)(score, label, weight)
    both = len(set(label[weight > 0])) == 2
    assert bool(ranking.valid) == both
    if both:
        kept = weight > 0
        want = theirs(label[kept], score[kept], sample_weight=weight[kept])
        np.testing.assert_allclose(ranking.value, want, atol=1e-6)
    else:
        assert float(ranking.value) == 0.0


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(host.auroc, roc_auc_score), (host.auprc, average_precision_score)],
)
@given(rows=ROWS)
@settings(deadline=None, max_examples=150)
def test_host_equals_scikit_learn(ours, theirs, rows):
    score, label, _ = (np.array(column) for column in zip(*rows, strict=True))
    if len(set(label)) == 2:
        want = theirs(label, score)
        np.testing.assert_allclose(ours(score, label), want, atol=1e-12)
    else:
        with pytest.raises(ValueError, match="needs both classes"):
            ours(score, label)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("decimals", [1, 7])
def test_many_rows_under_vmap(ours, theirs, decimals):
    rng = np.random.default_rng(0)
    label = rng.random((3, 20_000)) < 0.1
    score = np.round(rng.normal(size=label.shape) + label, decimals).astype(np.float32)
    weight = (rng.random(label.shape) < 0.8).astype(np.float32)
    weight[2] *= ~label[2]
    ranking = jax.jit(jax.vmap(ours))(score, label, weight)
    np.testing.assert_array_equal(ranking.valid, [True, True, False])
    for client in range(2):
        kept = weight[client] > 0
        want = theirs(label[client, kept], score[client, kept])
        np.testing.assert_allclose(ranking.value[client], want, atol=2e-6)


@pytest.mark.parametrize("ours", [auroc, auprc])
def test_rows_without_weight_may_hold_anything(ours):
    score = jnp.array([0.1, 0.4, 0.35, 0.8])
    label = jnp.array([0, 0, 1, 1])
    extra = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.4])
    want = ours(score, label)
    got = ours(
        jnp.concatenate([extra, score]),
        jnp.concatenate([jnp.array([0, 1, -1, 1]), label]),
        jnp.concatenate([jnp.zeros(4), jnp.ones(4)]),
    )
    assert bool(got.valid)
    np.testing.assert_allclose(got.value, want.value, rtol=1e-6)


@pytest.mark.parametrize("ours", [auroc, auprc])
def test_nan_that_counts_is_not_valid_and_not_nan(ours):
    ranking = ours(jnp.array([0.1, jnp.nan, 0.3]), jnp.array([0, 1, 1]))
    assert not bool(ranking.valid)
    assert float(ranking.value) == 0.0


def test_infinite_scores_rank_at_the_ends():
    score = jnp.array([-jnp.inf, 0.0, jnp.inf])
    np.testing.assert_allclose(auroc(score, jnp.array([0, 0, 1])).value, 1.0)
    np.testing.assert_allclose(auroc(score, jnp.array([1, 0, 0])).value, 0.0)


@pytest.mark.slow
def test_ten_million_rows_keep_five_digits():
    rng = np.random.default_rng(0)
    label = rng.random(10_000_000) < 0.05
    score = (rng.normal(size=label.shape) + label).astype(np.float32)
    for ours, exact in ((auroc, host.auroc), (auprc, host.auprc)):
        got = float(jax.jit(ours)(score, label).value)
        np.testing.assert_allclose(got, exact(score, label), atol=1e-5)


@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_shapes_without_an_answer_are_refused(shape):
    with pytest.raises(ValueError, match="need scores"):
        auroc(jnp.zeros(shape), jnp.zeros(shape))


BY_CLIENT = [(client_auroc, roc_auc_score), (client_auprc, average_precision_score)]


@pytest.mark.parametrize(("ours", "theirs"), BY_CLIENT)
@given(rows=ROWS, owners=st.lists(st.integers(-1, 4), min_size=12, max_size=12))
@settings(deadline=None, max_examples=150)
def test_clients_equal_scikit_learn_one_by_one(ours, theirs, rows, owners):
    score, label, weight = (np.array(column) for column in zip(*rows, strict=True))
    owner = np.array(owners)
    # numbers outside [0, 4) do not count
    ranking = jitted(ours)(score, label, owner, num_clients=4, weight=weight)
    for client in range(4):
        kept = (owner == client) & (weight > 0)
        both = len(set(label[kept])) == 2
        assert bool(ranking.valid[client]) == both
        want = 0.0
        if both:
            want = theirs(label[kept], score[kept], sample_weight=weight[kept])
        np.testing.assert_allclose(ranking.value[client], want, atol=1e-6)


@functools.cache
def jitted(function):
    return jax.jit(function, static_argnames="num_clients")


def clients(rows=5000):
    rng = np.random.default_rng(0)
    owner = rng.integers(0, 12, rows)
    label = rng.random(rows) < 0.2
    label[owner == 5] = False
    label[owner == 7] = True
    owner[owner == 9] = 8
    score = np.round(rng.normal(size=rows) + owner / 6 * label, 2).astype(np.float32)
    return score, label, owner


@pytest.mark.parametrize(
    ("packed", "padded"), [(client_auroc, auroc), (client_auprc, auprc)]
)
def test_packed_rows_padded_rows_and_the_host_agree(packed, padded):
    score, label, owner = clients()
    ranking = jitted(packed)(score, label, owner, num_clients=12)
    masks = owner[None] == np.arange(12)[:, None]
    each = jax.jit(jax.vmap(padded, in_axes=(None, None, 0)))(
        score, label, masks.astype(np.float32)
    )
    np.testing.assert_array_equal(ranking.valid, each.valid)
    np.testing.assert_allclose(ranking.value, each.value, atol=2e-6)
    known = host.client_rankings(score, label, owner, num_clients=12)
    np.testing.assert_array_equal(ranking.valid, known.ranked)
    assert known.ranked.sum() == 9
    want = known.auroc if packed is client_auroc else known.auprc
    np.testing.assert_allclose(ranking.value, want, atol=2e-6)


@pytest.mark.parametrize("ours", [client_auroc, client_auprc])
def test_clients_under_vmap(ours):
    score, label, owner = clients(900)
    stacked = [np.stack([a, a[::-1]]) for a in (score, label, owner)]
    stacked[0][1] *= -1
    many = jax.jit(jax.vmap(lambda s, y, c: ours(s, y, c, num_clients=12)))(*stacked)
    for i in range(2):
        one = jitted(ours)(*(a[i] for a in stacked), num_clients=12)
        np.testing.assert_array_equal(many.valid[i], one.valid)
        np.testing.assert_allclose(many.value[i], one.value, rtol=1e-6)


@pytest.mark.parametrize("ours", [client_auroc, client_auprc])
def test_a_nan_spoils_its_own_client_alone(ours):
    score = jnp.array([0.1, 0.9, jnp.nan, 0.3, 0.2, 0.8, jnp.nan])
    label = jnp.array([0, 1, 0, 1, 0, 1, 1])
    owner = jnp.array([0, 0, 1, 1, 2, 2, 3])
    weight = jnp.array([1.0, 1, 1, 1, 1, 1, 0])
    ranking = jitted(ours)(score, label, owner, num_clients=5, weight=weight)
    assert ranking.valid.tolist() == [True, False, True, False, False]
    assert ranking.value.tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="clients"):
        ours(score, label, owner[:3], num_clients=5)


@pytest.mark.parametrize("ranked", [0, 1, 9, 10, 19, 30])
def test_spread_equals_the_host(ranked):
    rng = np.random.default_rng(ranked)
    value = rng.random(37).astype(np.float32)
    valid = rng.permutation(np.arange(37) < ranked)
    got = jax.jit(spread)(Ranking(jnp.where(valid, value, 0), jnp.array(valid)))
    assert (int(got.ranked), int(got.excluded)) == (ranked, 37 - ranked)
    want = host.spread(value[valid])
    if want is None:
        assert [float(v) for v in got[:4]] == [0.0] * 4
    else:
        np.testing.assert_allclose([float(v) for v in got[:4]], want, atol=1e-6)
