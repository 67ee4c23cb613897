"""DP-SGD inside local training, against its definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.client import ClientData, ExamplePrivacy, private_gradient
from fedjax_health.core.binomial import binomial_law, draw_count
from fedjax_health.core.permutation import permutation_words, permute
from fedjax_health.core.rng import words
from fedjax_health.core.types import DataAttackContext, Examples
from fedjax_health.engine.plan import DpSgd
from tests.engine.workload import SIZES, loss_fn, make_params, make_store, plan, run

EXAMPLES = 40


def client_data(seed=0, examples=EXAMPLES):
    store = make_store((examples,), seed)
    key = jax.random.key(seed)
    return ClientData(
        Examples({name: jnp.asarray(x) for name, x in store.rows.items()}),
        first=jnp.int32(0),
        num_examples=jnp.int32(examples),
        num_steps=jnp.int32(1),
        words=permutation_words(jax.random.fold_in(key, 1)),
        train_key=jax.random.fold_in(key, 2),
        attack=DataAttackContext(
            jax.random.fold_in(key, 3), jnp.int32(0), jnp.bool_(False), jnp.int32(0)
        ),
        example_key=jax.random.fold_in(key, 4),
    )


def numbers(clip_norm=0.5, noise_multiplier=1e-6):
    return ExamplePrivacy(jnp.float32(clip_norm), jnp.float32(noise_multiplier))


def evaluator(loss_fn, batch_size, microbatch):
    """Private gradients that find the law of their batches themselves."""
    private = private_gradient(loss_fn, batch_size, microbatch, None)

    @jax.jit
    def evaluate(data, params, step, numbers):
        law = binomial_law(data.num_examples, batch_size)
        return private(data, params, step, numbers, law)

    return evaluate


def clipped_sum(data, step, clip_norm, batch_size):
    """The gradient of Algorithm 1 without noise, example by example."""
    params = make_params()
    n = int(data.num_examples)
    word = words(data.example_key, jnp.uint32(0), 2 * step)
    count = int(draw_count(binomial_law(data.num_examples, batch_size), word))
    order = permute(data.words, jnp.int32(step), jnp.arange(n), jnp.int32(n))
    total = np.zeros(6)
    for i in np.asarray(order)[:count]:
        batch = {k: v[i][None] for k, v in data.examples.rows.items()}
        batch["weight"] = jnp.ones(1)
        gradient = jax.grad(lambda p, b=batch: loss_fn(p, b, None)[0])(params)
        flat = np.concatenate(
            [np.asarray(gradient["body"]["w"]), [float(gradient["head"]["b"])]]
        ).astype(np.float64)
        total += flat * min(1.0, clip_norm / max(np.linalg.norm(flat), 1e-12))
    return total / batch_size, count


@pytest.mark.parametrize("microbatch", [1, 3, 8, 64])
def test_the_gradient_is_the_clipped_sum_over_the_expected_batch(microbatch):
    data, batch_size = client_data(), 8
    evaluate = evaluator(loss_fn, batch_size, microbatch)
    for step in range(3):
        gradient, sums, seen = evaluate(data, make_params(), jnp.int32(step), numbers())
        expected, count = clipped_sum(data, step, 0.5, batch_size)
        got = np.concatenate([gradient["body"]["w"], [gradient["head"]["b"]]])
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert seen == count
        assert 0 <= sums["examples_clipped"] <= count


def test_batches_are_poisson():
    evaluate = evaluator(loss_fn, 8, 4)
    data = client_data()
    counts = [
        float(evaluate(data, make_params(), jnp.int32(step), numbers())[2])
        for step in range(1500)
    ]
    rate = 8 / EXAMPLES
    assert np.mean(counts) == pytest.approx(8, abs=5 * np.sqrt(8 / 1500))
    variance = EXAMPLES * rate * (1 - rate)
    assert np.var(counts) == pytest.approx(variance, rel=0.2)
    assert max(counts) > 12  # more than a few parts, and none of them is cut


def test_noise_has_the_stated_deviation_and_one_example_the_stated_influence():
    data, batch_size, clip_norm = client_data(), 8, 0.25
    evaluate = evaluator(loss_fn, batch_size, 8)
    noise = []
    for step in range(400):
        noised, _, _ = evaluate(
            data, make_params(), jnp.int32(step), numbers(clip_norm, 2.0)
        )
        clean, _, _ = evaluate(
            data, make_params(), jnp.int32(step), numbers(clip_norm, 1e-9)
        )
        noise.append(np.asarray(noised["body"]["w"] - clean["body"]["w"]))
    deviation = 2.0 * clip_norm / batch_size
    assert np.std(noise) == pytest.approx(deviation, rel=0.1)
    assert np.mean(noise) == pytest.approx(0, abs=5 * deviation / np.sqrt(2000))
    # One example that is anything at all moves the sum by the bound at most.
    wild = data.examples.rows["x"].at[0].set(1e6)
    moved = dataclasses.replace(data.examples, rows={**data.examples.rows, "x": wild})
    for step in range(20):
        a, _, _ = evaluate(
            data, make_params(), jnp.int32(step), numbers(clip_norm, 1e-9)
        )
        b, _, _ = evaluate(
            data._replace(examples=moved),
            make_params(),
            jnp.int32(step),
            numbers(clip_norm, 1e-9),
        )
        change = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b))
        assert np.sqrt(sum(change)) * batch_size <= 2 * clip_norm * (1 + 1e-5)


def test_rounds_with_private_clients_are_the_same_however_they_are_mapped():
    private = plan()
    local = dataclasses.replace(private.local, example_privacy=DpSgd(0.5, 0.8, 2))
    private = dataclasses.replace(private, local=local)
    _, one, metrics = run(private)
    _, two, _ = run(private, parallelism=3)
    _, clear, _ = run(plan())
    for a, b in zip(
        jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not np.allclose(one.params["body"]["w"], clear.params["body"]["w"])
    assert all(np.isfinite(m["loss"]) for m in metrics)
    assert 0 <= metrics[0]["examples_clipped"] <= 1
    assert len(SIZES) == 10


def test_numbers_out_of_range_are_refused():
    for bad in (
        {"clip_norm": 0, "noise_multiplier": 1},
        {"clip_norm": 1, "noise_multiplier": float("inf")},
        {"clip_norm": 1, "noise_multiplier": 1, "microbatch": 0},
    ):
        with pytest.raises(ValueError, match="DpSgd"):
            DpSgd(**bad)
