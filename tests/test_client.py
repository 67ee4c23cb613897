"""Local training of one client against plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_health.client import (
    ClientData,
    LocalContext,
    build_train,
    ditto,
    fedavg,
    fedprox,
    gather,
    local_batch,
    scaffold,
    visit,
)
from fedjax_health.core.permutation import permutation_words, permute
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import DataAttack, DataAttackContext, Examples

RATE = 0.1
ROWS = 40


def make_rows(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(ROWS, 3)).astype(np.float32),
        "label": rng.normal(size=ROWS).astype(np.float32),
        "row": np.arange(ROWS, dtype=np.float32),
    }


def make_data(first=10, n=7, steps=3, rows=None, malicious=False, seed=0):
    rows = make_rows() if rows is None else rows
    return ClientData(
        examples=Examples({name: jnp.asarray(v) for name, v in rows.items()}),
        first=jnp.int32(first),
        num_examples=jnp.int32(n),
        num_steps=jnp.int32(steps),
        words=permutation_words(root_key(seed)),
        train_key=root_key(seed + 1),
        attack=DataAttackContext(
            root_key(2), jnp.int32(5), jnp.bool_(malicious), jnp.int32(0)
        ),
    )


def make_params():
    return {"w": jnp.array([0.3, -0.2, 0.5]), "b": jnp.float32(0.1)}


def loss_fn(params, batch, key):
    del key
    error = batch["x"] @ params["w"] + params["b"] - batch["label"]
    weight = batch["weight"]
    total = jnp.maximum(jnp.sum(weight), 1.0)
    loss = jnp.sum(0.5 * error**2 * weight) / total
    return loss, {"mean_row": jnp.sum(batch["row"] * weight) / total}


@functools.partial(jax.jit, static_argnums=(2, 3))
def _batch(data, step, batch_size, data_attack):
    return local_batch(data, step, visit(data, step, batch_size), data_attack)


@functools.cache
def trainer(batch_size, data_attack=None):
    train = build_train(loss_fn, optax.sgd(RATE), batch_size, data_attack)
    return jax.jit(lambda data, params: train(data, params))


@functools.cache
def runner(algorithm_of, batch_size=4):
    algorithm = algorithm_of()
    train = build_train(loss_fn, optax.sgd(RATE), batch_size, None)

    @jax.jit
    def run(data, params, memory, shared):
        context = LocalContext(shared, data.num_steps, jnp.float32(RATE))
        return algorithm.run(functools.partial(train, data), params, memory, context)

    return algorithm, run


def np_epochs(data, batch_size):
    """The rows of each local step; the order is that of ``permute``."""
    n, first = int(data.num_examples), int(data.first)
    per_epoch = -(-n // batch_size)
    for step in range(int(data.num_steps)):
        epoch, within = divmod(step, per_epoch)
        places = np.arange(within * batch_size, min((within + 1) * batch_size, n))
        order = permute(data.words, jnp.int32(epoch), jnp.asarray(places), jnp.int32(n))
        yield first + np.asarray(order)


def np_train(data, batch_size, correct=lambda g, w: g, start=None):
    rows = {name: np.asarray(v, np.float64) for name, v in data.examples.rows.items()}
    w = to_vector(make_params()) if start is None else start
    loss, seen, mean_row = 0.0, 0, 0.0
    for take in np_epochs(data, batch_size):
        x = np.column_stack([np.ones(len(take)), rows["x"][take]])
        error = x @ w - rows["label"][take]
        loss += 0.5 * np.sum(error**2)
        mean_row += rows["row"][take].sum()
        seen += len(take)
        w = w - RATE * correct(error @ x / len(take), w)
    return w, loss / max(seen, 1), mean_row / max(seen, 1)


def to_vector(params):
    """b, then w: the order of the leaves."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]).astype(float)


