"""The plan of a round: what fills each stage, and the static check of the whole."""

import dataclasses
import math
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_health.aggregators import mean
from fedjax_health.client import ExamplePrivacy, LocalAlgorithm, fedavg
from fedjax_health.core import trees
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import (
    Aggregator,
    BoundMechanism,
    ClientBatches,
    ClientTransform,
    Codec,
    DataAttack,
    Mechanism,
    Params,
    Sampling,
    Secure,
    UpdateAttack,
)
from fedjax_health.engine.hierarchy import DeviceAveraging
from fedjax_health.engine.places import (
    Parts,
    Predicate,
    SplitTraining,
    either,
    leaves_with,
    leaves_without,
)
from fedjax_health.transforms import chain

_REAL = int | float | np.integer | np.floating


class Schedule(NamedTuple):
    """A learning-rate schedule by round.

    Attributes:
      factor: ``(round, **numbers) -> factor`` on the learning rate; the same function
        object for the same kind of schedule.
      numbers: the schedule's numbers, which are traced.
    """

    factor: Callable[..., jax.Array]
    numbers: dict[str, float]


def _cosine(round: jax.Array, rounds: jax.Array, final: jax.Array) -> jax.Array:
    progress = jnp.clip(round / rounds, 0.0, 1.0)
    return final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(math.pi * progress))


def _exponential(round: jax.Array, decay: jax.Array) -> jax.Array:
    return decay**round


def _warmup_cosine(
    round: jax.Array, rounds: jax.Array, final: jax.Array, warmup: jax.Array
) -> jax.Array:
    ramp = jnp.clip((round + 1.0) / jnp.maximum(warmup, 1.0), 0.0, 1.0)
    rest = jnp.maximum(rounds - warmup, 1.0)
    return ramp * _cosine(jnp.maximum(round - warmup, 0.0), rest, final)


def cosine_schedule(rounds: int, *, final: float = 0.0, warmup: int = 0) -> Schedule:
    """Falls from 1 to ``final`` along half a cosine, after a linear warm-up.

    Args:
      rounds: the round at which ``final`` is reached.
      final: the last factor, in [0, 1].
      warmup: rounds of the linear rise before it.

    Raises:
      ValueError: for numbers out of range.
    """
    if rounds < 1 or not 0 <= final <= 1 or not 0 <= warmup < rounds:
        raise ValueError(
            "cosine_schedule needs rounds >= 1, final in [0, 1] and warmup in "
            f"[0, rounds), not rounds={rounds}, final={final}, warmup={warmup}"
        )
    numbers = {"rounds": float(rounds), "final": final}
    if warmup:
        return Schedule(_warmup_cosine, {**numbers, "warmup": float(warmup)})
    return Schedule(_cosine, numbers)


def exponential_schedule(decay: float) -> Schedule:
    """Multiplies the learning rate by ``decay`` (in (0, 1]) after every round."""
    if not 0 < decay <= 1:
        raise ValueError(f"exponential_schedule: decay in (0, 1], not {decay}")
    return Schedule(_exponential, {"decay": decay})


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax constructor and its arguments.

    Floats are leaves of ``RoundState.hyper`` and may vary without recompilation;
    other arguments (flags, None) are static.

    Attributes:
      constructor: such as ``optax.sgd``; called inside the jitted round.
      arguments: its keyword arguments; ``learning_rate`` among them.
      schedule: by round, on the learning rate; None for a constant one.
    """

    constructor: Callable[..., optax.GradientTransformation]
    arguments: dict[str, Any]
    schedule: Schedule | None = None

    def __post_init__(self):
        rate = self.arguments.get("learning_rate")
        if isinstance(rate, bool) or not isinstance(rate, _REAL):
            raise ValueError(
                "Optimizer needs arguments={'learning_rate': number, ...}; a schedule "
                f"goes into schedule=, not {rate!r}"
            )
        for name, value in self.arguments.items():
            if isinstance(value, _REAL) and not math.isfinite(value):
                raise ValueError(f"Optimizer: {name}={value} is not a finite number")
            if not isinstance(value, Hashable):
                raise ValueError(
                    f"Optimizer: {name} is a {type(value).__name__}, which cannot be "
                    "part of a compiled program: wrap it in the constructor"
                )

    @property
    def numbers(self) -> dict[str, float]:
        """The arguments that are traced."""
        return {
            name: float(value)
            for name, value in self.arguments.items()
            if _is_number(name, value)
        }

    @property
    def static(self) -> tuple[tuple[str, Any], ...]:
        """The arguments that are part of the structure."""
        return tuple(
            sorted(
                (name, value)
                for name, value in self.arguments.items()
                if not _is_number(name, value)
            )
        )

    def leaves(self) -> dict[str, Any]:
        """Returns this optimiser's part of ``RoundState.hyper``."""
        numbers = {k: jnp.float32(v) for k, v in self.numbers.items()}
        schedule = self.schedule.numbers if self.schedule else {}
        return {
            "numbers": numbers,
            "schedule": {k: jnp.float32(v) for k, v in schedule.items()},
        }

    @property
    def structure(self) -> "OptimizerStructure":
        """The hashable part."""
        factor = self.schedule.factor if self.schedule else None
        return OptimizerStructure(self.constructor, self.static, factor)


