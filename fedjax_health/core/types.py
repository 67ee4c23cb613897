"""The records that the stages of a federated round are made of.

A stage is a record of pure functions. ``ClientTransform`` and ``DataAttack`` see one
client; ``UpdateAttack``, ``Aggregator`` and ``Mechanism`` see the stacked cohort or
the aggregate. Numbers that may vary between runs live in the state that ``init``
returns, so that runs of one structure share one compiled program: the functions of a
record must therefore be the same objects whenever its static arguments are equal.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np

from fedjax_health.core.message import Message

Params = Any
Updates = Any
State = Any
Shared = Any
Report = Any
Batch = Any
Outputs = Any
Metrics = dict[str, jax.Array]
Key = jax.Array
AnyArray = jax.Array | np.ndarray


class Model(NamedTuple):
    """A detector as two pure functions.

    Attributes:
      init: key -> parameters.
      apply: ``(params, batch, *, key=None) -> outputs``. ``batch`` maps names to
        arrays with a leading example axis; outputs are logits ``[examples]`` or, for
        streams, ``[examples, time]``, or a ``Detection`` that holds them. Without a key
        the model is deterministic.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Outputs]


class ModalityColumns(NamedTuple):
    """Where one modality lies among the columns of ``batch["x"]``.

    Attributes:
      name: of the modality.
      values: first and end column of its features.
      observed: first and end column of the flags that say 1 where a value was
        observed, one for each feature; None where every value is.
      elapsed: first and end column of log(1 + steps) since the value was last
        observed (since the start of the stream before that), one for each feature; the
        values are then the last observed ones. None where time does not matter.
    """

    name: str
    values: tuple[int, int]
    observed: tuple[int, int] | None = None
    elapsed: tuple[int, int] | None = None


InputLayout = tuple[ModalityColumns, ...]


class Detection(NamedTuple):
    """What a detector of several parts says of a batch; ``logits`` alone is its answer.

    Axes written ``...`` are ``[examples]`` or, for streams, ``[examples, time]``.

    Attributes:
      logits: ``[...]``.
      unimodal: modality name -> logits ``[...]`` of that modality alone.
      aligned: modality name -> embedding ``[..., width]`` in the space in which the
        modalities are compared.
      embedding: ``[..., width]``, what the last layer sees; None where there is none.
      shares: float32 ``[..., modalities]``, how much each modality counts; they sum to
        1, and a modality that is absent has 0. Where none is present all are 0. None
        where there is one modality, or nothing that weighs them.
      present: bool ``[..., modalities]``, which modalities were observed at all.
      smashed: modality name -> ``[examples, ...]``, what crosses the cut of a split
        modality for each example; None where no modality is split.
    """

    logits: jax.Array
    unimodal: dict[str, jax.Array]
    aligned: dict[str, jax.Array]
    embedding: jax.Array | None = None
    shares: jax.Array | None = None
    present: jax.Array | None = None
    smashed: dict[str, jax.Array] | None = None


def logits_of(outputs: Outputs) -> jax.Array:
    """Returns the logits of what a model returned, a ``Detection`` or bare logits."""
    return outputs.logits if isinstance(outputs, Detection) else outputs


