"""What a mechanism costs: epsilon of an event, noise for an epsilon, in words too.

All figures come from dp-accounting: privacy loss distributions ("pld", the tighter) or
Renyi divergences ("rdp"). Nothing here needs jax; dp-accounting is imported on first
use.
"""

import contextlib
import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from fedjax_health.privacy.events import (
    Relation,
    describe_sampling,
    example_level_event,
    sampled_event,
    sampled_relation,
)

Accountant = Literal["pld", "rdp"]

# At 1e-3 a calibration takes a second, and the noise is that of 1e-4 to four digits.
INTERVAL = 1e-3

# Values of one privacy loss distribution at most: for weak noise it gets coarser.
_MOST_VALUES = 1e5

# The largest noise multiplier that a calibration tries.
MOST_NOISE = 1e5


class PrivacyError(ValueError):
    """A guarantee that cannot be given or computed; the text says what to do."""


class Settings(NamedTuple):
    """How epsilon is stated.

    Attributes:
      delta: the probability with which the bound may fail.
      accountant: "pld" or "rdp".
    """

    delta: float = 1e-5
    accountant: Accountant = "pld"


class Target(NamedTuple):
    """An epsilon that stands for the noise multiplier that reaches it.

    Attributes:
      epsilon: of the whole run.
      delta: its delta.
      rounds: of the run.
      accountant: "pld" or "rdp".
    """

    epsilon: float
    delta: float
    rounds: int
    accountant: Accountant = "pld"


class Guarantee(NamedTuple):
    """A differential privacy guarantee with all that makes it one.

    Attributes:
      unit: whose presence is hidden.
      relation: which data sets are neighbours.
      sampler: how the unit is sampled, in words.
      noise: what noise, in words.
      adversary: against whom it holds, in words.
      event: what the accountant composes.
    """

    unit: Literal["client", "example"]
    relation: Relation
    sampler: str
    noise: str
    adversary: str
    event: Any


