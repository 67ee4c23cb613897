"""Canary clients: what a run's plan lets through of one client's message.

The run's plan is run again, by the engine itself, with clients whose message is known:
one large number in a place of its own, which the run's own clipping cuts to the bound,
times a public sign that changes from round to round. A fair coin decides for each
whether it sends that or nothing (zeros). Whoever sees the aggregates of all rounds adds
up the canary's place, signs taken off, and guesses the coins; see ``bound``.

Because signs change, what honest clients say in that place cancels out, and the model
does not drift away with the canaries.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_health import build
from fedjax_health.client import LocalAlgorithm, LocalContext, LocalResult
from fedjax_health.config import Config
from fedjax_health.core import trees
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import ClientBatches, Cohort, Key, Params, Sampling
from fedjax_health.data.sampling import NO_LIMIT, draw_clients
from fedjax_health.data.store import to_examples
from fedjax_health.engine.algorithm import build_algorithm
from fedjax_health.engine.places import leaves_without
from fedjax_health.records import Progress

# Apart from every other use of a seed.
CANARY_STREAM = 102
# Of the bound: what any clipping cuts down to it.
FAR_ABOVE = 1e3


class Canaries(NamedTuple):
    """What came of the canaries.

    Attributes:
      scores: float64 ``[canaries]``.
      is_in: bool ``[canaries]``, how the coins fell.
      sampling: how cohorts were drawn, canaries included.
      rounds: that were run.
      mechanism: the run's, built for this population; or None.
      message: what it was bound to.
    """

    scores: np.ndarray
    is_in: np.ndarray
    sampling: Sampling
    rounds: int
    mechanism: Any
    message: Any


class _Recorded(NamedTuple):
    """State of a server optimiser that keeps the last aggregate.

    Attributes:
      inner: state of the optimiser that takes the steps.
      last: the aggregate of the last accepted round.
    """

    inner: Any
    last: Params


@functools.cache
def _recording(
    constructor: Callable[..., optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformation]:
    """Returns a constructor of the same optimiser that keeps the last aggregate."""

    def built(**arguments: Any) -> optax.GradientTransformation:
        inner = constructor(**arguments)

        def init(params: Params) -> _Recorded:
            return _Recorded(inner.init(params), trees.zeros_like(params))

        def update(updates: Any, state: Any, params: Params = None):
            change, kept = inner.update(updates, state.inner, params)
            return change, _Recorded(kept, updates)

        return optax.GradientTransformation(init, update)

    return built


@functools.cache
def _canary_run(base: Callable[..., LocalResult]) -> Callable[..., LocalResult]:
    """Returns a client's side in which canaries send what they are to send."""

    def run(train, params, memory, context: LocalContext) -> LocalResult:
        honest = base(
            train,
            params,
            memory["base"],
            context._replace(shared=context.shared["base"]),
        )
        canary = memory["canary"]
        place = context.shared["place"][jnp.maximum(canary, 0)]
        sign = jax.random.rademacher(
            jax.random.fold_in(
                jax.random.wrap_key_data(context.shared["signs"], impl="threefry2x32"),
                context.shared["round"],
            ),
            context.shared["place"].shape,
            jnp.float32,
        )[jnp.maximum(canary, 0)]
        size = sign * memory["size"]
        leaves, treedef = jax.tree.flatten(params)
        sent, first = [], 0
        for leaf in leaves:
            numbers = jnp.arange(leaf.size, dtype=jnp.int32).reshape(leaf.shape) + first
            sent.append(leaf - jnp.where(numbers == place, size, 0).astype(leaf.dtype))
            first += leaf.size
        is_canary = canary >= 0
        return LocalResult(
            trees.select(is_canary, treedef.unflatten(sent), honest.params),
            {**memory, "base": honest.memory},
            jax.tree.map(
                lambda x: jnp.where(is_canary, jnp.zeros_like(x), x), honest.report
            ),
            honest.metrics,
        )

    return run