def _is_number(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, float | np.floating) or name == "learning_rate"


class OptimizerStructure(NamedTuple):
    """What of an optimiser is compiled in."""

    constructor: Callable[..., optax.GradientTransformation]
    static: tuple[tuple[str, Any], ...]
    factor: Callable[..., jax.Array] | None

    def learning_rate(self, leaves: dict, round: jax.Array) -> jax.Array:
        """Returns the learning rate of a round, float32 ``[]``."""
        rate = leaves["numbers"]["learning_rate"]
        if self.factor is None:
            return rate
        return rate * self.factor(round.astype(jnp.float32), **leaves["schedule"])

    def build(self, leaves: dict, round: jax.Array) -> optax.GradientTransformation:
        """Returns the optax optimiser of a round, its numbers traced."""
        rate = self.learning_rate(leaves, round)
        numbers = {**leaves["numbers"], "learning_rate": rate}
        return self.constructor(**numbers, **dict(self.static))


@dataclasses.dataclass(frozen=True)
class DpSgd:
    """Private local training: each example's gradient clipped, their sum noised.

    Abadi et al., 2016 (arXiv:1607.00133). Protects one example of one client, from
    whoever sees the client's message. The clip norm and the noise are traced.

    Attributes:
      clip_norm: bound on the L2 norm of one example's gradient.
      noise_multiplier: standard deviation of the noise over that bound.
      microbatch: examples that are gone through at a time; static. None stands for the
        batch size and a little more, so that nine batches in ten are one part.
    """

    clip_norm: float
    noise_multiplier: float
    microbatch: int | None = None

    def __post_init__(self):
        for name in ("clip_norm", "noise_multiplier"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(
                    f"DpSgd: {name} must be finite and above 0, not {value}"
                )
        if self.microbatch is not None and self.microbatch < 1:
            raise ValueError(
                f"DpSgd: microbatch must be 1 or more, not {self.microbatch}"
            )

    def held(self, batch_size: int) -> int:
        """Returns how many examples are gone through at a time."""
        # The size of a Poisson batch has a deviation of at most its expectation's root.
        return self.microbatch or batch_size + math.ceil(1.5 * math.sqrt(batch_size))

    def numbers(self) -> ExamplePrivacy:
        """Returns what is traced."""
        return ExamplePrivacy(
            jnp.float32(self.clip_norm), jnp.float32(self.noise_multiplier)
        )


@dataclasses.dataclass(frozen=True)
class LocalTraining:
    """How a client trains.

    Attributes:
      algorithm: see ``fedjax_health.client``.
      optimizer: the local optimiser; its state starts afresh every round.
      epochs: passes over the client's examples a round; or
      steps: local steps a round, however many examples there are.
      batch_size: examples a step; static. The expected number with example_privacy.
      example_privacy: DP-SGD; or None.
      device_averaging: how the devices of a client train and are averaged in it; or
        None where a client's examples are one heap.
    """

    algorithm: LocalAlgorithm = dataclasses.field(default_factory=fedavg)
    optimizer: Optimizer = Optimizer(optax.sgd, {"learning_rate": 0.1})
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 32
    example_privacy: DpSgd | None = None
    device_averaging: DeviceAveraging | None = None

    def __post_init__(self):
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                "LocalTraining needs exactly one of epochs and steps, "
                f"not epochs={self.epochs}, steps={self.steps}"
            )
        for name in ("epochs", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"LocalTraining: {name} must be 1 or more, not {value}"
                )
        if self.device_averaging is not None and self.example_privacy is not None:
            raise CompositionError(
                "DP-SGD is accounted for examples that one client draws from, not each "
                "of its devices: leave out device_averaging or example_privacy"
            )
        if self.algorithm.plain_sgd_only:
            is_sgd = self.optimizer.constructor is optax.sgd
            momentum = self.optimizer.arguments.get("momentum")
            if not is_sgd or momentum:
                raise CompositionError(
                    "SCAFFOLD's control variates hold for local SGD without momentum: "
                    "use optax.sgd with a learning rate alone, or another algorithm"
                )


