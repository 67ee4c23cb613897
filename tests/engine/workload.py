"""A small federated problem for the engine's tests, and its round in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_health.client import fedavg
from fedjax_health.core.permutation import permutation_words, permute
from fedjax_health.core.rng import Stream, key_for, root_key
from fedjax_health.core.types import Sampling
from fedjax_health.data.sampling import build_cohort_fn, cohort_of
from fedjax_health.data.store import from_arrays
from fedjax_health.engine.algorithm import build_algorithm
from fedjax_health.engine.plan import LocalTraining, Optimizer, RoundPlan

FEATURES = 5
SIZES = (3, 17, 8, 1, 12, 30, 5, 9, 21, 4)


def make_store(sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    x = rng.normal(size=(total, FEATURES)).astype(np.float32)
    truth = rng.normal(size=FEATURES)
    y = (x @ truth + 0.3 * rng.normal(size=total)).astype(np.float32)
    return from_arrays({"x": x, "label": y}, np.cumsum([0, *sizes]))


def make_params():
    return {
        "body": {"w": jnp.linspace(-0.3, 0.4, FEATURES)},
        "head": {"b": jnp.float32(0.1)},
    }


def predict(params, x):
    return x @ params["body"]["w"] + params["head"]["b"]


def loss_fn(params, batch, key):
    del key
    error = predict(params, batch["x"]) - batch["label"]
    weight = batch["weight"]
    return jnp.sum(0.5 * error**2 * weight) / jnp.maximum(jnp.sum(weight), 1.0), {}


def plan(**changes) -> RoundPlan:
    local = {
        "algorithm": fedavg(),
        "optimizer": Optimizer(optax.sgd, {"learning_rate": 0.05}),
        "epochs": 2,
        "steps": None,
        "batch_size": 4,
    }
    local |= {name: changes.pop(name) for name in list(changes) if name in local}
    return RoundPlan(local=LocalTraining(**local), **changes)


def run(round_plan, *, rounds=3, cohort=6, seed=0, store=None, state=None, **build):
    """Runs rounds and returns (algorithm, last state, list of metrics)."""
    store = make_store() if store is None else store
    params = make_params()
    malicious = build.pop("malicious", None)
    sampling = build.pop(
        "sampling",
        Sampling("fixed", population=store.num_clients, expected=cohort),
    )
    loss = build.pop("loss_fn", loss_fn)
    build.setdefault("mesh", jax.sharding.Mesh(jax.devices()[:1], ("clients",)))
    algorithm = build_algorithm(
        loss,
        round_plan,
        abstract_params=params,
        population=store.num_clients,
        cohort_size=sampling.cohort_size,
        sampling=sampling,
        **build,
    )
    cohorts = build_cohort_fn(store, sampling, seed, malicious=malicious)
    state = algorithm.init(root_key(seed), params) if state is None else state
    metrics = []
    for _ in range(rounds):
        state, new = algorithm.step(state, cohorts(int(state.round)))
        metrics.append(jax.device_get(new))
    return algorithm, jax.device_get(state._replace(key=None)), metrics


def to_vector(params) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


# The same round in NumPy, one client and one step at a time.


def np_gradient(w, x, y):
    """w holds the body's weights, then the head's bias."""
    error = x @ w[:-1] + w[-1] - y
    return np.append(error @ x, error.sum()) / len(y)


_permute = jax.jit(permute)


def np_batches(store, client, round, seed, *, epochs, batch_size, steps=None):
    """Yields the rows of each local step; the order itself is the engine's."""
    first, end = store.offsets[client], store.offsets[client + 1]
    n = int(end - first)
    words = permutation_words(key_for(root_key(seed), Stream.DATA, round, client))
    per_epoch = -(-n // batch_size)
    total = epochs * per_epoch if steps is None else steps
    for step in range(total):
        epoch, within = divmod(step, per_epoch)
        positions = np.arange(within * batch_size, min((within + 1) * batch_size, n))
        order = _permute(words, jnp.int32(epoch), jnp.asarray(positions), jnp.int32(n))
        yield first + np.asarray(order)


def np_train(store, w, client, round, seed, *, rate, correct=None, **batches):
    rows = store.rows
    for take in np_batches(store, client, round, seed, **batches):
        gradient = np_gradient(w, rows["x"][take].astype(float), rows["label"][take])
        if correct is not None:
            gradient = correct(gradient, w)
        w = w - rate * gradient
    return w


__all__ = [
    "SIZES",
    "cohort_of",
    "loss_fn",
    "make_params",
    "make_store",
    "np_gradient",
    "np_train",
    "plan",
    "run",
    "to_vector",
]