@functools.cache
def _canary_reduce(base: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(shared, report, population):
        own = base(shared["base"], report, population)
        return {**shared, "base": own, "round": shared["round"] + 1}

    return reduce


def _with_canaries(
    base: LocalAlgorithm, places: np.ndarray, signs: np.ndarray
) -> LocalAlgorithm:
    """Returns a local algorithm in which clients with a number are canaries."""

    def init(params):
        return {
            "base": base.init(params),
            "canary": jnp.int32(-1),
            "size": jnp.float32(0),
        }

    def init_server(params):
        return {
            "base": base.init_server(params),
            "round": jnp.int32(0),
            "place": jnp.asarray(places, jnp.int32),
            "signs": jnp.asarray(signs, jnp.uint32),
        }

    return LocalAlgorithm(
        init,
        init_server,
        _canary_run(base.run),
        _canary_reduce(base.reduce),
        reports_model=base.reports_model,
        plain_sgd_only=base.plain_sgd_only,
    )


def sampling_with(sampling: Sampling, canaries: int) -> Sampling:
    """Returns how cohorts are drawn from clients and canaries at about the same rate.

    Args:
      sampling: of the run.
      canaries: how many come on top.
    """
    population = sampling.population + canaries
    block = population // sampling.cycle
    expected = min(block, max(1, round(sampling.rate * block)))
    cap = sampling.cap
    if cap is not None:
        cap = max(expected, round(cap * population / sampling.population))
    return dataclasses.replace(
        sampling, population=population, expected=expected, cap=cap
    )


def run_canaries(
    config: Config,
    prepared: build.Prepared,
    *,
    canaries: int,
    size: float,
    rounds: int,
    seed: int,
    progress: Progress,
) -> Canaries:
    """Runs a plan with canaries among the clients.

    Args:
      config: of the run, whose rounds run inside one program.
      prepared: its data.
      canaries: how many; no more than the model has parameters.
      size: L2 norm of what a canary sends, where nothing clips it.
      rounds: to run.
      seed: of coins, places and all that is random in the run.
      progress: told the rounds.

    Raises:
      CompositionError: if the plan does not take further clients.
      ValueError: for more canaries than parameters.
    """
    built = build.build(config, prepared)
    store, honest = prepared.store, prepared.store.num_clients
    num_params = trees.num_params(
        leaves_without(built.plan.unsent, built.abstract_params)
    )
    if not 2 <= canaries <= num_params:
        raise ValueError(
            f"canaries={canaries}: must lie in [2, {num_params:,}], the number of the "
            "model's parameters"
        )
    rng = np.random.default_rng([seed, CANARY_STREAM])
    places = rng.choice(num_params, canaries, replace=False)
    is_in = rng.random(canaries) < 0.5
    sampling = sampling_with(built.sampling, canaries)
    key = root_key(int(rng.integers(2**32)))
    signs = np.asarray(jax.random.key_data(jax.random.fold_in(key, 1)))
    plan = build.build_plan(config, cohort=sampling.expected)
    plan = dataclasses.replace(
        plan,
        data_attack=built.plan.data_attack,
        root_batches=built.plan.root_batches,
        parts=built.plan.parts,
        local=dataclasses.replace(
            plan.local, algorithm=_with_canaries(plan.local.algorithm, places, signs)
        ),
        server_optimizer=dataclasses.replace(
            plan.server_optimizer,
            constructor=_recording(plan.server_optimizer.constructor),
        ),
    )
    algorithm = build_algorithm(
        built.loss_fn,
        plan,
        abstract_params=built.abstract_params,
        population=sampling.population,
        cohort_size=sampling.cohort_size,
        sampling=sampling,
        parallelism=config.chunk or config.parallelism,
        mesh=build.build_mesh(config.devices),
    )
    state = algorithm.init(key, built.model.init(jax.random.fold_in(key, 2)))
    state = _place(state, honest, canaries, np.where(is_in, size, 0.0))
    examples = to_examples(store)
    counts = np.diff(store.offsets)
    # A canary's own data are a client's, of which it takes one step that nobody sees.
    owner = np.arange(sampling.population + 1)
    owner[honest:] = np.arange(canaries + 1) % honest
    usual = int(np.median(counts))
    scores = np.zeros(canaries)
    read = jax.jit(functools.partial(_read, places=jnp.asarray(places)))
    progress.on_message(f"running {rounds} rounds with {canaries} canary clients")
    progress.on_start(total_rounds=rounds)
    for round in range(rounds):
        drawn = draw_clients(sampling, seed, round)
        ids = np.full(sampling.cohort_size, sampling.population, np.int32)
        ids[: len(drawn)] = drawn
        mask = ids < sampling.population
        real = ids < honest
        of = owner[ids]
        sizes = np.where(mask, counts[of], 0).astype(np.int32)
        flags = np.zeros(len(ids), bool)
        flags[real] = built.malicious[ids[real]]
        cohort = Cohort(
            client_ids=ids,
            mask=mask,
            weights=np.where(real, sizes, np.where(mask, usual, 0)).astype(np.float32),
            malicious=flags,
            batches=ClientBatches(
                num_examples=sizes,
                num_steps=np.where(real, NO_LIMIT, 1).astype(np.int32),
                index=np.where(mask, store.offsets[of], 0).astype(np.int32),
                arrays=examples,
            ),
            part_shares=None
            if built.part_shares is None
            else _shares(built.part_shares, ids, honest, mask),
        )
        sign = _signs(signs, state.shared["algorithm"]["round"], canaries)
        state, metrics = algorithm.step(state, cohort)
        if bool(metrics["accepted"]):
            scores += np.asarray(sign) * np.asarray(read(state.server.last), float)
        progress.on_round(round=round + 1, loss=float(metrics["loss"]))
    return Canaries(scores, is_in, sampling, rounds, plan.mechanism, algorithm.message)


def _shares(
    shares: np.ndarray, ids: np.ndarray, honest: int, mask: np.ndarray
) -> np.ndarray:
    """Returns a cohort's shares in the parts of a model; a canary speaks in each."""
    own = np.where((ids < honest)[:, None], shares[np.minimum(ids, honest - 1)], 1.0)
    return np.where(mask[:, None], own, 0).astype(np.float32)


def _signs(signs: np.ndarray, round: jax.Array, canaries: int) -> np.ndarray:
    key: Key = jax.random.wrap_key_data(jnp.asarray(signs), impl="threefry2x32")
    drawn = jax.random.rademacher(
        jax.random.fold_in(key, round), (canaries,), jnp.float32
    )
    return np.asarray(drawn)


def _place(state: Any, honest: int, canaries: int, sizes: np.ndarray) -> Any:
    """Returns a state in which the last clients are canaries."""
    own = state.clients["algorithm"]
    numbers = own["canary"].at[honest:].set(jnp.arange(canaries, dtype=jnp.int32))
    values = own["size"].at[honest:].set(jnp.asarray(sizes, jnp.float32))
    kept = {**own, "canary": numbers, "size": values}
    return state._replace(clients={**state.clients, "algorithm": kept})


def _read(last: Params, *, places: jax.Array) -> jax.Array:
    flat = jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(last)])
    return flat[places].astype(jnp.float32)