@dataclasses.dataclass(frozen=True)
class RoundPlan:
    """What fills each stage of a round.

    Attributes:
      local: how a client trains.
      data_attack: what malicious clients do to their own data; or None.
      transforms: what happens to one client's updates, in order.
      attack: how malicious messages are forged; or None.
      aggregator: exactly one.
      mechanism: the differential privacy mechanism; or None.
      server_optimizer: steps the server; ``optax.sgd(1.0)`` is FedAvg.
      weighting: clients weigh by their "examples", or all the same ("uniform").
      personal: path such as "head/kernel" -> whether the leaf stays with the client;
        or None.
      split: how a model that is cut in two is trained; or None.
      parts: parts of the model that not every client has data for; or None.
      dropout: probability that a drawn client trains but delivers nothing; traced, but
        0 leaves the draw out and is a structure of its own.
      root_batches: the server's own data, one client's batches, for FLTrust; or None.
    """

    local: LocalTraining
    data_attack: DataAttack | None = None
    transforms: tuple[ClientTransform, ...] = ()
    attack: UpdateAttack | None = None
    aggregator: Aggregator = dataclasses.field(default_factory=mean)
    mechanism: Mechanism | None = None
    server_optimizer: Optimizer = Optimizer(optax.sgd, {"learning_rate": 1.0})
    weighting: Literal["examples", "uniform"] = "examples"
    personal: Predicate | None = None
    split: SplitTraining | None = None
    parts: Parts | None = None
    dropout: float = 0.0
    root_batches: ClientBatches | None = None

    def __post_init__(self):
        if self.weighting not in ("examples", "uniform"):
            raise ValueError(
                f"weighting must be 'examples' or 'uniform', not {self.weighting!r}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")

    @property
    def relayed(self) -> Predicate | None:
        """Path -> whether the leaf passes from client to client; or None."""
        return None if self.split is None else self.split.relayed

    @property
    def unsent(self) -> Predicate | None:
        """Path -> whether the leaf is in no message; or None."""
        return either(self.personal, self.relayed)

    @property
    def keeps_stack(self) -> bool:
        """Whether the messages of a cohort are held side by side."""
        secure = self.aggregator.secure
        gathers = secure is not None and secure.gather is not None
        return self.attack is not None or not self.aggregator.linear or gathers


class CheckedPlan(NamedTuple):
    """A plan that composes.

    Attributes:
      transform: the chain of client transforms.
      mechanism: the mechanism, bound to the message; or None.
      bound: the path of the bound's leaf in the chain's shared value; or None.
      codec: how messages become integers; or None.
      codec_owner: the field of ``RoundState`` that holds the codec's state.
      message: what one client sends.
    """

    transform: ClientTransform
    mechanism: BoundMechanism | None
    bound: str | None
    codec: Codec | None
    codec_owner: str
    message: Message


