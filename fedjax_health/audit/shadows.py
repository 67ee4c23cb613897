"""Shadow models: the run's own training on random halves of its examples, all at once.

One compiled program trains every shadow: the round of the engine under ``vmap``, with
the run's algorithm, transforms, aggregator and mechanism. Each shadow has its own half
of every client's examples, its own first parameters and its own randomness; which
clients take part in a round is the same for all.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health import build
from fedjax_health.config import Config
from fedjax_health.core.rng import Stream, key_for, root_key
from fedjax_health.core.types import ClientBatches, Cohort, Examples
from fedjax_health.data.sampling import NO_LIMIT, draw_clients
from fedjax_health.data.store import ClientStore
from fedjax_health.engine.algorithm import build_algorithm, params_of_clients
from fedjax_health.engine.average import averaged_params
from fedjax_health.engine.parallel import AXIS
from fedjax_health.evaluate.scoring import Weights
from fedjax_health.records import Progress

# Apart from every other use of a seed.
SHADOW_STREAM = 101


class Shadows(NamedTuple):
    """Trained shadows.

    Attributes:
      weights: one a shadow.
      member: bool ``[shadows, examples]``, which examples each was trained on.
    """

    weights: tuple[Weights, ...]
    member: np.ndarray


def halves(store: ClientStore, shadows: int, seed: int) -> np.ndarray:
    """Returns a random half of every client's examples for each shadow.

    Args:
      store: the examples.
      shadows: how many.
      seed: of the draw.

    Returns:
      bool ``[shadows, examples]``. Of an odd number the half is the larger or the
      smaller one by a fair coin; a client with a single example always trains on it.
    """
    rng = np.random.default_rng([seed, SHADOW_STREAM])
    member = np.zeros((shadows, store.num_examples), bool)
    for first, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        count = int(end - first)
        for row in member:
            half = min(count, max(1, (count + int(rng.integers(2))) // 2))
            row[first + rng.permutation(count)[:half]] = True
    return member


def train_shadows(
    config: Config,
    prepared: build.Prepared,
    store: ClientStore,
    member: np.ndarray,
    *,
    rounds: int,
    seed: int,
    progress: Progress,
) -> Shadows:
    """Trains all shadows together.

    Args:
      config: of the run.
      prepared: its data.
      store: the examples that members are drawn from.
      member: bool ``[shadows, examples]``.
      rounds: of training.
      seed: of all that is random in it.
      progress: told the rounds.
    """
    shadows = len(member)
    settings = without_host(config)
    built = build.build(settings, prepared)
    algorithm = build_algorithm(
        built.loss_fn,
        built.plan,
        abstract_params=built.abstract_params,
        population=built.sampling.population,
        cohort_size=built.sampling.cohort_size,
        sampling=built.sampling,
        parallelism="scan",
        mesh=jax.sharding.Mesh(np.array(jax.local_devices()[:1]), (AXIS,)),
    )
    examples, axes = _members_first(store, member)
    counts = np.stack(
        [
            np.bincount(_clients(store)[row], minlength=store.num_clients)
            for row in member
        ]
    ).astype(np.int32)

    def begin(key):
        params = built.model.init(key_for(key, Stream.INIT))
        return algorithm.init(key, params)

    def one_round(state, arrays, ids, mask, malicious, index, shares, num_examples):
        cohort = Cohort(
            client_ids=ids,
            mask=mask,
            weights=num_examples.astype(jnp.float32),
            malicious=malicious,
            batches=ClientBatches(
                num_examples, jnp.full_like(num_examples, NO_LIMIT), index, arrays
            ),
            part_shares=shares,
        )
        state, metrics = algorithm.step(state, cohort)
        return state, metrics["loss"]

    fixed = (None, None, None, None, None)
    step = jax.jit(jax.vmap(one_round, in_axes=(0, axes, *fixed, 0)), donate_argnums=0)
    keys = jax.vmap(lambda i: jax.random.fold_in(root_key(seed % 2**32), i))(
        jnp.arange(shadows)
    )
    # One after the other: several batched decompositions (of orthogonal weights) at a
    # time wait for one another for ever where XLA has few threads.
    state = jax.jit(functools.partial(jax.lax.map, begin))(keys)
    slots, population = built.sampling.cohort_size, store.num_clients
    progress.on_message(f"training {shadows} shadow models, {rounds} rounds together")
    progress.on_start(total_rounds=rounds)
    for round in range(rounds):
        drawn = draw_clients(built.sampling, config.seed, round)
        ids = np.full(slots, population, np.int32)
        ids[: len(drawn)] = drawn
        mask = ids < population
        safe = np.where(mask, ids, 0)
        state, loss = step(
            state,
            examples,
            ids,
            mask,
            mask & built.malicious[safe],
            np.where(mask, store.offsets[safe], 0).astype(np.int32),
            # Of all examples of a client: those of its halves differ by chance alone.
            None
            if built.part_shares is None
            else np.where(mask[:, None], built.part_shares[safe], 0),
            np.where(mask, counts[:, safe], 0).astype(np.int32),
        )
        progress.on_round(round=round + 1, loss=float(jnp.mean(loss)))
    params = averaged_params(state.params, state.server)
    own = params_of_clients(built.plan.local.algorithm, state)
    params, own = jax.device_get((params, own))

    def row(tree: Any, i: int) -> Any:
        return None if tree is None else jax.tree.map(lambda x: x[i], tree)

    weights = tuple(Weights(row(params, i), row(own, i)) for i in range(shadows))
    return Shadows(weights, member)


def without_host(config: Config) -> Config:
    """Returns a configuration whose rounds run inside one program, client by client.

    Secure aggregation gives the same sum in all its fidelities, to the bit. Devices
    do not train by themselves: half of a client's examples are half of each device's.
    """
    import msgspec

    local = msgspec.structs.replace(config.local, device_steps=None)
    config = msgspec.structs.replace(config, local=local)
    aggregator: Any = config.aggregator
    if getattr(aggregator, "fidelity", "ideal") == "ideal":
        return config
    ideal = msgspec.structs.replace(aggregator, fidelity="ideal")
    return msgspec.structs.replace(config, aggregator=ideal)


def _clients(store: ClientStore) -> np.ndarray:
    return np.repeat(np.arange(store.num_clients), np.diff(store.offsets))


def _members_first(store: ClientStore, member: np.ndarray) -> tuple[Examples, Any]:
    """Returns the examples in which each client's members come first, and vmap axes.

    A client trains on the first examples of its place alone, so its number of examples
    decides which ones it sees.
    """
    client = _clients(store)
    order = np.stack([np.lexsort((~row, client)) for row in member])
    if store.window is None:
        rows = {n: jnp.asarray(np.asarray(v)[order]) for n, v in store.rows.items()}
        return Examples(rows), 0
    assert store.starts is not None
    rows = {n: jnp.asarray(v) for n, v in store.rows.items()}
    starts = jnp.asarray(store.starts[order])
    axes = dataclasses.replace(
        Examples(dict.fromkeys(rows), 0, store.window), rows=dict.fromkeys(rows)
    )
    return Examples(rows, starts, store.window), axes
