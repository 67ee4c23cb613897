"""The workloads are what the reference figures were measured on."""

import math
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import workloads


@pytest.fixture(scope="module", params=workloads.NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def clients(name):
    return workloads.client_data(name)


def test_clients_have_the_stated_shapes(name, clients):
    shape = {"mlp": (64,), "gru": (20, 16)}[name]
    assert len(clients) == 1_000
    for features, label in clients:
        assert 40 <= len(label) <= 160
        assert features.shape == (len(label), *shape)
        assert features.dtype == label.dtype == np.float32
        assert set(np.unique(label)) <= {0.0, 1.0}


def test_data_is_drawn_in_the_reference_order(name, clients):
    # The order of the draws is the workload: sizes, direction, then client by client
    # a shift, the features and the label noise.
    shape = {"mlp": (64,), "gru": (20, 16)}[name]
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(np.log(80.0), 0.4, 1_000), 40, 160).astype(int)
    weights = rng.standard_normal(math.prod(shape)).astype(np.float32)
    for size, (features, label) in zip(sizes[:3], clients[:3], strict=True):
        shift = 0.3 * rng.standard_normal(shape).astype(np.float32)
        x = rng.standard_normal((size, *shape)).astype(np.float32) + shift
        noise = 2.0 * rng.standard_normal(size)
        np.testing.assert_array_equal(features, x)
        score = np.array([row.ravel() @ weights for row in x]) + noise
        clear = np.abs(score) > 1e-3
        np.testing.assert_array_equal(label[clear], (score > 0)[clear])
    np.testing.assert_array_equal(workloads.client_sizes(clients), sizes)


def test_schedule_is_distinct_and_grows_at_its_end():
    short, long = workloads.schedule(4), workloads.schedule(9)
    np.testing.assert_array_equal(short, long[:4])
    assert long.shape == (9, 100)
    for cohort in long:
        assert len(np.unique(cohort)) == 100
        assert cohort.min() >= 0
        assert cohort.max() < 1_000


def test_initial_params_lie_within_their_fan_in(name):
    params = workloads.initial_params(name)
    shapes = {
        "mlp": {"w1": (64, 128), "w2": (128, 64), "w3": (64, 1)},
        "gru": {"wi": (16, 192), "wh": (64, 192), "wo": (64, 1)},
    }[name]
    for key, shape in shapes.items():
        assert params[key].shape == shape
        bias = params["b" + key[1]]
        assert bias.shape == (shape[1],)
    for key, value in params.items():
        fan_in = 128 if key in ("w2", "b2") else 64
        assert value.dtype == np.float32
        assert np.abs(value).max() <= 1 / math.sqrt(fan_in)
    sizes = sum(value.size for value in params.values())
    assert sizes == {"mlp": 16_641, "gru": 15_809}[name]


def _slow_logit(name, params, example):
    def dense(weight, bias, inputs):
        return [
            sum(float(weight[i, j]) * inputs[i] for i in range(len(inputs)))
            + float(bias[j])
            for j in range(len(bias))
        ]

    def sigmoid(value):
        return 1 / (1 + math.exp(-value))

    if name == "mlp":
        hidden = [float(v) for v in example]
        for layer in "12":
            hidden = dense(params["w" + layer], params["b" + layer], hidden)
            hidden = [max(v, 0.0) for v in hidden]
        return dense(params["w3"], params["b3"], hidden)[0]
    state = [0.0] * 64
    for row in example:
        a = dense(params["wi"], params["bi"], [float(v) for v in row])
        b = dense(params["wh"], params["bh"], state)
        for j, before in enumerate(list(state)):
            reset = sigmoid(a[j] + b[j])
            update = sigmoid(a[64 + j] + b[64 + j])
            candidate = math.tanh(a[128 + j] + reset * b[128 + j])
            state[j] = (1 - update) * candidate + update * before
    return dense(params["wo"], params["bo"], state)[0]


def test_mean_loss_equals_a_loop_over_examples(name, clients):
    params = {k: 3 * v for k, v in workloads.initial_params(name).items()}
    few = [(features[:2], label[:2]) for features, label in clients[:2]]
    few.append((clients[2][0][:1], clients[2][1][:1]))
    losses = []
    for features, label in few:
        for example, target in zip(features, label, strict=True):
            logit = _slow_logit(name, params, example)
            sign = 1 if target else -1
            losses.append(math.log1p(math.exp(-sign * logit)))
    expected = sum(losses) / len(losses)
    assert workloads.mean_loss(name, params, few) == pytest.approx(expected, rel=1e-5)


def test_mean_loss_refuses_parameters_that_grew_an_axis(clients, name):
    params = workloads.initial_params(name)
    first = next(iter(params))
    params[first] = params[first][None]
    with pytest.raises(ValueError, match=f"parameter {first}"):
        workloads.mean_loss(name, params, clients[:1])


def test_unknown_workload_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'cnn': mlp, gru"):
        workloads.client_data("cnn")


def test_workloads_need_numpy_alone():
    program = (
        "import sys; import benchmarks.workloads, benchmarks.protocol; "
        "heavy = {'jax', 'optax', 'fedjax_health', 'pandas'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