@pytest.mark.parametrize("n", [1, 4, 7, 12])
def test_an_epoch_visits_every_example_once(n):
    batch_size, per_epoch = 4, -(-n // 4)
    data = make_data(n=n)
    orders = []
    for epoch in range(3):
        seen, weights = [], []
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            batch = _batch(data, jnp.int32(step), batch_size, None)
            assert batch["x"].shape == (batch_size, 3)
            weights.append(np.asarray(batch["weight"]))
            seen += np.asarray(batch["row"])[weights[-1] > 0].tolist()
        assert sorted(seen) == list(range(10, 10 + n))
        assert np.concatenate(weights).sum() == n
        orders.append(tuple(seen))
    if n >= 7:
        assert len(set(orders)) == 3


def test_the_filler_of_a_short_batch_is_the_clients_own():
    for n in (1, 2, 3, 5, 9):
        data = make_data(n=n)
        for step in range(-(-n // 4)):
            rows = np.asarray(_batch(data, jnp.int32(step), 4, None)["row"])
            assert np.all((rows >= 10) & (rows < 10 + n))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 9])
def test_another_clients_rows_cannot_reach_a_client_through_filler(n):
    rows = make_rows()
    spoilt = {name: values.copy() for name, values in rows.items()}
    for values in spoilt.values():
        values[:10] = values[10 + n :] = np.nan
    clean, _ = trainer(4)(make_data(n=n, rows=rows), make_params())
    alone, metrics = trainer(4)(make_data(n=n, rows=spoilt), make_params())
    np.testing.assert_array_equal(to_vector(clean), to_vector(alone))
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize(("n", "batch_size"), [(7, 4), (1, 4), (8, 4), (7, 16)])
def test_training_equals_a_loop(n, batch_size, steps):
    data = make_data(n=n, steps=steps)
    params, metrics = trainer(batch_size)(data, make_params())
    w, loss, mean_row = np_train(data, batch_size)
    np.testing.assert_allclose(to_vector(params), w, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=2e-5)
    np.testing.assert_allclose(metrics["mean_row"], mean_row, rtol=2e-5)


def test_training_under_vmap_equals_one_by_one():
    cases = [(10, 7, 3), (0, 1, 2), (20, 12, 6), (3, 5, 0)]
    many = [
        make_data(first, n, steps, seed=i) for i, (first, n, steps) in enumerate(cases)
    ]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *many)
    axes = jax.tree.map(lambda _: 0, many[0])._replace(
        examples=jax.tree.map(lambda _: None, many[0].examples)
    )
    stack = stack._replace(examples=many[0].examples)
    mapped, _ = jax.jit(jax.vmap(trainer(4), in_axes=(axes, None)))(
        stack, make_params()
    )
    for i, data in enumerate(many):
        alone, _ = trainer(4)(data, make_params())
        np.testing.assert_allclose(mapped["w"][i], alone["w"], rtol=1e-5, atol=1e-6)


def test_each_step_has_a_key_of_its_own():
    def noisy(params, batch, key):
        draw = jax.random.uniform(key)
        return params["w"] * draw, {"squared": draw**2}

    train = build_train(noisy, optax.sgd(1.0), 4, None)
    data = make_data(n=8, steps=4)
    params, metrics = jax.jit(lambda data: train(data, {"w": jnp.float32(0)}))(data)
    keys = [jax.random.fold_in(data.train_key, step) for step in range(4)]
    draws = np.array([jax.random.uniform(key) for key in keys])
    assert len(set(draws.tolist())) == 4
    np.testing.assert_allclose(params["w"], -draws.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["squared"], np.mean(draws**2), rtol=1e-6)


def _flip(batch, context):
    return {**batch, "label": -batch["label"] + context.client_id}


def test_only_malicious_clients_see_the_data_attack():
    attack = DataAttack(_flip)
    plain = _batch(make_data(), jnp.int32(0), 4, None)
    honest = _batch(make_data(), jnp.int32(0), 4, attack)
    forged = _batch(make_data(malicious=True), jnp.int32(0), 4, attack)
    for name in plain:
        np.testing.assert_array_equal(honest[name], plain[name])
    np.testing.assert_array_equal(forged["label"], 5 - plain["label"])
    np.testing.assert_array_equal(forged["weight"], plain["weight"])


def test_a_data_attack_cannot_set_weights():
    attack = DataAttack(lambda batch, context: {**batch, "x": batch["x"] * jnp.nan})
    data = make_data(malicious=True)
    batch = _batch(data, jnp.int32(1), 4, attack)
    np.testing.assert_array_equal(batch["weight"], [1, 1, 1, 0])


def test_fedavg_is_plain_training():
    algorithm, run = runner(fedavg)
    params = make_params()
    data = make_data()
    memory, shared = algorithm.init(params), algorithm.init_server(params)
    result = run(data, params, memory, shared)
    np.testing.assert_allclose(
        to_vector(result.params), np_train(data, 4)[0], rtol=2e-5, atol=1e-6
    )
    assert jax.tree.leaves((memory, shared, result.memory, result.report)) == []
    assert algorithm.reduce(shared, (), jnp.float32(9)) == shared


