"""Each algorithm against the same rounds in NumPy, one client and step at a time."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_health.client import ditto, fedprox, scaffold
from fedjax_health.core.message import CompositionError
from fedjax_health.core.types import Sampling
from fedjax_health.data.sampling import draw_clients
from fedjax_health.engine.places import (
    paths_matching,
)
from fedjax_health.engine.plan import (
    LocalTraining,
    Optimizer,
    cosine_schedule,
    exponential_schedule,
)
from tests.engine.workload import (
    SIZES,
    make_params,
    make_store,
    np_train,
    plan,
    run,
    to_vector,
)

RATE, EPOCHS, BATCH, COHORT, ROUNDS = 0.05, 2, 4, 6, 3
BATCHES = {"epochs": EPOCHS, "batch_size": BATCH}


def cohorts(rounds=ROUNDS, cohort=COHORT):
    sampling = Sampling("fixed", population=len(SIZES), expected=cohort)
    return [draw_clients(sampling, 0, r) for r in range(rounds)]


def np_fedavg(*, weighting="examples", rate=lambda r: RATE, correct=None, **batches):
    store, w = make_store(), to_vector(make_params()).astype(float)
    for r, ids in enumerate(cohorts()):
        ends = [
            np_train(
                store,
                w,
                c,
                r,
                0,
                rate=rate(r),
                correct=None if correct is None else correct(w),
                **(batches or BATCHES),
            )
            for c in ids
        ]
        weights = np.asarray(SIZES)[ids] if weighting == "examples" else np.ones(COHORT)
        w = np.average(ends, axis=0, weights=weights)
    return w


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("parallelism", ["scan", 2, "vmap"])
def test_fedavg(weighting, parallelism):
    _, state, _ = run(plan(weighting=weighting), parallelism=parallelism)
    np.testing.assert_allclose(
        to_vector(state.params), np_fedavg(weighting=weighting), rtol=2e-5, atol=2e-6
    )


def test_a_number_of_steps_instead_of_epochs():
    _, state, metrics = run(plan(epochs=None, steps=7))
    expected = np_fedavg(epochs=None, batch_size=BATCH, steps=7)
    np.testing.assert_allclose(to_vector(state.params), expected, rtol=2e-5, atol=2e-6)
    assert metrics[0]["num_steps"] == 7 * COHORT


def test_fedprox():
    mu = 0.7
    _, state, _ = run(plan(algorithm=fedprox(mu)))
    expected = np_fedavg(correct=lambda start: lambda g, w: g + mu * (w - start))
    np.testing.assert_allclose(to_vector(state.params), expected, rtol=2e-5, atol=2e-6)
    assert not np.allclose(expected, np_fedavg(), rtol=1e-3)


@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        (cosine_schedule(3, final=0.1), lambda r: 0.55 + 0.45 * np.cos(np.pi * r / 3)),
        (exponential_schedule(0.5), lambda r: 0.5**r),
        (
            cosine_schedule(4, warmup=2),
            lambda r: [0.5, 1.0, 1.0][r],
        ),
    ],
)
def test_learning_rate_schedules_by_round(schedule, factor):
    optimizer = Optimizer(optax.sgd, {"learning_rate": RATE}, schedule)
    _, state, _ = run(plan(optimizer=optimizer))
    expected = np_fedavg(rate=lambda r: RATE * factor(r))
    np.testing.assert_allclose(to_vector(state.params), expected, rtol=2e-5, atol=2e-6)


def test_scaffold():
    store = make_store()
    w = to_vector(make_params()).astype(float)
    server, own = np.zeros(w.size), np.zeros((len(SIZES), w.size))
    for r, ids in enumerate(cohorts()):
        ends, change = [], np.zeros(w.size)
        for c in ids:
            drift = server - own[c]
            end = np_train(
                store, w, c, r, 0, rate=RATE, correct=lambda g, _, d=drift: g + d,
                **BATCHES,
            )  # fmt: skip
            steps = EPOCHS * -(-SIZES[c] // BATCH)
            new = own[c] - server + (w - end) / (steps * RATE)
            change += new - own[c]
            own[c] = new
            ends.append(end)
        w = np.average(ends, axis=0, weights=np.asarray(SIZES)[ids])
        server = server + change / len(SIZES)
    _, state, _ = run(plan(algorithm=scaffold()))
    np.testing.assert_allclose(to_vector(state.params), w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        to_vector(state.shared["algorithm"]["control"]), server, rtol=1e-4, atol=1e-4
    )
    table = state.clients["algorithm"]
    got = np.column_stack([table["body"]["w"], table["head"]["b"]])
    np.testing.assert_allclose(got, own, rtol=1e-3, atol=1e-4)


def test_scaffold_refuses_other_optimizers():
    for optimizer in (
        Optimizer(optax.adam, {"learning_rate": 0.1}),
        Optimizer(optax.sgd, {"learning_rate": 0.1, "momentum": 0.9}),
    ):
        with pytest.raises(CompositionError, match="without momentum"):
            LocalTraining(algorithm=scaffold(), optimizer=optimizer, epochs=1)


def test_ditto_keeps_a_personal_model_beside_fedavg():
    strength, store = 0.5, make_store()
    start = to_vector(make_params()).astype(float)
    w, own = start, np.tile(start, (len(SIZES), 1))
    for r, ids in enumerate(cohorts()):
        for c in ids:
            own[c] = np_train(
                store, own[c], c, r, 0, rate=RATE,
                correct=lambda g, v, a=w: g + strength * (v - a), **BATCHES,
            )  # fmt: skip
        ends = [np_train(store, w, c, r, 0, rate=RATE, **BATCHES) for c in ids]
        w = np.average(ends, axis=0, weights=np.asarray(SIZES)[ids])
    _, state, metrics = run(plan(algorithm=ditto(strength)))
    np.testing.assert_allclose(to_vector(state.params), w, rtol=2e-5, atol=2e-6)
    table = state.clients["algorithm"]["model"]
    got = np.column_stack([table["body"]["w"], table["head"]["b"]])
    np.testing.assert_allclose(got, own, rtol=1e-4, atol=1e-5)
    assert np.isfinite(metrics[-1]["personal_loss"])


def test_personal_layers_stay_with_their_clients():
    store = make_store()
    w = to_vector(make_params()).astype(float)
    heads = np.full(len(SIZES), w[-1])
    for r, ids in enumerate(cohorts()):
        ends = []
        for c in ids:
            start = np.append(w[:-1], heads[c])
            end = np_train(store, start, c, r, 0, rate=RATE, **BATCHES)
            heads[c] = end[-1]
            ends.append(end[:-1])
        w[:-1] = np.average(ends, axis=0, weights=np.asarray(SIZES)[ids])
    algorithm, state, _ = run(plan(personal=paths_matching("head/*")))
    np.testing.assert_allclose(state.params["body"]["w"], w[:-1], rtol=2e-5, atol=2e-6)
    assert state.params["head"]["b"] == jnp.float32(0.1)
    np.testing.assert_allclose(
        state.clients["personal"]["head"]["b"], heads, rtol=2e-5, atol=2e-6
    )
    assert algorithm.message.num_params == 5


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(optax.sgd, {"learning_rate": 1.0, "momentum": 0.9}),
        Optimizer(optax.adam, {"learning_rate": 0.1, "eps": 1e-3}),
        Optimizer(optax.yogi, {"learning_rate": 0.1, "eps": 1e-3}),
    ],
)
def test_server_optimizers_step_down_the_averaged_updates(optimizer):
    store, params = make_store(), make_params()
    reference = optimizer.constructor(**optimizer.arguments)
    server_state = reference.init(to_vector(params))
    w = jnp.asarray(to_vector(params))
    for r, ids in enumerate(cohorts()):
        start = np.asarray(w, float)
        ends = [np_train(store, start, c, r, 0, rate=RATE, **BATCHES) for c in ids]
        average = np.average(ends, axis=0, weights=np.asarray(SIZES)[ids])
        gradient = jnp.asarray(start - average, jnp.float32)
        change, server_state = reference.update(gradient, server_state, w)
        w = w + change
    _, state, _ = run(plan(server_optimizer=optimizer))
    np.testing.assert_allclose(to_vector(state.params), w, rtol=1e-3, atol=1e-4)


def test_local_adam_restarts_every_round():
    optimizer = Optimizer(optax.adam, {"learning_rate": 0.01})
    _, state, metrics = run(plan(optimizer=optimizer), rounds=8)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert np.all(np.isfinite(to_vector(state.params)))
