"""One federated round as a pure function ``step(state, cohort) -> (state, metrics)``.

The whole step runs inside one ``shard_map``: every device trains its share of the
clients, gathers what the others made, and goes on with the same replicated numbers.
No sum is left to a collective, whose order of addition depends on the device count.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from fedjax_health.client import (
    ClientData,
    LocalAlgorithm,
    LocalContext,
    build_train,
)
from fedjax_health.core import trees
from fedjax_health.core.message import CompositionError
from fedjax_health.core.permutation import permutation_words
from fedjax_health.core.rng import Stream, key_for
from fedjax_health.core.types import (
    AggregationContext,
    AttackContext,
    BoundMechanism,
    ClientBatches,
    ClientContext,
    Cohort,
    DataAttack,
    DataAttackContext,
    FederatedAlgorithm,
    Key,
    LossFn,
    Metrics,
    Params,
    RoundState,
    Sampling,
    Updates,
)
from fedjax_health.engine.devices import available_memory
from fedjax_health.engine.parallel import (
    AXIS,
    Mapping,
    ParallelismName,
    arrange,
    resolve_mapping,
)
from fedjax_health.engine.plan import (
    OptimizerStructure,
    RoundPlan,
    check_plan,
    personal_leaves,
    shared_leaves,
)
from fedjax_health.transforms.compose import bound_leaf

# Clients named when their loss or message is not finite; the rest are counted.
NAMED_CLIENTS = 8


@dataclasses.dataclass(frozen=True)
class Structure:
    """All that is compiled into a step; equal structures share one program."""

    loss_fn: LossFn
    run: Callable[..., Any]
    reduce_algorithm: Callable[..., Any]
    optimizer: OptimizerStructure
    by_epochs: bool
    batch_size: int
    data_attack: DataAttack | None
    transform: Callable[..., Any]
    reduce_transform: Callable[..., Any]
    forge: Callable[..., Any] | None
    aggregate: Callable[..., Any]
    linear: bool
    mechanism: tuple[Callable[..., Any] | None, ...] | None
    bound: str | None
    server_optimizer: OptimizerStructure
    weighting: str
    personal: Callable[[str], bool] | None
    has_root: bool
    mapping: Mapping


class _Delivery(NamedTuple):
    """What one client's work leaves behind beside its updates."""

    delivered: jax.Array
    finite: jax.Array
    weight: jax.Array
    steps: jax.Array
    update_norm: jax.Array
    metrics: Metrics


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
    mapping = resolve_mapping(
        parallelism, cohort_size=cohort_size, client_bytes=6 * param_bytes, mesh=mesh
    )
    memory = functools.partial(_client_memory, plan, checked.transform)
    stacked = plan.attack is not None or not plan.aggregator.linear
    _check_memory(
        table_bytes=trees.num_bytes(jax.eval_shape(memory, abstract_params)),
        stack_bytes=3 * param_bytes if stacked else 0,
        population=population,
        cohort_size=cohort_size,
        num_devices=mapping.num_devices,
    )
    algorithm: LocalAlgorithm = plan.local.algorithm
    structure = Structure(
        loss_fn=loss_fn,
        run=algorithm.run,
        reduce_algorithm=algorithm.reduce,
        optimizer=plan.local.optimizer.structure,
        by_epochs=plan.local.epochs is not None,
        batch_size=plan.local.batch_size,
        data_attack=plan.data_attack,
        transform=checked.transform.update,
        reduce_transform=checked.transform.reduce,
        forge=plan.attack.forge if plan.attack else None,
        aggregate=plan.aggregator.update,
        linear=plan.aggregator.linear,
        mechanism=_mechanism_functions(checked.mechanism),
        bound=checked.bound if checked.mechanism else None,
        server_optimizer=plan.server_optimizer.structure,
        weighting=plan.weighting,
        personal=plan.personal,
        has_root=plan.root_batches is not None,
        mapping=mapping,
    )
    compiled = compiled_step(structure)
    place = _placement(mapping)

    def init(key: Key, params: Params) -> RoundState:
        _check_params(params, abstract_params)
        shared_params = shared_leaves(plan.personal, params)
        server = plan.server_optimizer.structure.build(
            plan.server_optimizer.leaves(), jnp.int32(0)
        )
        state = RoundState(
            round=jnp.int32(0),
            params=jax.tree.map(jnp.array, params),
            hyper={
                "local": plan.local.optimizer.leaves(),
                "passes": jnp.int32(plan.local.epochs or plan.local.steps),
                "server": plan.server_optimizer.leaves(),
                "dropout": jnp.float32(plan.dropout),
                "population": jnp.float32(population),
                "expected": jnp.float32(sampling.expected),
            },
            server=server.init(shared_params),
            shared={
                "algorithm": algorithm.init_server(params),
                "transform": checked.transform.init_server(shared_params),
            },
            aggregator=plan.aggregator.init(shared_params),
            mechanism=(
                checked.mechanism.init(shared_params) if checked.mechanism else ()
            ),
            attack=(
                {
                    "state": plan.attack.init(shared_params),
                    "previous": trees.zeros_like(shared_params),
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

    resident = _Resident(place)

    def step(state: RoundState, cohort: Cohort) -> tuple[RoundState, Metrics]:
        return compiled(state, resident.place(cohort), plan.root_batches)

    return FederatedAlgorithm(init, step, checked.message, mapping.describe())


def _client_memory(plan: RoundPlan, transform, params: Params) -> dict[str, Any]:
    """Returns what one client remembers between its rounds."""
    return {
        "algorithm": plan.local.algorithm.init(params),
        "transform": transform.init(shared_leaves(plan.personal, params)),
        "personal": personal_leaves(plan.personal, params),
    }


def client_params(algorithm: LocalAlgorithm, state: RoundState, client: int) -> Params:
    """Returns the model that a client uses: its own where it has one.

    Args:
      algorithm: the plan's local algorithm.
      state: the run's state.
      client: the client's id.

    Returns:
      Ditto's personal model, else the global model with the client's personal leaves.
    """
    row = trees.take_row(state.clients, jnp.int32(client))
    if algorithm.personal_model is not None:
        return algorithm.personal_model(row["algorithm"])
    return trees.join(row["personal"], state.params)


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


class _Resident:
    """Puts a resident store onto the devices once rather than in every round."""

    def __init__(self, place: Callable[[Any], Any]):
        self._place = place
        self._seen: Any = None
        self._placed: Any = None

    def place(self, cohort: Cohort) -> Cohort:
        examples = cohort.batches.arrays
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(examples)):
            return cohort
        if examples is not self._seen:
            self._placed, self._seen = self._place(examples), examples
        return cohort._replace(batches=cohort.batches._replace(arrays=self._placed))


@functools.lru_cache(maxsize=128)
def compiled_step(structure: Structure) -> Callable[..., tuple[RoundState, Metrics]]:
    """Returns the jitted step of a structure; the same one for equal structures."""
    body = functools.partial(_step, structure)
    mesh = structure.mapping.mesh
    if mesh is not None:
        replicated = PartitionSpec()
        body = jax.shard_map(
            body, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False
        )
    return jax.jit(body, donate_argnums=0)


def _step(
    structure: Structure,
    state: RoundState,
    cohort: Cohort,
    root_batches: ClientBatches | None,
) -> tuple[RoundState, Metrics]:
    """One round, on one device of the mesh."""
    shared_params = shared_leaves(structure.personal, state.params)
    num_steps = _local_steps(structure, state, cohort)
    trained = _train_cohort(structure, state, cohort, num_steps)
    deliveries = trained.deliveries
    good = deliveries.delivered & deliveries.finite
    weights = jnp.where(good, deliveries.weight, 0.0)
    total_weight = jnp.sum(weights)

    attack = state.attack
    aggregate_key = key_for(state.key, Stream.AGGREGATE, state.round)
    rule_metrics: Metrics = {}
    aggregator = state.aggregator
    if trained.stacked is None:
        total = trained.total
        aggregate = trees.scale(total, 1.0 / jnp.maximum(total_weight, 1e-30))
    else:
        stacked = trained.stacked
        context = AggregationContext(
            client_ids=cohort.client_ids,
            mask=deliveries.delivered,
            round=state.round,
            root_updates=_root_updates(structure, state, root_batches),
        )
        if structure.forge is not None:
            stacked, attack = _forge(
                structure, state, cohort, stacked, deliveries, context
            )
        finite = _finite_rows(stacked)
        deliveries = deliveries._replace(finite=finite)
        good = deliveries.delivered & finite
        weights = jnp.where(good, deliveries.weight, 0.0)
        total_weight = jnp.sum(weights)
        stacked = jax.tree.map(
            lambda x: jnp.where(good.reshape(-1, *[1] * (x.ndim - 1)), x, 0), stacked
        )
        aggregate, aggregator, rule_metrics = structure.aggregate(
            stacked, weights, state.aggregator, aggregate_key, context=context
        )
        total = trees.scale(aggregate, total_weight)

    mechanism = state.mechanism
    if structure.mechanism is not None and structure.linear:
        # Privatise the sum, then divide by a denominator that no client can move.
        server_noise = structure.mechanism[2]
        if server_noise is not None:
            total, mechanism = server_noise(
                total,
                mechanism,
                key_for(state.key, Stream.MECHANISM, state.round),
                _bound(structure, state),
            )
        aggregate = trees.scale(total, 1.0 / state.hyper["expected"])

    server = structure.server_optimizer.build(state.hyper["server"], state.round)
    change, server_state = server.update(aggregate, state.server, shared_params)
    stepped = optax.apply_updates(shared_params, change)
    # A rule that let a non-finite value through, or a round without any message,
    # leaves the model as it was.
    aggregate_norm = jnp.sqrt(trees.squared_norm(aggregate))
    # With a mechanism an empty round is noise alone, and its event is accounted.
    anyone = jnp.any(good) | (structure.mechanism is not None)
    accept = jnp.isfinite(aggregate_norm) & anyone
    params = trees.select(accept, stepped, shared_params)
    server_state = trees.select(accept, server_state, state.server)
    if structure.forge is not None:
        previous = trees.select(accept, aggregate, attack["previous"])
        attack = {**attack, "previous": previous}

    transform_key = key_for(state.key, Stream.TRANSFORM, state.round)
    shared = {
        "algorithm": structure.reduce_algorithm(
            state.shared["algorithm"],
            trained.reports["algorithm"],
            state.hyper["population"],
        ),
        "transform": structure.reduce_transform(
            state.shared["transform"], trained.reports["transform"], transform_key
        ),
    }
    clients = _scatter(state, cohort, trained, num_steps, good)
    new_state = RoundState(
        round=state.round + 1,
        params=trees.join(params, personal_leaves(structure.personal, state.params)),
        hyper=state.hyper,
        server=server_state,
        shared=shared,
        aggregator=aggregator,
        mechanism=mechanism,
        attack=attack,
        clients=clients,
        key=state.key,
    )
    metrics = _metrics(cohort, deliveries, good, aggregate_norm, accept)
    return new_state, {**rule_metrics, **metrics}


def _bound(structure: Structure, state: RoundState) -> jax.Array:
    assert structure.bound is not None
    return bound_leaf(state.shared["transform"], structure.bound)


def _local_steps(structure: Structure, state: RoundState, cohort: Cohort) -> jax.Array:
    """Returns the local steps of each slot, int32 ``[cohort]``."""
    return _planned_steps(structure, state, cohort.batches) * cohort.mask


def _planned_steps(
    structure: Structure, state: RoundState, batches: ClientBatches
) -> jax.Array:
    passes = state.hyper["passes"]
    per_epoch = -(-batches.num_examples // structure.batch_size)
    planned = passes * per_epoch if structure.by_epochs else passes
    planned = jnp.where(batches.num_examples > 0, planned, 0)
    return jnp.minimum(planned, batches.num_steps).astype(jnp.int32)


class _Trained(NamedTuple):
    """What the cohort's training leaves, the same on every device.

    Attributes:
      total: the weighted sum of the messages, or None where they are stacked.
      stacked: the messages ``[cohort, ...]``, or None where they are summed.
      reports: summed reports of the algorithm and the transforms.
      memory: new client memories ``[cohort, ...]``.
      deliveries: ``[cohort]`` each.
    """

    total: Updates
    stacked: Updates
    reports: dict[str, Any]
    memory: Any
    deliveries: _Delivery


def _train_cohort(
    structure: Structure, state: RoundState, cohort: Cohort, num_steps: jax.Array
) -> _Trained:
    mapping = structure.mapping
    cohort_size = cohort.client_ids.shape[0]
    keep_stack = structure.forge is not None or not structure.linear
    layout, place = arrange(num_steps, mapping)
    mine = layout[jax.lax.axis_index(AXIS)] if mapping.mesh is not None else layout[0]
    client = _build_client(structure, state, cohort, num_steps)

    def chunk(slots: jax.Array):
        """Trains the clients in ``slots`` ``[chunk]``; sums what is summed."""
        if mapping.chunk == 1:
            updates, reports, memory, delivery = client(slots[0])
            good = delivery.delivered & delivery.finite
            weight = jnp.where(good, delivery.weight, 0.0)
            sums = {"reports": _where_tree(good, reports)}
            if not keep_stack:
                sums["total"] = jax.tree.map(
                    lambda x: jnp.where(good, x * weight.astype(x.dtype), 0), updates
                )
            rows = jax.tree.map(lambda x: x[None], (memory, delivery))
            stack = jax.tree.map(lambda x: x[None], updates) if keep_stack else ()
            return sums, (rows, stack)
        updates, reports, memory, delivery = jax.vmap(client)(slots)
        good = delivery.delivered & delivery.finite
        weight = jnp.where(good, delivery.weight, 0.0)

        def total(x: jax.Array, factors: jax.Array) -> jax.Array:
            present = good.reshape(-1, *[1] * (x.ndim - 1))
            return jnp.tensordot(factors.astype(x.dtype), jnp.where(present, x, 0), 1)

        ones = good.astype(jnp.float32)
        sums = {"reports": jax.tree.map(lambda x: total(x, ones), reports)}
        if not keep_stack:
            sums["total"] = jax.tree.map(lambda x: total(x, weight), updates)
        return sums, ((memory, delivery), updates if keep_stack else ())

    def block(slots: jax.Array):
        """Trains the chunks of one block ``[per_block, chunk]`` one after the other."""
        shapes = jax.eval_shape(chunk, slots[0])[0]
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def accumulate(carry, chunk_slots):
            sums, rows = chunk(chunk_slots)
            return trees.add(carry, sums), rows

        return jax.lax.scan(accumulate, start, slots)

    sums, (rows, stack) = jax.lax.map(block, mine)
    sums, rows, stack = _collect(mapping, (sums, rows, stack))
    # [devices, blocks / devices, ...]: block b sits on device b % devices.
    partial = [
        jax.tree.map(
            lambda x, b=b: x[b % mapping.num_devices, b // mapping.num_devices], sums
        )
        for b in range(mapping.blocks)
    ]
    total = trees.ordered_sum(partial)
    slots = mapping.slots

    def by_slot(x: jax.Array) -> jax.Array:
        return x.reshape(slots, *x.shape[4:])[place]

    memory, deliveries = jax.tree.map(by_slot, rows)
    assert deliveries.weight.shape == (cohort_size,)
    return _Trained(
        total=total.get("total"),
        stacked=jax.tree.map(by_slot, stack) if keep_stack else None,
        reports=total["reports"],
        memory=memory,
        deliveries=deliveries,
    )


def _collect(mapping: Mapping, tree):
    """Returns every device's part, stacked in device order."""
    if mapping.mesh is None:
        return jax.tree.map(lambda x: x[None], tree)
    return jax.lax.all_gather(tree, AXIS)


def _where_tree(condition: jax.Array, tree):
    return jax.tree.map(lambda x: jnp.where(condition, x, jnp.zeros_like(x)), tree)


def _build_client(
    structure: Structure, state: RoundState, cohort: Cohort, num_steps: jax.Array
):
    """Returns ``slot -> (updates, reports, memory, delivery)`` for one client."""
    round = state.round
    optimizer = structure.optimizer.build(state.hyper["local"], round)
    rate = structure.optimizer.learning_rate(state.hyper["local"], round)
    train = build_train(
        structure.loss_fn, optimizer, structure.batch_size, structure.data_attack
    )
    streams = (Stream.DATA, Stream.TRAIN, Stream.TRANSFORM, Stream.ATTACK)
    keys = {stream: key_for(state.key, stream, round) for stream in streams}
    dropout_key = key_for(state.key, Stream.DROPOUT, round)
    mechanism_key = key_for(state.key, Stream.MECHANISM, round)
    shared_params = shared_leaves(structure.personal, state.params)
    batches = cohort.batches

    def client(slot: jax.Array):
        def at(x: jax.Array) -> jax.Array:
            return jnp.take(x, slot, mode="clip")

        filled = (slot < cohort.mask.shape[0]) & at(cohort.mask)
        client_id = at(cohort.client_ids)
        memory = trees.take_row(state.clients, client_id)
        params = trees.join(memory["personal"], state.params)
        own = {s: jax.random.fold_in(key, client_id) for s, key in keys.items()}
        data = ClientData(
            examples=batches.arrays,
            first=at(batches.index),
            num_examples=at(batches.num_examples),
            num_steps=jnp.where(filled, at(num_steps), 0),
            words=permutation_words(own[Stream.DATA]),
            train_key=own[Stream.TRAIN],
            attack=DataAttackContext(
                own[Stream.ATTACK], client_id, at(cohort.malicious), round
            ),
        )
        result = structure.run(
            functools.partial(train, data),
            params,
            memory["algorithm"],
            LocalContext(state.shared["algorithm"], data.num_steps, rate),
        )
        updates = trees.subtract(
            shared_params, shared_leaves(structure.personal, result.params)
        )
        weight = at(cohort.weights) if structure.weighting == "examples" else 1.0
        weight = jnp.where(filled, weight, 0.0).astype(jnp.float32)
        context = ClientContext(
            own[Stream.TRANSFORM],
            round,
            weight,
            shared_params,
            state.shared["transform"],
        )
        updates, kept, report = structure.transform(
            updates, memory["transform"], context
        )
        if structure.mechanism is not None and structure.mechanism[0] is not None:
            noise_key = jax.random.fold_in(mechanism_key, client_id)
            updates = structure.mechanism[0](
                updates, state.mechanism, noise_key, _bound(structure, state)
            )
        norm_squared = trees.squared_norm(updates)
        stays = jax.random.uniform(jax.random.fold_in(dropout_key, client_id))
        delivery = _Delivery(
            delivered=filled & (stays >= state.hyper["dropout"]),
            # One pass serves the norm and the test; a norm beyond float32 counts as
            # non-finite too.
            finite=jnp.isfinite(norm_squared),
            weight=weight,
            steps=data.num_steps,
            update_norm=jnp.sqrt(norm_squared),
            metrics=result.metrics,
        )
        new_memory = {
            "algorithm": result.memory,
            "transform": kept,
            "personal": personal_leaves(structure.personal, result.params),
        }
        reports = {"algorithm": result.report, "transform": report}
        return updates, reports, new_memory, delivery

    return client


def _finite_rows(stacked: Updates) -> jax.Array:
    """Returns which rows have a finite norm, bool ``[cohort]``."""
    return jnp.isfinite(jax.vmap(trees.squared_norm)(stacked))


def _root_updates(
    structure: Structure, state: RoundState, root_batches: ClientBatches | None
) -> Updates | None:
    """Trains on the server's own data, as a client without memory would."""
    if not structure.has_root:
        return None
    assert root_batches is not None
    optimizer = structure.optimizer.build(state.hyper["local"], state.round)
    train = build_train(structure.loss_fn, optimizer, structure.batch_size, None)
    server_id = state.hyper["population"].astype(jnp.int32)
    data_key = key_for(state.key, Stream.DATA, state.round, server_id)
    train_key = key_for(state.key, Stream.TRAIN, state.round, server_id)
    steps = _planned_steps(structure, state, root_batches)
    data = ClientData(
        examples=root_batches.arrays,
        first=root_batches.index.reshape(()),
        num_examples=root_batches.num_examples.reshape(()),
        num_steps=steps.reshape(()),
        words=permutation_words(data_key),
        train_key=train_key,
        attack=DataAttackContext(train_key, server_id, jnp.bool_(False), state.round),
    )
    trained, _ = train(data, state.params)
    shared = functools.partial(shared_leaves, structure.personal)
    return trees.subtract(shared(state.params), shared(trained))


def _forge(
    structure: Structure,
    state: RoundState,
    cohort: Cohort,
    stacked: Updates,
    deliveries: _Delivery,
    context: AggregationContext,
) -> tuple[Updates, Any]:
    assert structure.forge is not None
    weights = jnp.where(deliveries.delivered, deliveries.weight, 0.0)

    def defence(messages: Updates, key: Key) -> Updates:
        return structure.aggregate(
            messages, weights, state.aggregator, key, context=context
        )[0]

    malicious = cohort.malicious & deliveries.delivered
    forged, attack_state = structure.forge(
        stacked,
        malicious,
        state.attack["state"],
        AttackContext(
            key=key_for(state.key, Stream.ATTACK, state.round),
            round=state.round,
            params=shared_leaves(structure.personal, state.params),
            previous_aggregate=state.attack["previous"],
            defence=defence,
        ),
    )
    stacked = jax.tree.map(
        lambda f, h: jnp.where(malicious.reshape(-1, *[1] * (h.ndim - 1)), f, h),
        forged,
        stacked,
    )
    return stacked, {**state.attack, "state": attack_state}


def _scatter(
    state: RoundState,
    cohort: Cohort,
    trained: _Trained,
    num_steps: jax.Array,
    good: jax.Array,
):
    """Writes the memories of the clients that delivered back into the table."""
    if not jax.tree.leaves(state.clients):
        return state.clients
    del num_steps
    population = jax.tree.leaves(state.clients)[0].shape[0]
    rows = jnp.where(good, cohort.client_ids, population)
    return jax.tree.map(
        lambda table, new: table.at[rows].set(new, mode="drop", unique_indices=False),
        state.clients,
        trained.memory,
    )


def _metrics(
    cohort: Cohort,
    deliveries: _Delivery,
    good: jax.Array,
    aggregate_norm: jax.Array,
    accepted: jax.Array,
) -> Metrics:
    """Returns the round's metrics, unnoised: for the simulation's own eyes."""
    bad = deliveries.delivered & ~deliveries.finite
    weights = jnp.where(good, deliveries.weight, 0.0)
    total = jnp.maximum(jnp.sum(weights), 1e-30)
    averages = {
        name: jnp.where(
            jnp.any(good),
            jnp.sum(jnp.where(good, value, 0.0) * weights) / total,
            jnp.nan,
        )
        for name, value in deliveries.metrics.items()
    }
    lossy = deliveries.delivered & ~jnp.isfinite(deliveries.metrics["loss"])
    order = jnp.argsort(~(bad | lossy), stable=True)[:NAMED_CLIENTS]
    named = jnp.where((bad | lossy)[order], cohort.client_ids[order], -1)
    num_good = jnp.sum(good)
    norms = jnp.where(good, deliveries.update_norm, 0.0)
    return {
        **averages,
        "num_clients": num_good.astype(jnp.int32),
        "num_examples": jnp.sum(jnp.where(good, cohort.batches.num_examples, 0)).astype(
            jnp.int32
        ),
        "num_steps": jnp.sum(deliveries.steps).astype(jnp.int32),
        "dropped": jnp.sum(cohort.mask & ~deliveries.delivered).astype(jnp.int32),
        "non_finite": jnp.sum(bad).astype(jnp.int32),
        "bad_clients": named.astype(jnp.int32),
        "update_norm": jnp.sum(norms) / jnp.maximum(num_good, 1),
        "aggregate_norm": aggregate_norm,
        "accepted": accepted,
    }
