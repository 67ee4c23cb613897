"""``build_algorithm``: a checked plan becomes ``init`` and a compiled ``step``."""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import PartitionSpec

from fedjax_health.client import LocalAlgorithm
from fedjax_health.core import trees
from fedjax_health.core.message import CompositionError
from fedjax_health.core.types import (
    AnyArray,
    BoundMechanism,
    ClientTransform,
    Cohort,
    DataAttack,
    Examples,
    FederatedAlgorithm,
    Key,
    LossFn,
    Metrics,
    Params,
    RoundState,
    Sampling,
)
from fedjax_health.engine.cohort import message_like
from fedjax_health.engine.devices import available_memory
from fedjax_health.engine.parallel import (
    Mapping,
    ParallelismName,
    one_after_another,
    resolve_mapping,
)
from fedjax_health.engine.parts import by_part
from fedjax_health.engine.places import either, leaves_with, leaves_without
from fedjax_health.engine.plan import RoundPlan, check_plan
from fedjax_health.engine.round import compiled_step, pack_cohort
from fedjax_health.engine.structure import Structure

# Enough to keep the devices busy while the host prepares the next cohorts.
ROUNDS_IN_FLIGHT = 3


def build_algorithm(
    loss_fn: LossFn,
    plan: RoundPlan,
    *,
    abstract_params: Params,
    population: int,
    cohort_size: int,
    sampling: Sampling | None = None,
    parallelism: ParallelismName | int = "auto",
    mesh: jax.sharding.Mesh | None = None,
) -> FederatedAlgorithm:
    """Turns a plan into a federated algorithm.

    Args:
      loss_fn: ``(params, batch, key) -> (loss, metrics)``.
      plan: what fills each stage.
      abstract_params: the parameters, or their shapes (``jax.eval_shape``).
      population: number of clients.
      cohort_size: slots of a cohort.
      sampling: how cohorts are drawn; a fixed size by default. A mechanism's noise and
        denominator rest on it.
      parallelism: "auto", "scan", "vmap" or a chunk size.
      mesh: one-dimensional with axis "clients"; None takes all devices.

    Returns:
      ``FederatedAlgorithm(init, step, message, parallelism)``.

    Raises:
      CompositionError: if the stages must not be combined, or would not fit in memory.
      ValueError: for sizes that do not fit one another.
    """
    if cohort_size < 1:
        raise ValueError(f"cohort_size must be 1 or more, not {cohort_size}")
    if cohort_size > population:
        raise ValueError(
            f"a cohort of {cohort_size} clients is larger than the population of "
            f"{population}: lower the cohort size to {population} or less"
        )
    if sampling is None:
        sampling = Sampling("fixed", population=population, expected=cohort_size)
    if sampling.population != population or sampling.cohort_size != cohort_size:
        raise ValueError(
            f"sampling draws {sampling.cohort_size} of {sampling.population} clients, "
            f"but the algorithm is built for {cohort_size} of {population}"
        )
    abstract_params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), abstract_params
    )
    checked = check_plan(
        plan,
        abstract_params=abstract_params,
        cohort_size=cohort_size,
        sampling=sampling,
    )
    param_bytes = trees.num_bytes(abstract_params)
    if plan.relayed is None:
        mapping = resolve_mapping(
            parallelism,
            cohort_size=cohort_size,
            client_bytes=6 * param_bytes,
            mesh=mesh,
        )
    else:
        mapping = one_after_another(cohort_size)
    memory = functools.partial(_client_memory, plan, checked.transform)
    _check_memory(
        table_bytes=trees.num_bytes(jax.eval_shape(memory, abstract_params)),
        stack_bytes=3 * param_bytes if plan.keeps_stack else 0,
        population=population,
        cohort_size=cohort_size,
        num_devices=mapping.num_devices,
    )
    algorithm: LocalAlgorithm = plan.local.algorithm
    aggregator = by_part(plan.aggregator, plan.parts)
    split, message = plan.split, checked.message
    private = plan.local.example_privacy
    averaged = plan.local.device_averaging
    structure = Structure(
        loss_fn=loss_fn,
        run=algorithm.run,
        reduce_algorithm=algorithm.reduce,
        optimizer=plan.local.optimizer.structure,
        by_epochs=plan.local.epochs is not None,
        batch_size=plan.local.batch_size,
        microbatch=private.held(plan.local.batch_size) if private else None,
        data_attack=(DataAttack(plan.data_attack.poison) if plan.data_attack else None),
        transform=checked.transform.update,
        reduce_transform=checked.transform.reduce,
        restore=checked.transform.restore,
        measure=checked.transform.measure,
        forge=plan.attack.forge if plan.attack else None,
        aggregate=aggregator.update,
        linear=plan.aggregator.linear,
        keeps_stack=plan.keeps_stack,
        depends_on=aggregator.depends_on,
        mechanism=_mechanism_functions(checked.mechanism),
        bound=checked.bound if checked.mechanism or checked.codec else None,
        codec=checked.codec,
        codec_owner=checked.codec_owner,
        secure=plan.aggregator.secure,
        server_optimizer=plan.server_optimizer.structure,
        weighting=plan.weighting,
        personal=plan.personal,
        relayed=plan.relayed,
        unsent=plan.unsent,
        parts=plan.parts,
        hosted=message.hosted / max(message.num_params, 1),
        wire=None if split is None else (split.up_bytes, split.down_bytes),
        has_root=plan.root_batches is not None,
        has_dropout=plan.dropout > 0,
        has_devices=averaged is not None,
        mapping=mapping,
    )
    compiled = compiled_step(structure)
    place = _placement(mapping)

    def init(key: Key, params: Params) -> RoundState:
        _check_params(params, abstract_params)
        shared_params = leaves_without(plan.unsent, params)
        server = plan.server_optimizer.structure.build(
            plan.server_optimizer.leaves(), jnp.int32(0)
        )
        transform_shared = checked.transform.init_server(shared_params)
        zeros = _message_zeros(checked.transform, shared_params, transform_shared)
        state = RoundState(
            round=jnp.int32(0),
            params=jax.tree.map(jnp.array, params),
            hyper={
                "local": plan.local.optimizer.leaves(),
                "passes": jnp.int32(plan.local.epochs or plan.local.steps),
                "device_steps": jnp.int32(averaged.every) if averaged else (),
                "server": plan.server_optimizer.leaves(),
                "dropout": jnp.float32(plan.dropout),
                "population": jnp.float32(population),
                "expected": jnp.float32(sampling.expected),
                "data_attack": _data_attack_numbers(plan),
                "example_privacy": private.numbers() if private else (),
            },
            server=server.init(shared_params),
            shared={
                "algorithm": algorithm.init_server(params),
                "transform": transform_shared,
            },
            aggregator=aggregator.init(zeros),
            mechanism=checked.mechanism.init(zeros) if checked.mechanism else (),
            attack=(
                {
                    "state": plan.attack.init(zeros),
                    "previous": zeros,
                }
                if plan.attack
                else ()
            ),
            clients=jax.tree.map(
                lambda x: jnp.broadcast_to(x, (population, *x.shape)), memory(params)
            ),
            key=key,
        )
        # One buffer per leaf: a donated state must not hold the same buffer twice.
        return place(jax.tree.map(lambda x: jnp.array(x, copy=True), state))

    resident, pace = _Resident(place), _Pace()

    def step(state: RoundState, cohort: Cohort) -> tuple[RoundState, Metrics]:
        fields, examples = pack_cohort(cohort), cohort.batches.arrays
        devices = _devices_of(cohort) if structure.has_devices else None
        if isinstance(state.round, Tracer):
            # Under a caller's own jit or scan there is nothing to place or await.
            return compiled(state, fields, devices, examples, plan.root_batches)
        pace.wait()
        placed = resident.place(examples)
        state, metrics = compiled(state, fields, devices, placed, plan.root_batches)
        pace.follow(metrics["num_clients"])
        return state, metrics

    # The server's half of a split model goes to nobody.
    at_server = None if split is None else split.server
    kept = either(plan.personal, at_server)
    downlink = trees.num_bytes(leaves_without(kept, abstract_params))
    return FederatedAlgorithm(
        init,
        step,
        message,
        mapping.describe(),
        downlink * (2 if algorithm.reports_model else 1),
    )