def epsilon_of(
    event: Any,
    delta: float,
    *,
    accountant: Accountant = "pld",
    relation: Relation = "add_or_remove",
) -> float:
    """Returns the epsilon of an event at a delta.

    A noise multiplier is always noise over the bound of one message. Under "replace" a
    message may move by twice its bound; the RDP accountant does not know that of a
    ``GaussianDpEvent`` by itself, and is given half the multiplier.

    Args:
      event: a ``dp_accounting.DpEvent``.
      delta: in (0, 1).
      accountant: "pld" or "rdp".
      relation: "add_or_remove" or "replace".

    Raises:
      PrivacyError: where the accountant has no bound for the event.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta={delta}: must lie in (0, 1)")
    if accountant not in ("pld", "rdp"):
        raise PrivacyError(f"accountant={accountant!r}: 'pld' or 'rdp'")
    if relation not in ("add_or_remove", "replace"):
        raise PrivacyError(f"relation={relation!r}: 'add_or_remove' or 'replace'")
    parts = tuple(sorted(_parts(event).items(), key=repr))
    return _epsilon(parts, float(delta), accountant, relation)


@functools.lru_cache(maxsize=4096)
def _epsilon(
    parts: tuple, delta: float, accountant: Accountant, relation: Relation
) -> float:
    if any(type(part).__name__ == "NonPrivateDpEvent" for part, _ in parts):
        return math.inf
    if not parts:
        return 0.0
    if accountant == "rdp":
        return _rdp_epsilon(parts, delta, relation)
    total = None
    for part, count in parts:
        one = _loss(part, count, relation, _interval(parts))
        total = one if total is None else total.compose(one)
    assert total is not None
    return float(total.get_epsilon_for_delta(delta))


def _parts(event: Any) -> Counter:
    """Returns how often each event that holds no other occurs."""
    found: Counter = Counter()
    pending = [(event, 1)]
    while pending:
        one, count = pending.pop()
        match type(one).__name__:
            case "SelfComposedDpEvent":
                pending.append((one.event, count * one.count))
            case "ComposedDpEvent":
                pending += [(part, count) for part in one.events]
            case "NoOpDpEvent":
                continue
            case "SingleEpochTreeAggregationDpEvent":
                # One message meets ceil(log2(steps + 1)) nodes of a tree: one Gaussian
                # release of that squared sensitivity (Denisov et al., 2022, for
                # messages that depend on what was released before).
                import dp_accounting as dp

                steps = one.step_counts
                largest = max(steps) if isinstance(steps, Sequence) else steps
                depth = math.ceil(math.log2(largest + 1))
                noise = one.noise_multiplier / math.sqrt(depth)
                found[dp.GaussianDpEvent(noise)] += count
            case _:
                found[one] += count
    return Counter({part: count for part, count in found.items() if count})


def _interval(parts: tuple) -> float:
    """Returns the step of the privacy losses, coarser where they are huge."""
    largest = 0.0
    for part, count in parts:
        noise = _noise_of(part)
        if noise:
            gaussian = type(part).__name__ == "GaussianDpEvent"
            noise /= math.sqrt(count) if gaussian else 1.0
            largest = max(largest, 0.5 / noise**2 + 8 / noise)
    return max(INTERVAL, largest / _MOST_VALUES)


def _noise_of(event: Any) -> float | None:
    noise = getattr(event, "noise_multiplier", None)
    return getattr(getattr(event, "event", None), "noise_multiplier", noise)


@functools.lru_cache(maxsize=256)
def _one_loss(event: Any, relation: Relation, interval: float) -> Any:
    """Returns the privacy loss distribution of one event."""
    from dp_accounting.pld import privacy_loss_distribution as losses

    kind = type(event).__name__
    if _noise_of(event) == 0:
        raise PrivacyError("noise_multiplier=0: no noise, no guarantee")
    common = {
        "value_discretization_interval": interval,
        "neighboring_relation": _relation(relation),
    }
    if kind == "GaussianDpEvent":
        return losses.from_gaussian_mechanism(event.noise_multiplier, **common)
    if kind == "PoissonSampledDpEvent" and hasattr(event.event, "noise_multiplier"):
        return losses.from_gaussian_mechanism(
            event.event.noise_multiplier,
            sampling_prob=event.sampling_probability,
            **common,
        )
    if kind == "TruncatedSubsampledGaussianDpEvent":
        return losses.from_truncated_subsampled_gaussian_mechanism(
            event.dataset_size,
            event.sampling_probability,
            event.truncated_batch_size,
            event.noise_multiplier,
            **common,
        )
    if kind == "SampledWithoutReplacementDpEvent":
        raise PrivacyError(
            "cohorts of a fixed size have an RDP bound only, and a loose one: take "
            "accountant='rdp', or Poisson sampling"
        )
    return None


def _loss(event: Any, count: int, relation: Relation, interval: float) -> Any:
    import dp_accounting as dp
    from dp_accounting import pld

    if type(event).__name__ == "GaussianDpEvent":
        one = dp.GaussianDpEvent(event.noise_multiplier / math.sqrt(count))
        return _one_loss(one, relation, interval)
    one = _one_loss(event, relation, interval)
    if one is not None:
        return one.self_compose(count) if count > 1 else one
    # Events of a mechanism of the user's own.
    accountant = pld.PLDAccountant(_relation(relation), interval)
    with _translated():
        accountant.compose(event, count)
    return accountant._pld


def _relation(relation: Relation) -> Any:
    from dp_accounting import NeighboringRelation

    if relation == "replace":
        return NeighboringRelation.REPLACE_ONE
    return NeighboringRelation.ADD_OR_REMOVE_ONE


@contextlib.contextmanager
def _translated():
    """Turns an event that an accountant does not know into a ``PrivacyError``."""
    from dp_accounting import UnsupportedEventError

    try:
        yield
    except UnsupportedEventError as error:
        raise PrivacyError(f"the accountant has no bound here: {error}") from error


def _rdp_epsilon(parts: tuple, delta: float, relation: Relation) -> float:
    """Epsilon by RDP; a cap on a Poisson cohort is paid for in delta."""
    import dp_accounting as dp

    known, cut = [], 0.0
    for part, count in parts:
        match type(part).__name__:
            case "GaussianDpEvent" if relation == "replace":
                part = dp.GaussianDpEvent(part.noise_multiplier / 2)
            case "SampledWithoutReplacementDpEvent":
                noise = part.event.noise_multiplier
                part = dp.SampledWithoutReplacementDpEvent(
                    part.source_dataset_size,
                    part.sample_size,
                    dp.GaussianDpEvent(noise / 2 if relation == "replace" else noise),
                )
            case "TruncatedSubsampledGaussianDpEvent":
                # The cap matters only in a round that draws this client and a full
                # cohort of others.
                from scipy import stats

                rate = part.sampling_probability
                full = stats.binom.sf(
                    part.truncated_batch_size - 1, part.dataset_size - 1, rate
                )
                cut += count * rate * float(full)
                part = dp.PoissonSampledDpEvent(
                    rate, dp.GaussianDpEvent(part.noise_multiplier)
                )
        known.append((part, count))
    plain = _compose_rdp(tuple(known), relation)
    epsilon = float(plain.get_epsilon(delta))
    if cut == 0:
        return epsilon
    # P(S) <= e^eps Q(S) + delta' + max(1, e^eps) cut.
    for _ in range(100):
        left = delta - math.exp(min(epsilon, 700.0)) * cut
        if left <= delta / 1e3:
            break
        grown = float(plain.get_epsilon(left))
        if grown <= epsilon * (1 + 1e-12):
            return grown
        epsilon = grown * (1 + 1e-9)
    raise PrivacyError(
        "the RDP accountant knows no cap on a Poisson cohort, and this one cuts too "
        "often to be ignored: take accountant='pld', or a larger cap"
    )


@functools.lru_cache(maxsize=64)
def _compose_rdp(parts: tuple, relation: Relation) -> Any:
    from absl import logging
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(neighboring_relation=_relation(relation))
    level = logging.get_verbosity()
    # It warns of every order that it leaves out, which costs tightness alone.
    logging.set_verbosity(logging.ERROR)
    try:
        with _translated():
            for part, count in parts:
                accountant.compose(part, count)
    finally:
        logging.set_verbosity(level)
    return accountant


def calibrate(
    target_epsilon: float,
    delta: float,
    make_event: Callable[[float], Any],
    *,
    accountant: Accountant = "pld",
    relation: Relation = "add_or_remove",
    tolerance: float = 1e-4,
) -> float:
    """Returns the least noise multiplier whose epsilon is at most a target.

    Args:
      target_epsilon: above 0.
      delta: in (0, 1).
      make_event: noise multiplier -> event.
      accountant: "pld" or "rdp".
      relation: "add_or_remove" or "replace".
      tolerance: relative, on the safe side.

    Raises:
      PrivacyError: if no noise reaches the target.
    """
    if not 0 < target_epsilon < math.inf:
        raise PrivacyError(
            f"target_epsilon={target_epsilon}: must be a finite number above 0"
        )

    def cost(noise: float) -> float:
        try:
            return epsilon_of(
                make_event(noise), delta, accountant=accountant, relation=relation
            )
        except PrivacyError:
            if noise > 1e3 or not _capped_rdp(make_event(noise), accountant):
                raise
            return math.inf

    high = 1.0
    least = cost(high)
    while least > target_epsilon:
        high *= 2
        if high > MOST_NOISE:
            raise PrivacyError(
                f"no noise reaches epsilon {target_epsilon:g} at delta {delta:g} by "
                f"this accountant ({accountant}): ask for a larger epsilon or delta"
                + (", or take accountant='pld'" if accountant == "rdp" else "")
            )
        least = cost(high)
    low, most = high / 2, cost(high / 2)
    while most <= target_epsilon and low > 1e-3:
        high, least = low, most
        low, most = low / 2, cost(low / 2)
    while high - low > tolerance * high and most > target_epsilon:
        # Epsilon falls about as a power of the noise: a line through the logarithms,
        # kept off the ends, and a step to the side on which the answer must lie.
        share = 0.5
        if least > 0 and most < math.inf:
            share = math.log(most / target_epsilon) / math.log(most / least)
        guess = low * (high / low) ** min(max(share, 0.02), 0.98)
        guess = min(guess * (1 + tolerance / 3), high * (1 - tolerance / 3))
        found = cost(guess)
        if found > target_epsilon:
            low, most = guess, found
            continue
        high, least = guess, found
        below = max(guess * (1 - 0.9 * tolerance), low)
        found = cost(below)
        if found > target_epsilon:
            low, most = below, found
        else:
            high, least = below, found
    if most == math.inf and least < 0.99 * target_epsilon:
        # The search ended at what the accountant can bound, not at the target.
        epsilon_of(make_event(low), delta, accountant=accountant, relation=relation)
    return high


def _capped_rdp(event: Any, accountant: Accountant) -> bool:
    kinds = {type(part).__name__ for part in _parts(event)}
    return accountant == "rdp" and "TruncatedSubsampledGaussianDpEvent" in kinds


def epsilon_curve(
    make_event: Callable[[int], Any],
    rounds: int,
    delta: float,
    *,
    accountant: Accountant = "pld",
    relation: Relation = "add_or_remove",
    points: int = 25,
) -> list[tuple[int, float]]:
    """Returns (round, epsilon so far) along a run; epsilon never falls.

    Args:
      make_event: number of rounds -> event of all of them.
      rounds: of the run.
      delta: in (0, 1).
      accountant: "pld" or "rdp".
      relation: "add_or_remove" or "replace".
      points: about how many; the first and the last round are among them.
    """
    ends = [1 + i * (rounds - 1) / max(points - 1, 1) for i in range(points)]
    return [
        (n, epsilon_of(make_event(n), delta, accountant=accountant, relation=relation))
        for n in sorted({round(end) for end in ends})
    ]


class WorstClient(NamedTuple):
    """The client whose examples are protected least.

    Attributes:
      index: among the clients given.
      epsilon: of its examples.
      event: what was composed for them.
    """

    index: int
    epsilon: float
    event: Any


def worst_client(
    noise_multiplier: float,
    batch_size: int,
    examples: Iterable[int],
    steps: Iterable[int],
    rounds: int,
    *,
    settings: Any = None,
) -> WorstClient:
    """Finds the client with the largest example-level epsilon.

    Args:
      noise_multiplier: noise over the bound of one example's gradient.
      batch_size: expected examples of a batch.
      examples: of each client; a client without any is passed over.
      steps: local steps of each client in a round.
      rounds: in which a client takes part, at worst all of them.
      settings: delta and accountant; see ``Settings``.

    Raises:
      PrivacyError: if no client has an example and a step.
    """
    stated = Settings() if settings is None else settings
    first: dict[tuple[int, int], int] = {}
    for index, pair in enumerate(zip(examples, steps, strict=True)):
        if min(pair) > 0:
            first.setdefault((int(pair[0]), int(pair[1])), index)
    if not first:
        raise PrivacyError("no client has an example: there is nothing to account for")
    # More examples at no more steps never cost more.
    front: list[tuple[int, int]] = []
    for size, count in sorted(first, key=lambda pair: (pair[0], -pair[1])):
        if not front or count > front[-1][1]:
            front.append((size, count))

    def cost(pair: tuple[int, int], accountant: Accountant) -> float:
        event = example_level_event(noise_multiplier, batch_size, *pair, rounds)
        return epsilon_of(event, stated.delta, accountant=accountant)

    if len(front) > 3:
        front = sorted(front, key=lambda pair: -cost(pair, "rdp"))[:3]
    worst = max(front, key=lambda pair: cost(pair, stated.accountant))
    return WorstClient(
        first[worst],
        cost(worst, stated.accountant),
        example_level_event(noise_multiplier, batch_size, *worst, rounds),
    )


def delta_warning(delta: float, units: int, *, unit: str = "client") -> str | None:
    """Returns what to say of a delta that protects nobody; None for a sound one.

    Args:
      delta: of the guarantee.
      units: clients, or examples of a client.
      unit: what they are.
    """
    if delta < 1 / units:
        return None
    return (
        f"delta={delta:g} is 1/n or more for {units:,} {unit}s: a mechanism that "
        f"publishes one {unit} whole would satisfy it; take less than {1 / units:.2g}"
    )


def split_noise(noise_multiplier: float, side_multiplier: float | None) -> float:
    """Returns the multiplier of the messages' noise beside the noised clip bits.

    Andrew et al., 2021: both releases together cost what one of ``noise_multiplier``
    does, ``z_delta = (z**-2 - (2 sigma_b)**-2)**(-1/2)``.

    Args:
      noise_multiplier: z, of both together.
      side_multiplier: ``2 sigma_b``, or None where nothing else is released.

    Raises:
      PrivacyError: if the bits alone cost as much.
    """
    if side_multiplier is None:
        return noise_multiplier
    if noise_multiplier >= side_multiplier:
        raise PrivacyError(
            f"noise_multiplier={noise_multiplier:g} leaves nothing for the message: "
            "the bits of adaptive clipping are noised by "
            f"2 * bit_noise={side_multiplier:g}: give bit_noise above "
            f"{noise_multiplier / 2:g}"
        )
    return (noise_multiplier**-2 - side_multiplier**-2) ** -0.5


@dataclasses.dataclass(frozen=True)
class Accounting:
    """A mechanism's ``event``, and what else there is to say of its guarantee.

    Attributes:
      noise_multiplier: noise over the bound of a message, or the target to reach.
      noise: what noise, in words.
      adversary: against whom, in words.
      make_event: ``(noise_multiplier, sampling, rounds) -> event``.
      relation: sampling -> relation.
      sampler: sampling -> words.
    """

    noise_multiplier: float | Target
    noise: str
    adversary: str
    make_event: Callable[[float, Any, int], Any] = sampled_event
    relation: Callable[[Any], Relation] = sampled_relation
    sampler: Callable[[Any], str] = describe_sampling

    def multiplier(self, sampling: Any) -> float:
        """Returns the noise multiplier, calibrated where a target stands for it."""
        if not isinstance(self.noise_multiplier, Target):
            return self.noise_multiplier
        return _calibrated(
            self.noise_multiplier,
            sampling,
            self.make_event,
            self.relation(sampling),
        )

    def __call__(self, message: Any, sampling: Any, rounds: int) -> Any:
        """Returns the event of that many rounds."""
        split_noise(self.multiplier(sampling), message.side_multiplier)
        return self.make_event(self.multiplier(sampling), sampling, rounds)

    def guarantee(self, message: Any, sampling: Any, rounds: int) -> Guarantee:
        """Returns the guarantee after that many rounds."""
        return Guarantee(
            unit="client",
            relation=self.relation(sampling),
            sampler=self.sampler(sampling),
            noise=self.noise,
            adversary=self.adversary,
            event=self(message, sampling, rounds),
        )


@functools.lru_cache(maxsize=256)
def _calibrated(target: Target, sampling: Any, make_event, relation: Relation) -> float:
    whole = make_event(1.0, sampling, target.rounds)
    return calibrate(
        target.epsilon,
        target.delta,
        lambda noise: make_event(noise, sampling, target.rounds),
        accountant=usable_accountant(whole, target.accountant),
        relation=relation,
    )


def usable_accountant(event: Any, wanted: Accountant) -> Accountant:
    """Returns the accountant that has a bound for an event: RDP alone for fixed size.

    Args:
      event: of any number of rounds.
      wanted: "pld" or "rdp".
    """
    kinds = {type(part).__name__ for part in _parts(event)}
    return "rdp" if "SampledWithoutReplacementDpEvent" in kinds else wanted


def check_multiplier(name: str, noise_multiplier: float | Target):
    """Refuses a noise multiplier that is no finite number above 0."""
    if isinstance(noise_multiplier, Target):
        return
    if not 0 < noise_multiplier < math.inf:
        raise ValueError(
            f"{name}: noise_multiplier must be finite and above 0, not "
            f"{noise_multiplier}"
        )