def check_plan(
    plan: RoundPlan, *, abstract_params: Params, cohort_size: int, sampling: Sampling
) -> CheckedPlan:
    """Folds ``check`` over the stages.

    Args:
      plan: the plan.
      abstract_params: the parameters' shapes.
      cohort_size: slots of a cohort.
      sampling: how cohorts are drawn.

    Raises:
      CompositionError: if the stages must not follow one another.
    """
    shared_params = leaves_without(plan.unsent, abstract_params)
    if plan.unsent is not None:
        _check_memory(plan, abstract_params)
    if plan.personal is not None:
        _check_personal(plan.personal, abstract_params)
    if plan.split is not None:
        _check_split(plan, plan.split, abstract_params)
    transform = chain(*plan.transforms)
    num_params = trees.num_params(shared_params)
    num_bytes = trees.num_bytes(shared_params)
    message = transform.check(
        Message(
            num_params=num_params,
            bits=math.ceil(8 * num_bytes / max(num_params, 1)),
            overhead_bytes=num_bytes if plan.local.algorithm.reports_model else 0,
            hosted=_hosted(plan, shared_params),
        )
    )
    if plan.parts is not None:
        _check_parts(plan, transform)
    if plan.root_batches is not None and transform.restore is not None:
        raise CompositionError(
            "the server's own updates on its root data are no message: a rule that "
            "compares them with messages cannot be used with a transform that changes "
            "what a message is (random_k with a shared seed, ef21)"
        )
    aggregated = plan.aggregator.check(message, cohort_size)
    secure = plan.aggregator.secure
    if secure is not None and plan.local.algorithm.reports_model:
        raise CompositionError(
            "SCAFFOLD's control variates travel beside the message, where the server "
            "would see them: secure aggregation needs fedavg, fedprox or ditto"
        )
    bound = message.bound
    if plan.mechanism is None:
        codec = _masked(secure, None if secure is None else secure.codec)
        sent = message if secure is None else aggregated
        return CheckedPlan(transform, None, bound, codec, "aggregator", sent)
    if bound is None:
        raise CompositionError(
            "a mechanism needs a bounded message: put a clipping transform last"
        )
    if plan.weighting != "uniform":
        raise CompositionError(
            "example counts are private and unbounded: a mechanism needs "
            'weighting="uniform"'
        )
    if plan.local.algorithm.reports_model:
        raise CompositionError(
            "SCAFFOLD's control variates travel beside the message, outside its bound "
            "and its noise: a mechanism needs fedavg, fedprox or ditto"
        )
    mechanism = plan.mechanism.bind(aggregated, sampling)
    _check_places(plan, mechanism)
    codec, owner = mechanism.codec, "mechanism"
    if codec is None and secure is not None:
        codec, owner = secure.codec, "aggregator"
    sent = message if secure is None else aggregated
    codec = _masked(secure, codec)
    return CheckedPlan(transform, mechanism, bound, codec, owner, sent)


def _masked(secure: Secure | None, codec: Codec | None) -> Codec | None:
    """Returns the codec behind the masks that clients draw, where they do."""
    if secure is None or secure.mask is None or codec is None:
        return codec
    return secure.mask(codec)


def _check_memory(plan: RoundPlan, abstract_params: Params) -> None:
    if jax.tree.leaves(jax.eval_shape(plan.local.algorithm.init, abstract_params)):
        raise CompositionError(
            "leaves that stay with a client or pass from one to the next go with "
            "algorithms without client memory (fedavg, fedprox): Ditto keeps a whole "
            "personal model already, and SCAFFOLD's control variates are defined for "
            "leaves that are averaged"
        )


def _check_personal(personal: Predicate, abstract_params: Params) -> None:
    names = trees.path_names(abstract_params)
    selected = sum(map(personal, names))
    if selected in (0, len(names)):
        which = "no" if selected == 0 else "every"
        raise CompositionError(
            f"personal selects {which} leaf of the model; its leaves are "
            + ", ".join(names)
        )