def _devices_of(cohort: Cohort) -> AnyArray:
    """Returns the examples of each device, int32 ``[cohort, devices]``."""
    if cohort.batches.devices is None:
        raise ValueError(
            "devices are averaged, but the cohort does not say which examples are "
            "whose: draw it with build_cohort_fn(..., devices=True)"
        )
    return cohort.batches.devices


def _message_zeros(transform: ClientTransform, params: Params, shared: Any) -> Params:
    """Returns zeros of the structure of one client's message."""
    like = message_like(
        transform.update, params, jax.eval_shape(transform.init, params), shared
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


def _data_attack_numbers(plan: RoundPlan) -> Any:
    """Returns the numbers of the data attack that may vary between runs."""
    if plan.data_attack is None or plan.data_attack.init is None:
        return ()
    return plan.data_attack.init()


def _client_memory(plan: RoundPlan, transform, params: Params) -> dict[str, Any]:
    """Returns what one client remembers between its rounds."""
    return {
        "algorithm": plan.local.algorithm.init(params),
        "transform": transform.init(leaves_without(plan.unsent, params)),
        "personal": leaves_with(plan.personal, params),
    }


def params_of_clients(algorithm: LocalAlgorithm, state: RoundState) -> Params | None:
    """Returns the clients' own parameters, leaves ``[population, ...]``.

    Args:
      algorithm: the plan's local algorithm.
      state: the run's state.

    Returns:
      Ditto's personal models, or the personal leaves (None where a leaf is shared), or
      None for a plan in which clients keep nothing of the model.
    """
    if algorithm.personal_model is not None:
        return algorithm.personal_model(state.clients["algorithm"])
    own = state.clients["personal"]
    return own if jax.tree.leaves(own) else None


def client_params(algorithm: LocalAlgorithm, state: RoundState, client: int) -> Params:
    """Returns the model that a client uses: its own where it has one.

    Args:
      algorithm: the plan's local algorithm.
      state: the run's state.
      client: the client's id.

    Returns:
      Ditto's personal model, else the global model with the client's personal leaves.
    """
    own = params_of_clients(algorithm, state)
    if own is None:
        return state.params
    return trees.join(trees.take_row(own, jnp.int32(client)), state.params)


def _mechanism_functions(mechanism: BoundMechanism | None):
    if mechanism is None:
        return None
    return (mechanism.client, mechanism.group, mechanism.server)


def _check_params(params: Params, abstract_params: Params) -> None:
    expected, got = jax.tree.structure(abstract_params), jax.tree.structure(params)
    if expected != got:
        raise ValueError(
            f"params have the structure {got}, but the algorithm was built for "
            f"{expected}"
        )
    names = trees.path_names(params)
    pairs = zip(
        names, jax.tree.leaves(params), jax.tree.leaves(abstract_params), strict=True
    )
    for name, x, abstract in pairs:
        if x.shape != abstract.shape or x.dtype != abstract.dtype:
            raise ValueError(
                f"params leaf {name} is {x.dtype}{list(x.shape)}, but the algorithm "
                f"was built for {abstract.dtype}{list(abstract.shape)}"
            )


def _check_memory(
    *,
    table_bytes: int,
    stack_bytes: int,
    population: int,
    cohort_size: int,
    num_devices: int,
) -> None:
    free = available_memory()
    if free is None or jax.default_backend() != "cpu":
        return
    table = table_bytes * population * num_devices
    if table > free:
        raise CompositionError(
            f"the clients' memory takes {table / 2**30:.1f} GiB for a population of "
            f"{population:,} on {num_devices} device(s), and {free / 2**30:.1f} GiB "
            f"are free: at most {free // (table_bytes * num_devices):,} clients fit"
        )
    stack = stack_bytes * cohort_size * num_devices
    if stack > free - table:
        largest = (free - table) // (stack_bytes * num_devices)
        raise CompositionError(
            f"stacking the messages of {cohort_size:,} clients takes "
            f"{stack / 2**30:.1f} GiB and {(free - table) / 2**30:.1f} GiB are free: "
            f"the largest cohort that fits is {largest:,}"
        )


def _placement(mapping: Mapping) -> Callable[[Any], Any]:
    """Returns the function that puts a tree onto every device of the mapping."""
    if mapping.mesh is None:
        return lambda tree: tree
    everywhere = jax.sharding.NamedSharding(mapping.mesh, PartitionSpec())

    def place(tree):
        return jax.device_put(tree, everywhere)

    return place


class _Pace:
    """Bounds the rounds that are dispatched and not done.

    XLA's CPU devices share one thread pool; with dozens of rounds in flight, one
    device's wait for another's part can occupy the threads that would produce it.
    """

    def __init__(self):
        self._pending: collections.deque[jax.Array] = collections.deque()

    def wait(self) -> None:
        while len(self._pending) >= ROUNDS_IN_FLIGHT:
            self._pending.popleft().block_until_ready()

    def follow(self, done: jax.Array) -> None:
        self._pending.append(done)


class _Resident:
    """Puts a resident store onto the devices once rather than in every round."""

    def __init__(self, place: Callable[[Any], Any]):
        self._place = place
        self._seen: Any = None
        self._placed: Any = None

    def place(self, examples: Examples) -> Examples:
        if examples is not self._seen:
            self._placed, self._seen = self._place(examples), examples
        return self._placed
