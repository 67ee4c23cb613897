import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from fedjax_health.metrics import host
from fedjax_health.metrics.ranking import auprc, auroc

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