def test_fedprox_pulls_to_the_server():
    algorithm, run = runner(lambda: fedprox(0.7))
    data, params = make_data(steps=5), make_params()
    anchor = to_vector(params)
    result = run(data, params, (), algorithm.init_server(params))
    wanted, loss, _ = np_train(data, 4, lambda g, w: g + 0.7 * (w - anchor))
    np.testing.assert_allclose(to_vector(result.params), wanted, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(result.metrics["loss"], loss, rtol=2e-5)
    # The strength is a number of the broadcast, so that it may vary without compiling.
    free = run(data, params, (), {"mu": jnp.float32(0)})
    np.testing.assert_allclose(
        to_vector(free.params), np_train(data, 4)[0], rtol=2e-5, atol=1e-6
    )


def test_scaffold_corrects_drift_and_updates_its_control():
    algorithm, run = runner(scaffold)
    data, params = make_data(steps=3), make_params()
    assert algorithm.plain_sgd_only
    rng = np.random.default_rng(3)
    c, own = rng.normal(size=(2, 4)).astype(np.float32)

    def as_tree(v):
        return {"b": jnp.asarray(v[0]), "w": jnp.asarray(v[1:])}

    result = run(data, params, as_tree(own), {"control": as_tree(c)})
    wanted, _, _ = np_train(data, 4, lambda g, w: g - own + c)
    np.testing.assert_allclose(to_vector(result.params), wanted, rtol=2e-5, atol=1e-6)
    new = own - c + (to_vector(params) - wanted) / (3 * RATE)
    np.testing.assert_allclose(to_vector(result.memory), new, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        to_vector(result.report), new - own, rtol=1e-4, atol=1e-5
    )
    shared = algorithm.reduce({"control": as_tree(c)}, result.report, jnp.float32(20))
    np.testing.assert_allclose(
        to_vector(shared["control"]), c + (new - own) / 20, rtol=1e-4, atol=1e-5
    )
    assert not np.any(to_vector(algorithm.init(params)))
    assert not np.any(to_vector(algorithm.init_server(params)["control"]))


def test_ditto_trains_a_personal_model_beside_the_global_one():
    algorithm, run = runner(lambda: ditto(0.4))
    data, params = make_data(steps=4), make_params()
    server = to_vector(params)
    own = {"b": jnp.float32(-1.0), "w": jnp.array([1.0, 0.0, 2.0])}
    result = run(data, params, {"model": own}, algorithm.init_server(params))
    np.testing.assert_allclose(
        to_vector(result.params), np_train(data, 4)[0], rtol=2e-5, atol=1e-6
    )
    wanted, loss, _ = np_train(
        data, 4, lambda g, w: g + 0.4 * (w - server), to_vector(own)
    )
    model = algorithm.personal_model(result.memory)
    np.testing.assert_allclose(to_vector(model), wanted, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(result.metrics["personal_loss"], loss, rtol=2e-5)
    np.testing.assert_array_equal(
        to_vector(algorithm.personal_model(algorithm.init(params))), server
    )


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: fedprox(-0.1), "fedprox: mu must be 0 or more, not -0.1"),
        (lambda: fedprox(float("nan")), "not nan"),
        (lambda: ditto(-1), "ditto: strength must be 0 or more, not -1"),
    ],
)
def test_strengths_out_of_range_are_refused(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_records_of_equal_structure_share_their_functions():
    assert fedprox(0.1).run is fedprox(0.9).run
    assert fedprox(0.1).reduce is fedavg().reduce
    assert ditto(0.1).run is ditto(0.9).run
    assert scaffold() == scaffold()


def test_gather_clips_an_index_out_of_range():
    rows = {"x": jnp.arange(6.0), "y": jnp.arange(12).reshape(6, 2)}
    batch = gather(Examples(rows), jnp.array([0, 5, 6, 100, -3]))
    np.testing.assert_array_equal(batch["x"], [0, 5, 5, 5, 0])
    np.testing.assert_array_equal(batch["y"][2], [10, 11])


def test_gather_gives_windows_a_time_axis():
    rows = {"x": jnp.arange(12.0).reshape(6, 2), "label": jnp.arange(6.0)}
    examples = Examples(rows, jnp.array([0, 2, 3], jnp.int32), 3)
    batch = gather(examples, jnp.array([2, 0], jnp.int32))
    np.testing.assert_array_equal(batch["label"], [[3, 4, 5], [0, 1, 2]])
    assert batch["x"].shape == (2, 3, 2)
