"""Momentum of a client's own updates: the recursion, absences, order, and its use."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health import privacy, transforms
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import ClientContext, Sampling
from fedjax_health.data.sampling import build_cohort_fn
from tests.engine.workload import (
    make_params,
    make_store,
    np_train,
    plan,
    run,
    to_vector,
)


def shuffled(seed=0, n=6, d=7):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def send(transform, updates):
    """Messages of one client for its updates, one after the other."""
    params = jnp.zeros(updates.shape[1])
    memory, shared = transform.init(params), transform.init_server(params)
    sent = []
    for number, update in enumerate(updates):
        context = ClientContext(
            root_key(number), jnp.int32(number), jnp.float32(1), params, shared
        )
        message, memory, _ = transform.update(jnp.asarray(update), memory, context)
        sent.append(message)
    return np.array(sent)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_messages_are_weighted_sums_of_all_updates_so_far(beta):
    updates = shuffled()
    sent = send(transforms.local_momentum(beta), updates)
    for t in range(len(updates)):
        weights = (1 - beta) * beta ** np.arange(t, -1, -1.0)
        weights[0] = beta**t
        assert weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(
            sent[t], weights @ updates[: t + 1], rtol=1e-5, atol=1e-6
        )


def test_a_constant_update_is_sent_as_it_is_from_the_first_round_on():
    updates = np.repeat(shuffled(n=1), 5, axis=0)
    np.testing.assert_allclose(
        send(transforms.local_momentum(0.9), updates), updates, rtol=1e-6
    )


def test_messages_of_one_client_vary_less():
    updates = shuffled(1, n=400, d=50)
    sent = send(transforms.local_momentum(0.9), updates)
    # (1 - beta) / (1 + beta) of the variance, once the start is forgotten.
    ratio = sent[100:].var() / updates[100:].var()
    assert ratio == pytest.approx(0.1 / 1.9, rel=0.2)


def test_rounds_against_numpy_with_absent_clients_keeping_their_memory():
    beta, rounds, cohort = 0.7, 3, 4
    _, state, _ = run(
        plan(transforms=(transforms.local_momentum(beta),), weighting="uniform"),
        rounds=rounds,
        cohort=cohort,
    )
    store = make_store()
    sampling = Sampling("fixed", population=store.num_clients, expected=cohort)
    cohorts = build_cohort_fn(store, sampling, 0)
    w, held, drawn = to_vector(make_params()).astype(float), {}, []
    for number in range(rounds):
        ids = [int(i) for i in np.asarray(cohorts(number).client_ids)]
        drawn.append(set(ids))
        sent = []
        for client in ids:
            trained_to = np_train(
                store, w, client, number, 0, rate=0.05, epochs=2, batch_size=4
            )
            update = w - trained_to
            if client in held:
                update = beta * held[client] + (1 - beta) * update
            held[client] = update
            sent.append(update)
        w = w - np.mean(sent, axis=0)
    assert set(held) - drawn[-1]
    np.testing.assert_allclose(to_vector(state.params), w, rtol=1e-4, atol=1e-5)
    memory = state.clients["transform"][0]
    np.testing.assert_array_equal(
        np.flatnonzero(memory.started), sorted(held), strict=True
    )
    for client, momentum in held.items():
        kept = np.append(
            memory.momentum["body"]["w"][client], memory.momentum["head"]["b"][client]
        )
        np.testing.assert_allclose(kept, momentum, rtol=1e-4, atol=1e-5)


def test_the_order_is_momentum_then_compressor_then_clip():
    momentum = transforms.local_momentum()
    for first in (transforms.top_k(0.5), transforms.qsgd(15)):
        with pytest.raises(CompositionError, match="the order is local_momentum"):
            transforms.chain(first, momentum).check(Message(num_params=10))
    clip = transforms.clip_l2(1.0)

    def bound_of(*parts):
        return transforms.chain(*parts).check(Message(num_params=10)).bound

    assert bound_of(clip, momentum) is None
    assert bound_of(momentum, transforms.top_k(0.5), clip) == "2/clip_norm"
    mechanism = privacy.central_gaussian(1.0)
    with pytest.raises(CompositionError, match="needs a bounded message"):
        run(
            plan(transforms=(clip, momentum), mechanism=mechanism, weighting="uniform"),
            rounds=0,
        )


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\), not"):
        transforms.local_momentum(beta)
