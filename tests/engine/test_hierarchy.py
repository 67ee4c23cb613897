"""Devices train and are averaged in their client, which alone speaks to the server."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_health as fh
from fedjax_health.client import ClientData, visit
from fedjax_health.core.message import CompositionError
from fedjax_health.core.permutation import permutation_words
from fedjax_health.core.types import DataAttackContext
from fedjax_health.data import store as stores
from fedjax_health.data.sampling import device_sizes
from fedjax_health.data.schema import DataError
from fedjax_health.engine.hierarchy import device_data

# Clients of one, three and two devices.
DEVICES = ((5,), (7, 2, 4), (1, 6))
RATE, BATCH = 0.1, 3
TOTAL = [sum(own) for own in DEVICES]


def params():
    return {"w": jnp.asarray([0.3, -0.2, 0.5], jnp.float32), "b": jnp.float32(0.1)}


def loss_fn(p, batch, key):
    error = jnp.tanh(batch["x"] @ p["w"] + p["b"]) - batch["label"]
    return (
        jnp.sum(error**2 * batch["weight"]) / jnp.maximum(jnp.sum(batch["weight"]), 1),
        {"error": jnp.mean(error)},
    )


def data(devices=DEVICES):
    rng = np.random.default_rng(1)
    rows = {
        "x": rng.normal(size=(sum(TOTAL), 3)).astype(np.float32),
        "label": rng.normal(size=sum(TOTAL)).astype(np.float32),
    }
    ends = np.cumsum([0, *(size for own in devices for size in own)])
    return stores.from_arrays(rows, np.cumsum([0, *TOTAL]), devices=ends)


def build(every, *, epochs=None, steps=None, parallelism="scan", **changes):
    averaging = None if every is None else fh.DeviceAveraging(every)
    plan = fh.RoundPlan(
        local=fh.LocalTraining(
            optimizer=fh.Optimizer(optax.sgd, {"learning_rate": RATE}),
            epochs=epochs,
            steps=steps,
            batch_size=BATCH,
            device_averaging=averaging,
        ),
        **changes,
    )
    return fh.build_algorithm(
        loss_fn,
        plan,
        abstract_params=params(),
        population=3,
        cohort_size=3,
        parallelism=parallelism,
    )


def run(every, *, devices=DEVICES, rounds=2, **settings):
    algorithm = build(every, **settings)
    state = algorithm.init(fh.root_key(3), params())
    sampling = fh.Sampling("fixed", population=3, expected=3)
    cohorts = fh.build_cohort_fn(data(devices), sampling, 3, devices=every is not None)
    state, metrics = fh.run_rounds(algorithm, state, cohorts, rounds)
    return jax.device_get(state.params), metrics


def gradient(p, x, label):
    """Of the mean squared error of ``tanh``, by hand, in float64."""
    out = np.tanh(x @ p["w"] + p["b"])
    slope = 2 * (out - label) * (1 - out**2) / len(label)
    return {"w": slope @ x, "b": slope.sum()}


def by_hand(every, steps_of, rounds=2):
    """Plain loops over rounds, clients, averages, devices and steps."""
    store = data()
    x = store.rows["x"].astype(np.float64)
    label = store.rows["label"].astype(np.float64)
    p = {name: np.float64(value) for name, value in params().items()}
    for round in range(rounds):
        total = dict.fromkeys(p, 0.0)
        for client, own in enumerate(DEVICES):
            key = fh.key_for(fh.root_key(3), fh.Stream.DATA, jnp.int32(round))
            known = ClientData(
                None,
                jnp.int32(0),
                jnp.int32(sum(own)),
                jnp.int32(0),
                permutation_words(jax.random.fold_in(key, client)),
                key,
                DataAttackContext(key, jnp.int32(client), False, jnp.int32(round)),
            )
            mine, done, steps = p, 0, steps_of(own)
            while done < steps:
                end, mean = min(done + every, steps), dict.fromkeys(p, 0.0)
                for number, size in enumerate(own):
                    start = int(np.sum(own[:number]))
                    device = device_data(
                        known, jnp.int32(number), jnp.int32(start), jnp.int32(size)
                    )
                    q = dict(mine)
                    for step in range(done, end):
                        seen = visit(device, jnp.int32(step), BATCH)
                        rows = np.asarray(seen.index)[np.asarray(seen.weight) > 0]
                        assert set(rows) <= set(range(start, start + size))
                        rows = rows + store.offsets[client]
                        g = gradient(q, x[rows], label[rows])
                        q = {name: q[name] - RATE * g[name] for name in q}
                    mean = {n: mean[n] + q[n] * size / sum(own) for n in q}
                mine, done = mean, end
            share = sum(own) / sum(TOTAL)
            total = {name: total[name] + share * mine[name] for name in p}
        p = total
    return p


@pytest.mark.parametrize(
    ("every", "settings", "steps_of"),
    [
        (2, {"steps": 5}, lambda own: 5),
        (2, {"steps": 5, "parallelism": "vmap"}, lambda own: 5),
        # Passes over the largest device's examples.
        (2, {"epochs": 2}, lambda own: 2 * -(-max(own) // BATCH)),
        (9, {"epochs": 1}, lambda own: -(-max(own) // BATCH)),
    ],
)
def test_devices_are_averaged_as_plain_loops_do(every, settings, steps_of):
    found, metrics = run(every, **settings)
    expected = by_hand(every, steps_of)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-6)
    steps = [steps_of(own) for own in DEVICES]
    np.testing.assert_array_equal(metrics["num_steps"], [sum(steps)] * 2)


def test_an_average_after_every_step_is_sgd_on_the_whole_client():
    """Of batches as large as a device, by the linearity of the gradient."""
    sizes = ((4, 1), (10, 3), (7,))
    store = data(((5,), (13,), (7,)))
    clients = [
        {n: np.asarray(v)[a:b].astype(np.float64) for n, v in store.rows.items()}
        for a, b in zip(store.offsets, store.offsets[1:], strict=False)
    ]
    algorithm = fh.build_algorithm(
        loss_fn,
        fh.RoundPlan(
            local=fh.LocalTraining(
                optimizer=fh.Optimizer(optax.sgd, {"learning_rate": RATE}),
                steps=4,
                batch_size=16,
                device_averaging=fh.DeviceAveraging(1),
            )
        ),
        abstract_params=params(),
        population=3,
        cohort_size=3,
    )
    sampling = fh.Sampling("fixed", population=3, expected=3)
    cohorts = fh.build_cohort_fn(data(sizes), sampling, 3, devices=True)
    state = algorithm.init(fh.root_key(3), params())
    state, _ = fh.run_rounds(algorithm, state, cohorts, 1)
    total = {"w": 0.0, "b": 0.0}
    for own in clients:
        p = {name: np.float64(value) for name, value in params().items()}
        for _ in range(4):
            g = gradient(p, own["x"], own["label"])
            p = {name: p[name] - RATE * g[name] for name in p}
        share = len(own["label"]) / sum(TOTAL)
        total = {name: total[name] + share * p[name] for name in p}
    for name in total:
        np.testing.assert_allclose(state.params[name], total[name], rtol=2e-5)


def test_one_device_and_one_average_is_the_flat_run_to_the_bit():
    flat, _ = run(None, steps=5)
    devices, _ = run(5, steps=5, devices=tuple((sum(own),) for own in DEVICES))
    for name in flat:
        assert flat[name].tobytes() == devices[name].tobytes()


def test_averaging_seldom_differs_from_averaging_often():
    seldom, _ = run(6, steps=6)
    often, _ = run(1, steps=6)
    assert not np.allclose(seldom["w"], often["w"], rtol=1e-4)


def test_the_local_loss_is_the_mean_over_the_examples_visited():
    _, metrics = run(4, steps=4, rounds=1)
    assert metrics["loss"].shape == (1,)
    # The loss of each step lies among those that single examples have at the start.
    store = data()
    out = np.tanh(store.rows["x"] @ np.asarray(params()["w"]) + 0.1)
    errors = (out - store.rows["label"]) ** 2
    assert errors.min() < metrics["loss"][0] < errors.max()


def test_it_goes_with_scaffold_rules_and_transforms():
    from fedjax_health.aggregators import median
    from fedjax_health.client import scaffold
    from fedjax_health.transforms import clip_l2

    plan = fh.RoundPlan(
        local=fh.LocalTraining(
            algorithm=scaffold(),
            optimizer=fh.Optimizer(optax.sgd, {"learning_rate": RATE}),
            steps=3,
            batch_size=BATCH,
            device_averaging=fh.DeviceAveraging(2),
        ),
        transforms=(clip_l2(0.05),),
        aggregator=median(),
    )
    algorithm = fh.build_algorithm(
        loss_fn, plan, abstract_params=params(), population=3, cohort_size=3
    )
    sampling = fh.Sampling("fixed", population=3, expected=3)
    cohorts = fh.build_cohort_fn(data(), sampling, 3, devices=True)
    state = algorithm.init(fh.root_key(3), params())
    state, metrics = fh.run_rounds(algorithm, state, cohorts, 3)
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), state.params, params()
    )
    assert np.all(metrics["accepted"])
    assert max(moved.values()) > 1e-3


def test_mapped_stores_know_their_devices(tmp_path):
    stores.write_store(data(), tmp_path / "store")
    mapped = stores.open_store(tmp_path / "store")
    sizes = device_sizes(mapped)
    np.testing.assert_array_equal(sizes.sizes, [5, 7, 2, 4, 1, 6])
    np.testing.assert_array_equal(
        sizes.of(np.array([1, 0]), 3), [[7, 2, 4], [5, 0, 0], [0, 0, 0]]
    )


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="every must be 1 or more"):
        fh.DeviceAveraging(0)
    with pytest.raises(CompositionError, match="each of its devices"):
        fh.LocalTraining(
            steps=1,
            device_averaging=fh.DeviceAveraging(1),
            example_privacy=fh.DpSgd(1.0, 1.0),
        )
    flat = stores.from_arrays({"x": np.zeros((4, 3), np.float32)}, np.array([0, 4]))
    sampling = fh.Sampling("fixed", population=1, expected=1)
    with pytest.raises(DataError, match="belong to no devices"):
        fh.build_cohort_fn(flat, sampling, 0, devices=True)
    with pytest.raises(DataError, match="no device has rows of two clients"):
        stores.from_arrays(
            {"x": np.zeros((4, 3), np.float32)},
            np.array([0, 2, 4]),
            devices=np.array([0, 3, 4]),
        )
    algorithm = build(2, steps=2)
    cohorts = fh.build_cohort_fn(
        data(), fh.Sampling("fixed", population=3, expected=3), 3
    )
    with pytest.raises(ValueError, match="devices=True"):
        algorithm.step(algorithm.init(fh.root_key(0), params()), cohorts(0))
    server = fh.SplitTraining(
        server=fh.paths_matching("w"), client=fh.paths_matching("b"), mode="relay"
    )
    with pytest.raises(CompositionError, match='mode="parallel"'):
        build(2, steps=2, split=server)