class LossFn(Protocol):
    """The training loss of one batch.

    ``batch["weight"]`` (``[examples]``, float32) is 0 for rows that only fill up the
    last batch of an epoch; a loss must weight its examples by it.
    """

    def __call__(
        self, params: Params, batch: Batch, key: Key
    ) -> tuple[jax.Array, Metrics]:
        """Returns the scalar loss and further scalars to be averaged."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Examples:
    """Packed examples of many clients: the rows that batches are gathered from.

    Attributes:
      rows: name -> ``[rows, ...]``.
      starts: int32 ``[examples]``, the first row of each example, or None where
        example i is row i.
      window: rows that make one example, or None where an example is one row; an
        example of a windowed store has a time axis of this length.
    """

    rows: dict[str, Any]
    starts: Any = None
    window: int | None = dataclasses.field(default=None, metadata={"static": True})


class ClientBatches(NamedTuple):
    """Where the examples of a cohort lie, and how long each client trains.

    Attributes:
      num_examples: int32 ``[cohort]``; 0 for an empty slot.
      num_steps: int32 ``[cohort]``, the most local steps that the client can take (a
        straggler's budget); ``2**31 - 1`` where the plan alone decides.
      index: int32 ``[cohort]``, the position of each client's first example in
        ``arrays``; its others follow.
      arrays: the resident store, the same in every round, or the examples of this
        cohort alone when the store is memory-mapped.
      devices: int32 ``[cohort, devices]``, examples of each device of a client, one
        after the other in the client's; 0 in empty places. None where the devices of a
        client do not train by themselves.
    """

    num_examples: AnyArray
    num_steps: AnyArray
    index: AnyArray
    arrays: Examples
    devices: AnyArray | None = None


class Cohort(NamedTuple):
    """The clients of one round.

    Attributes:
      client_ids: int32 ``[cohort]``, distinct; ``population`` in empty slots.
      mask: bool ``[cohort]``, False in empty slots.
      weights: float32 ``[cohort]``, example counts; 0 in empty slots.
      malicious: bool ``[cohort]``.
      batches: where their examples lie.
      part_shares: float32 ``[cohort, parts]``, the share of a client's examples that
        has the data of each part of the model (``Parts``); None where all have all.
    """

    client_ids: AnyArray
    mask: AnyArray
    weights: AnyArray
    malicious: AnyArray
    batches: ClientBatches
    part_shares: AnyArray | None = None


class RoundState(NamedTuple):
    """All that a run carries from one round to the next.

    Attributes:
      round: int32 ``[]``, rounds done.
      params: the global model.
      hyper: the tree of every number that may vary between runs of one structure.
      server: state of the server optimiser.
      shared: what the server broadcasts beside the model (control variate, clip).
      aggregator: state of the aggregation rule.
      mechanism: state of the privacy mechanism.
      attack: state of the update attack.
      clients: per-client memory, leaves ``[population, ...]``.
      key: the root key; never changed.
    """

    round: jax.Array
    params: Params
    hyper: Any
    server: State
    shared: Shared
    aggregator: State
    mechanism: State
    attack: State
    clients: State
    key: Key


class ClientContext(NamedTuple):
    """What a client transform may know beside its own updates.

    Attributes:
      key: this client's key of this round and transform.
      round: int32 ``[]``.
      weight: float32 ``[]``, the client's aggregation weight before normalisation.
      params: the global model's shared leaves.
      shared: what this transform's server half broadcasts.
    """

    key: Key
    round: jax.Array
    weight: jax.Array
    params: Params
    shared: Shared


class ClientTransform(NamedTuple):
    """Shapes one client's message; sees no client axis.

    Attributes:
      init: params -> one client's memory.
      init_server: params -> the value that the server broadcasts.
      update: ``(updates, memory, ClientContext) -> (updates, memory, report)``; the
        report is a tree of arrays that the engine sums over the cohort.
      reduce: ``(shared, summed_report, key) -> shared``.
      check: the static half.
      restore: ``(aggregate, shared, params) -> (updates, shared)``, what the server
        makes of the aggregate before its optimiser's step: the way back for messages
        of another structure than the parameters. None leaves the aggregate as it is.
      measure: ``(summed_report, shared, count) -> Metrics``, what the report of
        ``count`` (float32 ``[]``) messages says to a reader; ``uplink_bytes`` in it
        replaces the static estimate of the round's bytes. None says nothing.
    """

    init: Callable[[Params], State]
    init_server: Callable[[Params], Shared]
    update: Callable[[Updates, State, ClientContext], tuple[Updates, State, Report]]
    reduce: Callable[[Shared, Report, Key], Shared]
    check: Callable[[Message], Message]
    restore: Callable[[Updates, Shared, Params], tuple[Updates, Shared]] | None = None
    measure: Callable[[Report, Shared, jax.Array], Metrics] | None = None


class Defence(NamedTuple):
    """The rule that will be applied to a round's messages, as an attacker may try it.

    ``defence(stacked, key) -> aggregate``. The key is the attacker's: what the server
    draws is not known before it is drawn.

    Attributes:
      update: the aggregator's ``update``.
      weights: float32 ``[cohort]``, 0 for absent rows.
      state: the aggregator's state of this round.
      context: what the aggregator may know.
      depends_on: see ``Aggregator``.
    """

    update: Callable[..., tuple[Updates, State, Metrics]]
    weights: jax.Array
    state: State
    context: "AggregationContext"
    depends_on: str

    def __call__(self, stacked: Updates, key: Key) -> Updates:
        """Returns the aggregate of these messages."""
        return self.update(
            stacked, self.weights, self.state, key, context=self.context
        )[0]


class AttackContext(NamedTuple):
    """What an update attack may know; which of it, its own threat model says.

    Attributes:
      key: the attack's key of this round.
      round: int32 ``[]``.
      params: the global model's shared leaves.
      previous_aggregate: the last round's aggregate (zeros in the first).
      defence: ``(stacked, key) -> aggregate``, the rule that will be applied.
      client_ids: int32 ``[cohort]``; None stands for the row numbers.
      client_keys: key of each client for this purpose, the same in every round,
        ``[cohort]``; None where ``key`` and the client's id make them.
      mask: bool ``[cohort]``, rows that hold a delivered and finite honest message;
        None stands for all. A malicious client outside it holds zeros and may still
        send what it forges.
      weights: float32 ``[cohort]``, aggregation weights, 0 for absent rows; None
        stands for equal ones.
    """

    key: Key
    round: jax.Array
    params: Params
    previous_aggregate: Updates
    defence: Callable[[Updates, Key], Updates]
    client_ids: jax.Array | None = None
    client_keys: jax.Array | None = None
    mask: jax.Array | None = None
    weights: jax.Array | None = None


class UpdateAttack(NamedTuple):
    """Forges the messages of malicious clients from the stacked honest ones.

    Attributes:
      init: params -> state.
      forge: ``(stacked, malicious, state, AttackContext) -> (stacked, state)``. The
        engine keeps honest rows as they were, whatever is returned for them.
    """

    init: Callable[[Params], State]
    forge: Callable[[Updates, jax.Array, State, AttackContext], tuple[Updates, State]]


class DataAttackContext(NamedTuple):
    """What a data attack may know: the client and nothing of the others.

    Attributes:
      key: key of this client, round and local step.
      client_id: int32 ``[]``.
      malicious: bool ``[]``.
      round: int32 ``[]``.
      client_key: key of this client for this purpose, the same in every round and
        step: what is drawn from it stays with a record for good. None where there is
        none; ``key`` takes its place.
      index: int32 ``[batch]``, number of each record among the client's own, so that
        the same record is known again; None stands for the place in the batch.
      numbers: what the attack's ``init`` returned.
    """

    key: Key
    client_id: jax.Array
    malicious: jax.Array
    round: jax.Array
    client_key: Key | None = None
    index: jax.Array | None = None
    numbers: State = ()


class DataAttack(NamedTuple):
    """Poisons one batch of one client: ``(batch, DataAttackContext) -> batch``.

    The engine keeps the batches of honest clients as they were.

    Attributes:
      poison: as above.
      init: () -> the attack's numbers, which are traced and arrive as
        ``DataAttackContext.numbers``; None where it has none.
    """

    poison: Callable[[Batch, DataAttackContext], Batch]
    init: Callable[[], State] | None = None


class AggregationContext(NamedTuple):
    """What an aggregator may know beside the messages.

    Attributes:
      client_ids: int32 ``[cohort]``.
      mask: bool ``[cohort]``, clients that delivered a message.
      round: int32 ``[]``.
      root_updates: the server's own updates on its root data, or None.
      part_shares: see ``Cohort``; for rules that are applied part by part.
    """

    client_ids: jax.Array
    mask: jax.Array
    round: jax.Array
    root_updates: Updates | None = None
    part_shares: jax.Array | None = None


class Codec(NamedTuple):
    """How a message becomes integers that are summed modulo 2**32, and back.

    Attributes:
      encode: ``(updates, weight, state, key, bound) -> (integers, saturated)``, one
        client's half: a tree of int32 arrays, and the share of coordinates that were
        cut to the range, float32 ``[]``. ``bound`` is the message's L2 bound of this
        round, float32 ``[]``, or None where none is known.
      decode: ``(total, state, bound, like) -> updates``, the server's half: the sum of
        ``weight * updates`` over the messages, of the structure of ``like``.
      collect: ``total -> total``, what the server makes of the sum before noise is
        added to it and it is decoded; None leaves it as it is.
    """

    encode: Callable[..., tuple[Any, jax.Array]]
    decode: Callable[..., Updates]
    collect: Callable[[Any], Any] | None = None


class Gathered(NamedTuple):
    """What the server learns of the integers of a cohort.

    Attributes:
      sums: int32 ``[groups, ...]``, modulo 2**32; zeros where nothing is released.
      weights: float32 ``[groups]``, the sum of the weights of the members.
      released: bool ``[groups]``, groups with enough members.
      metrics: what a reader is told, such as bytes and seconds of a phase.
    """

    sums: Any
    weights: AnyArray
    released: AnyArray
    metrics: Metrics


class Secure(NamedTuple):
    """The parts of an aggregator that sees sums of integers alone.

    Attributes:
      codec: how messages become integers, unless a mechanism brings its own.
      threshold: state -> int32 ``[]``, the fewest messages whose sum is released.
      gather: ``(integers [cohort, ...], weights [cohort], state, key,
        AggregationContext) -> Gathered``; weight 0 is absent. None for the plain
        modular sum over the whole cohort, which is formed as the clients are trained.
      on_host: whether ``gather`` runs on the host, on NumPy arrays, between two halves
        of a round; ``key`` is then uint32 ``[2]``, and a negative id in the context
        marks a slot of the cohort that no client fills.
      finish: ``(means [groups, ...], weights [groups], state, key,
        AggregationContext) -> (aggregate, state, Metrics)``, the rule over groups; None
        where there is one group.
      groups: how many there are; 0 where ``gather`` makes that of the size of the
        cohort, and ``Message.groups`` says it.
      weigh: ``(weights, state) -> weights``, what a message of that weight counts for
        in the sum, and in what the sum is divided by; None leaves them as they are.
      mask: codec -> codec, which masks the messages in each client's half, whichever
        codec that is; None leaves it as it is.
    """

    codec: Codec
    threshold: Callable[[State], jax.Array]
    gather: Callable[..., Gathered] | None = None
    on_host: bool = False
    finish: Callable[..., tuple[Updates, State, Metrics]] | None = None
    groups: int = 1
    weigh: Callable[[jax.Array, State], jax.Array] | None = None
    mask: Callable[[Codec], Codec] | None = None


class Aggregator(NamedTuple):
    """Combines the stacked messages of a cohort into one.

    Attributes:
      init: params -> state.
      update: ``(stacked, weights, state, key, *, context=None) -> (updates, state,
        Metrics)``; a row of weight 0 is absent.
      check: ``(Message, cohort_size) -> Message``.
      linear: whether the result is the weighted mean of the rows, which the engine
        may then accumulate without ever holding the stack.
      depends_on: what of the messages the result rests on, which lets an attacker that
        tries the rule many times do so cheaply. "gram": their inner products (and
        those with the state's and the context's trees of the parameters' shape) alone,
        so that rows turned by an isometry give the aggregate turned by it.
        "coordinates": each coordinate of the result on that coordinate of the rows
        alone, without state or context. "median": it is the median of each coordinate
        of the rows that are present, those in the middle averaged. "rows": nothing is
        promised.
      kernel: the rule's inner half (``aggregators.gram.GramKernel`` or
        ``aggregators.coordinates.CoordinateKernel``), by which ``pipeline`` composes it
        with mixings without holding what they make; None for a rule without one.
      secure: the parts of a rule that sees sums of integers alone; None for a rule that
        sees messages.
    """

    init: Callable[[Params], State]
    update: Callable[..., tuple[Updates, State, Metrics]]
    check: Callable[[Message, int], Message]
    linear: bool
    depends_on: Literal["gram", "coordinates", "median", "rows"] = "rows"
    kernel: Any = None
    secure: Secure | None = None


class Mixing(NamedTuple):
    """A pre-aggregation as a mixing matrix.

    Attributes:
      matrix: ``(gram [n, n], key) -> [m, n]``.
      check: ``(Message, cohort_size) -> (Message, m)``.
      kernel: what ``pipeline`` and ``mix`` compose
        (``aggregators.mixing.MixingKernel``).
      numbers: the mixing's own numbers, which are traced.
    """

    matrix: Callable[[jax.Array, Key], jax.Array]
    check: Callable[[Message, int], tuple[Message, int]]
    kernel: Any = None
    numbers: Any = ()


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the cohort of a round is drawn.

    Attributes:
      scheme: "fixed" (that many distinct clients), "poisson" (each client with
        probability ``expected / population``) or "cyclic" (Poisson inside the block
        of clients whose turn it is).
      population: number of clients.
      expected: expected number of clients in a round.
      cap: slots of a Poisson cohort; a draw beyond it is cut. None stands for mean
        plus six standard deviations.
      cycle: rounds until the same block of clients has its turn again; cyclic only.
        Blocks are of one size: the last ``population % cycle`` clients have no turn.

    Raises:
      ValueError: for sizes that do not fit one another.
    """

    scheme: Literal["fixed", "poisson", "cyclic"]
    population: int
    expected: int
    cap: int | None = None
    cycle: int = 1

    def __post_init__(self):
        if self.scheme not in ("fixed", "poisson", "cyclic"):
            raise ValueError(
                f"unknown sampling scheme {self.scheme!r}: fixed, poisson or cyclic"
            )
        if not 1 <= self.population < 2**31:
            raise ValueError(
                f"population must lie in [1, 2**31), not {self.population}"
            )
        if self.cycle < 1 or (self.cycle > 1 and self.scheme != "cyclic"):
            raise ValueError(
                f"cycle={self.cycle}: 1 or more, and above 1 with scheme='cyclic' only"
            )
        if not 1 <= self.expected <= self.block:
            raise ValueError(
                f"a cohort of {self.expected} clients cannot be drawn from "
                f"{self.block}: choose a cohort of 1 to {self.block}"
            )
        if self.cap is not None:
            if self.scheme == "fixed":
                raise ValueError("cap goes with Poisson or cyclic sampling only")
            if self.cap < self.expected:
                raise ValueError(
                    f"cap={self.cap} lies below the expected cohort {self.expected}"
                )

    @property
    def block(self) -> int:
        """Clients that can be drawn in one round."""
        return self.population // self.cycle

    @property
    def rate(self) -> float:
        """Probability that one eligible client takes part in a round."""
        return self.expected / self.block

    @property
    def cohort_size(self) -> int:
        """Slots of a cohort."""
        if self.scheme == "fixed":
            return self.expected
        if self.cap is not None:
            return min(self.cap, self.block)
        spread = (self.expected * (1 - self.rate)) ** 0.5
        return min(self.block, int(self.expected + 6 * spread) + 1)


class BoundMechanism(NamedTuple):
    """A mechanism that knows the message it protects; unused places are None.

    Attributes:
      init: params -> state.
      client: ``(updates, state, key, bound) -> updates``, noise by each client. The
        bound, float32 ``[]``, is the leaf that ``Message.bound`` names, in this round.
      group: ``(group_sums, state, key, bound) -> group_sums``, noise on each group's
        sum.
      server: ``(total, state, key, bound) -> (total, state)``, noise by the server on
        the sum of the messages, before it is divided by their expected number.
      codec: how messages become integers; ``group`` and ``server`` then see integers,
        and so they do under an aggregator that sees sums of integers. Its state is the
        mechanism's. None leaves it to the aggregator.
    """

    init: Callable[[Params], State]
    client: Callable[..., Updates] | None = None
    group: Callable[..., Updates] | None = None
    server: Callable[..., tuple[Updates, State]] | None = None
    codec: Codec | None = None


class Mechanism(NamedTuple):
    """A differential privacy mechanism and the event that accounts for it.

    Attributes:
      bind: ``(Message, Sampling) -> BoundMechanism``; the message is what the
        aggregator made of a client's.
      event: ``(Message, Sampling, num_rounds) -> dp_accounting.DpEvent`` of that many
        rounds together.
    """

    bind: Callable[[Message, Sampling], BoundMechanism]
    event: Callable[[Message, Sampling, int], Any]


class FederatedAlgorithm(NamedTuple):
    """A federated run as two pure functions.

    Attributes:
      init: ``(key, params) -> RoundState``.
      step: ``(RoundState, Cohort) -> (RoundState, Metrics)``, jitted; donates the
        state, which must not be used afterwards.
      message: the static description of one client's message.
      parallelism: how clients are mapped onto the devices, in words.
      downlink_bytes: what the server sends to one client in a round.
    """

    init: Callable[[Key, Params], RoundState]
    step: Callable[[RoundState, Cohort], tuple[RoundState, Metrics]]
    message: Message
    parallelism: str
    downlink_bytes: int
