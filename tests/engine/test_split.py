"""Halves that pass from client to client, and parts that some clients lack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_health as fh
from fedjax_health.data import store as stores
from fedjax_health.engine.places import Parts, SplitTraining, paths_matching

SIZES = (6, 4, 8, 3)
RATE, BATCH, EPOCHS = 0.2, 64, 3


def params():
    rng = np.random.default_rng(0)
    return {
        "low": {"kernel": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)},
        "high": {"kernel": jnp.asarray(rng.normal(size=(4,)), jnp.float32)},
        "side": {"kernel": jnp.asarray(rng.normal(size=(5,)), jnp.float32)},
    }


def loss_fn(p, batch, key):
    hidden = jnp.tanh(batch["x"] @ p["low"]["kernel"])
    logits = hidden @ p["high"]["kernel"] + batch["x"] @ p["side"]["kernel"]
    error = (logits - batch["label"]) ** 2 * batch["weight"]
    return jnp.sum(error) / jnp.maximum(jnp.sum(batch["weight"]), 1), {}


def data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(sum(SIZES), 5)).astype(np.float32)
    label = rng.normal(size=sum(SIZES)).astype(np.float32)
    return stores.from_arrays({"x": x, "label": label}, np.cumsum([0, *SIZES]))


def plan(**changes):
    local = fh.LocalTraining(
        optimizer=fh.Optimizer(optax.sgd, {"learning_rate": RATE}),
        epochs=EPOCHS,
        batch_size=BATCH,
    )
    return fh.RoundPlan(**{"local": local, **changes})


def split(mode, **bytes):
    return SplitTraining(
        server=paths_matching("high/*"),
        client=paths_matching("low/*"),
        mode=mode,
        **bytes,
    )


def run(plan, rounds=2, shares=None, parallelism="scan"):
    store = data()
    sampling = fh.Sampling("fixed", population=4, expected=4)
    algorithm = fh.build_algorithm(
        loss_fn,
        plan,
        abstract_params=params(),
        population=4,
        cohort_size=4,
        parallelism=parallelism,
    )
    state = algorithm.init(fh.root_key(3), params())
    cohorts = fh.build_cohort_fn(store, sampling, 3, part_shares=shares)
    state, metrics = fh.run_rounds(algorithm, state, cohorts, rounds)
    return algorithm, state, metrics


def sgd(p, client, store):
    """Full-batch steps of one client, by plain autodiff."""
    first, end = store.offsets[client : client + 2]
    batch = {name: jnp.asarray(v[first:end]) for name, v in store.rows.items()}
    batch["weight"] = jnp.ones(end - first)
    for _ in range(EPOCHS):
        gradient = jax.grad(lambda q: loss_fn(q, batch, None)[0])(p)
        p = jax.tree.map(lambda a, g: a - RATE * g, p, gradient)
    return p


def order_of(round, cohort_ids):
    key = fh.key_for(fh.root_key(3), fh.Stream.ORDER, round, 2**32 - 1)
    return np.asarray(cohort_ids)[np.asarray(jax.random.permutation(key, 4))]


def by_hand(passed, rounds=2):
    """One client after another; what does not pass on is averaged by examples."""
    store, p = data(), params()
    sampling = fh.Sampling("fixed", population=4, expected=4)
    cohorts = fh.build_cohort_fn(store, sampling, 3)
    for round in range(rounds):
        carried = {name: p[name] for name in passed}
        total = jax.tree.map(jnp.zeros_like, p)
        for client in order_of(round, cohorts(round).client_ids):
            own = sgd({**p, **carried}, client, store)
            carried = {name: own[name] for name in passed}
            share = SIZES[client] / sum(SIZES)
            total = jax.tree.map(lambda t, a, s=share: t + s * a, total, own)
        p = {**total, **carried}
    return p


@pytest.mark.parametrize(
    ("mode", "passed"), [("sequential", ("high",)), ("relay", ("high", "low"))]
)
def test_halves_that_pass_on_are_a_loop_over_clients(mode, passed):
    _, state, metrics = run(plan(split=split(mode)))
    expected = by_hand(passed)
    for name in expected:
        np.testing.assert_allclose(
            state.params[name]["kernel"], expected[name]["kernel"], rtol=2e-5, atol=1e-6
        )
    assert np.all(metrics["accepted"])


def test_parallel_is_the_uncut_model_to_the_bit():
    _, whole, _ = run(plan())
    algorithm, cut, metrics = run(
        plan(split=split("parallel", up_bytes=7, down_bytes=3))
    )
    for a, b in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(cut.params), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    # Four numbers of the server's half cross no wire, either way.
    assert algorithm.message.uplink_bytes() == 4 * (20 + 5)
    assert algorithm.downlink_bytes == 4 * (20 + 5)
    visits = EPOCHS * sum(SIZES)
    np.testing.assert_array_equal(metrics["wire_up_bytes"], [7 * visits] * 2)
    np.testing.assert_array_equal(metrics["wire_down_bytes"], [3 * visits] * 2)


def test_clients_keep_their_halves():
    personal = paths_matching("low/*")
    _, state, _ = run(plan(split=split("sequential"), personal=personal))
    own = np.asarray(state.clients["personal"]["low"]["kernel"])
    assert len(np.unique(own.reshape(4, -1), axis=0)) == 4
    np.testing.assert_array_equal(
        state.params["low"]["kernel"], params()["low"]["kernel"]
    )


def test_a_client_that_drops_out_passes_nothing_on():
    _, still, _ = run(plan(split=split("relay"), dropout=0.999999))
    for a, b in zip(
        jax.tree.leaves(still.params), jax.tree.leaves(params()), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@functools.cache
def side_part():
    return Parts(("side",), lambda path: 0 if path.startswith("side") else None)


SHARES = np.array([[1.0], [0.0], [0.5], [0.0]])


@pytest.mark.parametrize("parallelism", ["scan", 2])
@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_a_part_is_averaged_over_those_that_have_its_data(weighting, parallelism):
    _, state, _ = run(
        plan(parts=side_part(), weighting=weighting),
        rounds=1,
        shares=SHARES,
        parallelism=parallelism,
    )
    store = data()
    trained = [sgd(params(), client, store) for client in range(4)]
    common = np.asarray(SIZES, float) if weighting == "examples" else np.ones(4)
    counted = SHARES[:, 0] if weighting == "examples" else SHARES[:, 0] > 0
    for name, weights in (("low", common), ("side", common * counted)):
        expected = sum(
            w * np.asarray(p[name]["kernel"])
            for w, p in zip(weights / weights.sum(), trained, strict=True)
        )
        np.testing.assert_allclose(
            state.params[name]["kernel"], expected, rtol=2e-5, atol=1e-6
        )


def test_a_rule_sees_of_a_part_those_that_have_its_data():
    rule = fh.aggregators.median()
    shares = np.array([[1.0], [0.2], [0.5], [0.0]])
    _, state, _ = run(plan(parts=side_part(), aggregator=rule), rounds=1, shares=shares)
    trained = [sgd(params(), client, data()) for client in range(4)]
    for name, who in (("low", range(4)), ("side", range(3))):
        rows = np.stack([np.asarray(trained[c][name]["kernel"]) for c in who])
        np.testing.assert_allclose(
            state.params[name]["kernel"], np.median(rows, axis=0), rtol=2e-5, atol=1e-6
        )


def test_a_part_that_nobody_has_stays():
    _, state, _ = run(plan(parts=side_part()), rounds=1, shares=np.zeros((4, 1)))
    np.testing.assert_array_equal(
        state.params["side"]["kernel"], params()["side"]["kernel"]
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": split("relay"), "personal": paths_matching("low/*")}, "relay"),
        (
            {"split": split("parallel"), "personal": paths_matching("high/*")},
            "server's",
        ),
        (
            {"split": SplitTraining(paths_matching("none/*"), paths_matching("low/*"))},
            "leaves at the server",
        ),
        (
            {"split": SplitTraining(paths_matching("low/*"), paths_matching("low/*"))},
            "at once",
        ),
        (
            {
                "split": SplitTraining(
                    paths_matching("high/*", "side/*"), paths_matching("low/*"), "relay"
                ),
                "aggregator": fh.aggregators.median(),
            },
            "no messages",
        ),
        ({"parts": side_part(), "aggregator": fh.secagg.secure_mean()}, "secure sum"),
    ],
)
def test_what_cannot_be_split_is_refused(changes, said):
    with pytest.raises(fh.CompositionError, match=said):
        run(plan(**changes))
