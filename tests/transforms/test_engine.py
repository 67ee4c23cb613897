"""Compressors inside a round: memory, sets that move on, bytes, private and resumed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import transforms
from fedjax_health.aggregators import trimmed_mean
from fedjax_health.core.message import CompositionError
from fedjax_health.privacy import central_gaussian
from tests.engine.workload import SIZES, make_params, plan, run, to_vector

EVERYONE = len(SIZES)


def trained(*shapers, rounds=4, cohort=EVERYONE, weighting="uniform", **changes):
    return run(
        plan(transforms=shapers, weighting=weighting, **changes),
        rounds=rounds,
        cohort=cohort,
    )


@functools.cache
def plain():
    return to_vector(trained()[1].params)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shaper",
    [
        transforms.error_feedback(transforms.random_k(1.0)),
        transforms.top_k(1.0),
        transforms.random_k(1.0),
        transforms.ef21(transforms.top_k(1.0)),
        transforms.error_feedback(transforms.top_k(1.0)),
    ],
)
def test_a_compressor_that_keeps_everything_changes_nothing(shaper):
    _, state, _ = trained(shaper)
    np.testing.assert_allclose(to_vector(state.params), plain(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shaper", "each"),
    [
        (transforms.top_k(0.5), 1 + 1 + 4 * 3),
        (transforms.random_k(0.5), 4 * 3),
        (transforms.random_k(0.5, shared=False), 8 + 4 * 3),
        (transforms.drive(), 12 + 1),
    ],
)
def test_the_bytes_of_all_clients_are_reported(shaper, each):
    _, _, metrics = trained(shaper, transforms.clip_l2(1.0), rounds=2)
    for record in metrics:
        assert record["uplink_bytes"] == each * len(SIZES)


@pytest.mark.slow
def test_the_common_set_moves_on_from_round_to_round():
    sets = []
    for rounds in (1, 2, 3, 4):
        _, state, _ = trained(transforms.random_k(0.4), rounds=rounds)
        sets.append(tuple(np.asarray(state.shared["transform"][0]["indices"])))
    assert len(set(sets)) > 1


def test_ef21_holds_the_mean_of_the_client_table():
    _, state, _ = trained(transforms.ef21(transforms.top_k(0.4)), rounds=5)
    held = jax.tree.map(lambda x: x.mean(axis=0), state.clients["transform"][0])
    estimate = state.shared["transform"][0]["estimate"]
    np.testing.assert_allclose(to_vector(estimate), to_vector(held), atol=1e-5)
    assert np.any(to_vector(held) != 0)


def test_error_feedback_goes_with_mechanisms():
    feedback = transforms.error_feedback(transforms.random_k(0.5))
    private = {"mechanism": central_gaussian(1.0), "cohort": 6}
    _, state, metrics = trained(feedback, transforms.clip_l2(0.5), **private)
    assert np.all(np.isfinite(to_vector(state.params)))
    for record in metrics:
        assert record["uplink_bytes"] == 4 * 3 * record["num_clients"]
        assert "clip_fraction" in record
    with pytest.raises(CompositionError, match="put a clipping transform last"):
        trained(transforms.clip_l2(0.5), feedback, **private)


@pytest.mark.slow
def test_a_rule_sees_compact_messages():
    feedback = transforms.error_feedback(transforms.random_k(0.5))
    _, state, _ = trained(feedback, aggregator=trimmed_mean(1))
    assert np.all(np.isfinite(to_vector(state.params)))


@pytest.mark.slow
def test_clients_that_are_not_drawn_keep_their_memory():
    feedback = transforms.error_feedback(transforms.top_k(0.2))
    _, state, _ = trained(feedback, rounds=1, cohort=3)
    table = np.asarray(state.clients["transform"][0]["body"]["w"])
    assert table.shape[0] == len(SIZES)
    assert np.sum(np.any(table != 0, axis=1)) <= 3
    assert jax.tree.structure(state.params) == jax.tree.structure(make_params())


@pytest.mark.slow
def test_error_feedback_trains_where_sparse_messages_alone_stall():
    """A coordinate that is never among the largest is learnt late or not at all."""
    _, full, _ = trained(rounds=30)
    goal = to_vector(full.params)

    def distance(*shapers):
        _, state, _ = trained(*shapers, rounds=30)
        return np.linalg.norm(to_vector(state.params) - goal)

    alone = distance(transforms.sign(per_leaf=False))
    fed_back = distance(transforms.error_feedback(transforms.sign(per_leaf=False)))
    assert fed_back < alone
    start = np.linalg.norm(to_vector(make_params()) - goal)
    assert fed_back < 0.3 * start
    assert jnp.isfinite(alone)