def _check_split(plan: RoundPlan, split: SplitTraining, abstract_params: Params):
    names = trees.path_names(abstract_params)
    if not any(map(split.server, names)) or not any(map(split.client, names)):
        raise CompositionError(
            "a split needs leaves at the server and leaves with the clients; the "
            "model's leaves are " + ", ".join(names)
        )
    if plan.local.device_averaging is not None and split.mode != "parallel":
        raise CompositionError(
            "the devices of a client train side by side, so that nothing passes from "
            'one to the next: device_averaging needs a split of mode="parallel"'
        )
    both = [name for name in names if split.server(name) and split.client(name)]
    if both:
        raise CompositionError(
            f"{both[0]} cannot be the server's and the clients' at once: choose a cut"
        )
    if plan.personal is not None:
        for name in filter(plan.personal, names):
            if split.server(name):
                raise CompositionError(
                    f"personal selects {name}, which is the server's: no client has it"
                )
            if split.mode == "relay" and split.client(name):
                raise CompositionError(
                    f"personal selects {name}, which a relay passes from client to "
                    'client: choose mode="parallel" or "sequential"'
                )
    if plan.local.example_privacy is not None:
        raise CompositionError(
            "DP-SGD hides an example's gradient, and across a cut the server sees what "
            "the example becomes: protect the wire instead (clip and noise on what "
            "crosses the cut)"
        )
    if plan.root_batches is not None:
        raise CompositionError(
            "the server trains its root data on a whole model, and of a split one it "
            "has half: use a rule that needs no root data"
        )
    if plan.relayed is not None and plan.mechanism is not None:
        raise CompositionError(
            "a mechanism protects what is averaged, and a half that passes from client "
            'to client is not: use mode="parallel"'
        )
    if not jax.tree.leaves(leaves_without(plan.unsent, abstract_params)):
        stages = (plan.transforms, plan.attack, plan.aggregator.secure)
        if any(stages) or not plan.aggregator.linear:
            raise CompositionError(
                "every leaf of this model passes from client to client, so there are "
                "no messages to shape, forge or aggregate: leave the transforms, the "
                "attack on messages and the rule out"
            )


def _hosted(plan: RoundPlan, sent: Params) -> int:
    """Returns how many numbers of the messages are the server's own half."""
    if plan.split is None or plan.split.mode != "parallel":
        return 0
    return trees.num_params(leaves_with(plan.split.server, sent))


def _check_parts(plan: RoundPlan, transform: ClientTransform) -> None:
    """Refuses what cannot be applied part by part."""
    if plan.mechanism is not None:
        raise CompositionError(
            "which clients have the data of a part is seen in a mean over these alone, "
            "and a mechanism's denominator is one that no client can move: average "
            "over all clients, or leave the mechanism out"
        )
    if plan.aggregator.secure is not None:
        raise CompositionError(
            "a secure sum has one weight for a whole message, and parts that some "
            "clients lack need one each: average over all clients, or use a rule that "
            "sees messages"
        )
    if transform.restore is not None:
        raise CompositionError(
            "parts are leaves of the model, and this chain of transforms sends "
            "messages of another structure (random_k with a shared seed, ef21): use "
            "another compressor, or average over all clients"
        )
    if plan.local.algorithm.reports_model:
        raise CompositionError(
            "SCAFFOLD's control variates are averaged over all clients: use fedavg, "
            "fedprox or ditto with parts that some clients lack"
        )


def _check_places(plan: RoundPlan, mechanism: BoundMechanism) -> None:
    """Refuses a mechanism whose noise would be added nowhere, or too late."""
    aggregator = plan.aggregator
    by_group = aggregator.secure is not None and aggregator.secure.finish is not None
    if by_group and mechanism.group is None and mechanism.codec is None:
        if mechanism.client is None:
            raise CompositionError(
                "a rule over group sums needs noise in each of them: use a mechanism "
                "that adds it to group sums or to each message"
            )
        return
    if by_group:
        return
    if mechanism.group is not None and mechanism.server is None:
        raise CompositionError(
            "this mechanism adds its noise to group sums, and this aggregator forms "
            "none: use grouped_secure, or noise by each client or by the server"
        )
    places = (mechanism.client, mechanism.server, mechanism.codec)
    if all(place is None for place in places):
        raise CompositionError(
            "this mechanism adds no noise anywhere: bind() must return a client, "
            "server or group function, or a codec that adds it"
        )
    if mechanism.server is not None and not aggregator.linear:
        raise CompositionError(
            "noise added after a non-linear rule protects nobody: use a linear "
            "aggregator, or a mechanism that adds its noise to each message"
        )
    if mechanism.codec is not None and not aggregator.linear:
        raise CompositionError(
            "this mechanism's messages are integers, which only a sum can make sense "
            "of: use mean, secure_mean or grouped_secure"
        )
