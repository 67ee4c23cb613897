"""The workloads that every engine trains, in NumPy alone.

The data, the cohorts and the initial parameters are drawn here, so that rivals in
environments of their own train the same thing as we do. The module runs on Python
3.10 with NumPy 1.26, which FedJAX needs, and on anything newer.

W1 ``mlp``: 1,000 clients of 40 to 160 examples (log-normal around 80), 64 features, a
binary label, an MLP 64-128-64-1 with ReLU. W2 ``gru``: the same clients, but an
example is a stream of 20 steps with 16 features and the model is GRU(64) -> 1 in
PyTorch's gate convention. Both: 100 clients a round drawn uniformly, one local epoch
of SGD at 0.05 in batches of 20, FedAvg weighted by examples with server rate 1.
"""

from __future__ import annotations

import numpy as np

NAMES = ("mlp", "gru")

NUM_CLIENTS = 1_000
COHORT_SIZE = 100
BATCH_SIZE = 20
LEARNING_RATE = 0.05
EPOCHS = 1

WARM_ROUNDS = 3
"""Rounds at the head of the schedule that no figure includes."""

HIDDEN = 64
TIME_STEPS = 20

_FEATURE_SHAPE = {"mlp": (64,), "gru": (TIME_STEPS, 16)}
_PARAMETER_SHAPE = {
    "mlp": {
        "w1": (64, 128),
        "b1": (128,),
        "w2": (128, 64),
        "b2": (64,),
        "w3": (64, 1),
        "b3": (1,),
    },
    "gru": {
        "wi": (16, 3 * HIDDEN),
        "bi": (3 * HIDDEN,),
        "wh": (HIDDEN, 3 * HIDDEN),
        "bh": (3 * HIDDEN,),
        "wo": (HIDDEN, 1),
        "bo": (1,),
    },
}
_FAN_IN = {
    "mlp": {"w1": 64, "b1": 64, "w2": 128, "b2": 128, "w3": 64, "b3": 64},
    "gru": dict.fromkeys(("wi", "bi", "wh", "bh", "wo", "bo"), HIDDEN),
}


def check_name(name: str) -> None:
    """Raises ValueError for a workload that does not exist."""
    if name not in NAMES:
        raise ValueError(f"unknown workload {name!r}: {', '.join(NAMES)}")


def client_data(name: str, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draws the examples of every client.

    Args:
      name: the workload.
      seed: of the data.

    Returns:
      One pair per client: features float32 ``[examples, ...]`` and labels float32
      ``[examples]``, 0 or 1.
    """
    check_name(name)
    rng = np.random.default_rng(seed)
    shape = _FEATURE_SHAPE[name]
    sizes = np.clip(rng.lognormal(np.log(80.0), 0.4, NUM_CLIENTS), 40, 160).astype(int)
    direction = rng.standard_normal(int(np.prod(shape))).astype(np.float32)
    clients = []
    for size in sizes:
        shift = 0.3 * rng.standard_normal(shape).astype(np.float32)
        features = rng.standard_normal((size, *shape)).astype(np.float32) + shift
        score = features.reshape(size, -1) @ direction + 2.0 * rng.standard_normal(size)
        clients.append((features, (score > 0).astype(np.float32)))
    return clients


def client_sizes(clients: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Returns the number of examples of every client, int64 ``[clients]``."""
    return np.array([len(label) for _, label in clients], np.int64)


def schedule(rounds: int, seed: int = 1) -> np.ndarray:
    """Draws the cohorts of the first rounds.

    Args:
      rounds: number of rounds, those of the warm-up included.
      seed: of the draw.

    Returns:
      int64 ``[rounds, COHORT_SIZE]``, the clients of each round, distinct in a round.
      A longer schedule starts with a shorter one.
    """
    rng = np.random.default_rng(seed)
    draws = [rng.choice(NUM_CLIENTS, COHORT_SIZE, replace=False) for _ in range(rounds)]
    return np.stack(draws)


def initial_params(name: str, seed: int = 2) -> dict[str, np.ndarray]:
    """Draws the parameters from which every engine starts.

    Returns:
      float32 arrays by name. A weight is ``[inputs, outputs]``; the gates of the GRU
      stand in the order reset, update, candidate, with one bias on each side.
    """
    check_name(name)
    rng = np.random.default_rng(seed)
    return {
        key: rng.uniform(-1, 1, shape).astype(np.float32)
        / np.float32(np.sqrt(_FAN_IN[name][key]))
        for key, shape in _PARAMETER_SHAPE[name].items()
    }


def _mlp_logits(params: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    hidden = np.maximum(hidden @ params["w2"] + params["b2"], 0)
    return (hidden @ params["w3"] + params["b3"])[:, 0]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _gru_logits(params: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    state = np.zeros((len(x), HIDDEN), np.float32)
    for step in range(x.shape[1]):
        from_input = x[:, step] @ params["wi"] + params["bi"]
        from_state = state @ params["wh"] + params["bh"]
        reset_i, update_i, candidate_i = np.split(from_input, 3, axis=1)
        reset_s, update_s, candidate_s = np.split(from_state, 3, axis=1)
        reset = _sigmoid(reset_i + reset_s)
        update = _sigmoid(update_i + update_s)
        candidate = np.tanh(candidate_i + reset * candidate_s)
        state = (1 - update) * candidate + update * state
    return (state @ params["wo"] + params["bo"])[:, 0]


def mean_loss(
    name: str,
    params: dict[str, np.ndarray],
    clients: list[tuple[np.ndarray, np.ndarray]],
) -> float:
    """Returns the logistic loss over the pooled examples of all clients.

    Raises:
      ValueError: if a parameter has another shape than it started with.
    """
    check_name(name)
    for key, shape in _PARAMETER_SHAPE[name].items():
        if params[key].shape != shape:
            raise ValueError(
                f"parameter {key} of {name} has shape {params[key].shape}, not {shape}"
            )
    logits_of = _mlp_logits if name == "mlp" else _gru_logits
    total = 0.0
    for features, label in clients:
        logits = logits_of(params, features).astype(np.float64)
        total += float(np.sum(np.logaddexp(0, logits) - label * logits))
    return total / int(np.sum(client_sizes(clients)))
