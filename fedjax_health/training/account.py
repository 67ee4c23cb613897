"""What a run costs: the bytes on the wire, and the privacy that is spent."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_health.build.algorithm import Built
from fedjax_health.config import Config, Local, WindowContrast, WireNoise
from fedjax_health.data.sampling import device_sizes
from fedjax_health.data.store import ClientStore
from fedjax_health.privacy import ledger
from fedjax_health.privacy.accounting import Settings, delta_warning, worst_client
from fedjax_health.privacy.wire import wire_epsilon

SEEDED = (
    "privacy: a simulation with a known seed: whoever has the seed can take the noise "
    "off again, so that this run protects nobody"
)

# Loss distributions take some tenths of a second each: in a run of many short segments
# they would outweigh the training.
MOST_EPSILONS = 100


class Traffic(NamedTuple):
    """Bytes of all rounds so far.

    Attributes:
      uplink: from the clients to the server.
      downlink: from the server to the clients.
    """

    uplink: int = 0
    downlink: int = 0


def add_bytes(
    lines: Sequence[dict[str, Any]], built: Built, before: Traffic
) -> Traffic:
    """Writes the bytes of each round into its line.

    ``uplink_bytes`` is what the phases of a secure sum counted, or what a coder
    measured, to the nearest byte of a float32 (in steps of 2 bytes above 16.7 MB, of 4
    above 33.5 MB and so on), or else the bytes of one message times the messages that
    were delivered, unusable ones included. Every client that was drawn has received the
    model, those that then dropped out too; what a secure sum's phases send down comes
    on top.

    Args:
      lines: of the rounds, in order; changed in place.
      built: what was trained.
      before: bytes of the rounds before.

    Returns:
      Bytes of all rounds, these included.
    """
    message, downlink = built.algorithm.message, built.algorithm.downlink_bytes
    for line in lines:
        messages = _messages(line)
        measured = line.get("uplink_bytes")
        up = messages * message.uplink_bytes()
        if measured is not None and math.isfinite(measured):
            up = round(measured)
        up = _of_phases(line, "up") or up
        down = (messages + line.get("dropped", 0)) * downlink
        down += _of_phases(line, "down")
        before = Traffic(before.uplink + up, before.downlink + down)
        line |= {
            "uplink_bytes": up,
            "downlink_bytes": down,
            "uplink_bytes_total": before.uplink,
            "downlink_bytes_total": before.downlink,
        }
    return before


def traffic_of(lines: Sequence[Mapping[str, Any]], built: Built) -> Traffic:
    """Returns the bytes of the rounds whose lines are kept.

    Args:
      lines: of the rounds from the first on; those of an earlier version say nothing
        of bytes.
      built: what was trained.
    """
    if not lines:
        return Traffic()
    last = lines[-1]
    if "uplink_bytes_total" in last and "downlink_bytes_total" in last:
        return Traffic(last["uplink_bytes_total"], last["downlink_bytes_total"])
    return add_bytes([dict(line) for line in lines], built, Traffic())


def communication(lines: Sequence[Mapping[str, Any]], built: Built) -> dict[str, Any]:
    """Returns what went over the wire in a whole run.

    Args:
      lines: of all rounds.
      built: what was trained.

    Returns:
      Bytes of all rounds both ways; those of a client that sends its message, on
      average, and of the same message uncompressed; and their ratio. Of a split model
      also what crossed the cut, beside the messages.
    """
    total = traffic_of(lines, built)
    messages = sum(map(_messages, lines))
    mean = total.uplink / messages if messages else 0.0
    # What goes down is a whole model, and what the local algorithm sends beside it.
    dense = built.algorithm.downlink_bytes
    across = {
        f"{name}_total": int(sum(line[name] for line in lines))
        for name in ("wire_up_bytes", "wire_down_bytes")
        if lines and name in lines[0]
    }
    return {
        "uplink_bytes_total": total.uplink,
        "downlink_bytes_total": total.downlink,
        "uplink_bytes_per_client_round": mean,
        "dense_bytes": dense,
        "share_of_dense": mean / dense if dense else 0.0,
        **across,
    }


def works_on_messages(config: Config, built: Built) -> bool:
    """Returns whether a run does anything to its messages worth telling bytes for."""
    return bool(
        config.transforms
        or built.plan.mechanism is not None
        or built.plan.aggregator.secure is not None
    )


def epsilon_after(config: Config, built: Built, rounds: int) -> float | None:
    """Returns the epsilon of the first rounds, aborted ones included.

    Args:
      config: the configuration.
      built: what was built from it.
      rounds: done so far, those before a resume included.

    Returns:
      Epsilon at the configuration's delta; None without a mechanism.
    """
    mechanism = built.plan.mechanism
    if mechanism is None:
        return None
    message = built.algorithm.message
    return ledger.epsilon_after(
        mechanism, message, built.sampling, rounds, _settings(config)
    )


def rounds_between_epsilons(rounds: int, segment: int) -> int:
    """Returns after how many rounds epsilon is stated: a multiple of a segment.

    Args:
      rounds: of the whole run.
      segment: rounds between evaluations or checkpoints.
    """
    return segment * -(-rounds // (segment * MOST_EPSILONS))


def guarantee(config: Config, built: Built, rounds: int) -> dict[str, Any] | None:
    """Returns what is protected, against whom, how much and over how long.

    Args:
      config: the configuration.
      built: what was built from it.
      rounds: to account for.

    Returns:
      As ``ledger.describe`` does; None without a mechanism.
    """
    mechanism = built.plan.mechanism
    if mechanism is None:
        return None
    message = built.algorithm.message
    return ledger.describe(
        mechanism, message, built.sampling, rounds, _settings(config)
    )


def privacy_of_run(
    config: Config, built: Built, *, rounds: int, best_round: int
) -> dict[str, Any] | None:
    """Returns the guarantee of a finished run.

    The model that is kept was chosen among those of all rounds, so that epsilon is that
    of all rounds; that of the chosen one's round stands beside it.

    Args:
      config: the configuration.
      built: what was built from it.
      rounds: that were run.
      best_round: whose model is kept.
    """
    told = guarantee(config, built, rounds)
    if told is None:
        return None
    return {
        **told,
        "clients": built.sampling.population,
        "best_round": best_round,
        "epsilon_at_best_round": epsilon_after(config, built, best_round),
    }


def wire_privacy(
    config: Config, store: ClientStore, rounds: int
) -> dict[str, Any] | None:
    """Returns what the noise on a wire hides of one example from the server.

    As if the client whose examples cross most often took part in every round.

    Args:
      config: the configuration.
      store: the clients' training examples.
      rounds: to account for.

    Returns:
      Names and values as ``ledger.describe`` has them; None without split learning.
    """
    split = config.split_learning
    if split is None:
        return None
    local, settings = config.local, _settings(config)
    crossings = _most_visits(local, store) * rounds
    activations = _noise_on(split.activations)
    directions = [activations]
    comparing = config.alignment is not None or isinstance(
        config.temporal, WindowContrast
    )
    if split.labels == "client":
        directions.append(0.0 if comparing else _noise_on(split.cotangents))

    def bound(multipliers: list[float]) -> float | None:
        epsilon = wire_epsilon(
            multipliers, crossings, settings.delta, accountant=settings.accountant
        )
        return epsilon if math.isfinite(epsilon) else None

    missing = ["what the clients' half of the model learns of an example"]
    if split.labels == "server":
        missing.append("labels, which cross as they are")
    elif directions[1] == 0:
        missing.append(
            "the cotangents that return to the server, which carry no noise that "
            "bounds what they say of a label"
        )
    return {
        "unit": "example on the wire",
        "relation": "zero-out: each message of the example becomes the zero message",
        "protected_against": "the server, which sees what crosses the cut",
        "crossings": crossings,
        "rounds": rounds,
        "epsilon": bound(directions),
        "epsilon_activations": bound([activations]),
        "delta": settings.delta,
        "noise_multiplier": activations,
        "accountant": settings.accountant,
        "not_covered": missing,
    }


def _most_visits(local: Local, store: ClientStore) -> int:
    """Returns how often the example that a round visits most is trained on in it."""
    sizes = np.diff(store.offsets)
    largest = sizes
    if local.device_steps is not None:
        devices = device_sizes(store)
        counts = np.diff(devices.offsets)
        sizes = devices.sizes
        # Each client has examples, and so a device.
        largest = np.repeat(np.maximum.reduceat(sizes, devices.offsets[:-1]), counts)
    steps = -(-largest // local.batch_size) * (local.epochs or 0)
    if local.steps is not None:
        steps = np.full(len(sizes), local.steps)
    return int(np.max(-(-steps // np.maximum(-(-sizes // local.batch_size), 1))))


def _noise_on(steps: Sequence[Any]) -> float:
    """Returns the multiplier of the noise among the steps of a wire; 0 for none."""
    found = [step.multiplier for step in steps if isinstance(step, WireNoise)]
    return found[0] if found else 0.0


def example_privacy(
    config: Config, store: ClientStore, rounds: int
) -> dict[str, Any] | None:
    """Returns what DP-SGD inside the clients protects.

    The figure is that of the client whose examples are protected least, as if it took
    part in every round: how often it does is not counted in its favour.

    Args:
      config: the configuration.
      store: the clients' training examples.
      rounds: to account for.

    Returns:
      Names and values as ``ledger.describe`` has them; None without DP-SGD.
    """
    local = config.local
    chosen = local.example_privacy
    if chosen is None:
        return None
    sizes = np.diff(store.offsets)
    steps = -(-sizes // local.batch_size) * (local.epochs or 0)
    if local.steps is not None:
        steps = np.where(sizes > 0, local.steps, 0)
    settings = _settings(config)
    worst = worst_client(
        chosen.noise_multiplier,
        local.batch_size,
        sizes.tolist(),
        steps.tolist(),
        rounds,
        settings=settings,
    )
    size = int(sizes[worst.index])
    names = store.client_names
    told = delta_warning(settings.delta, size, unit="example")
    return {
        "unit": "example",
        "relation": "add or remove one: an example is there or is not",
        "sampler": (
            f"Poisson inside each client, {local.batch_size:,} examples expected in a "
            f"batch, {int(steps[worst.index]):,} steps a round, every round"
        ),
        "rounds": rounds,
        "epsilon": worst.epsilon,
        "delta": settings.delta,
        "accountant": settings.accountant,
        "noise": "float32 Gaussian on each step's gradient: simulation-grade noise",
        "noise_multiplier": chosen.noise_multiplier,
        "protected_against": "whoever sees the messages of the client, the server too",
        "least_protected": str(names[worst.index]) if names else str(worst.index),
        "examples_of_least_protected": size,
        "not_covered": [
            "other examples of the same person or device: each counts by itself",
            *ledger.NOT_COVERED,
        ],
        "warnings": [] if told is None else [told],
    }


def privacy_messages(config: Config, built: Built, store: ClientStore) -> list[str]:
    """Returns what a person should know of a run's privacy before it starts.

    Args:
      config: the configuration.
      built: what was built from it.
      store: the clients' training examples.

    Raises:
      PrivacyError: if the noise cannot be accounted for.
    """
    found = (
        guarantee(config, built, config.rounds),
        example_privacy(config, store, config.rounds),
    )
    said = []
    for told in found:
        if told is None:
            continue
        noise, unit = told["noise"], f"one {told['unit']}"
        if "least_protected" in told:
            unit += f" of {told['least_protected']}, which is protected least,"
        said.append(
            f"privacy: epsilon {told['epsilon']:.3g} at delta {told['delta']:g} for "
            f"{unit} after {config.rounds:,} rounds, by {told['accountant']}"
        )
        if "simulation-grade" in noise:
            said.append(f"warning: {noise}")
        said += [f"warning: {text}" for text in told["warnings"]]
    return [*said, SEEDED] if said else []


def aborted_rounds(
    metrics: Mapping[str, np.ndarray], first: int, built: Built
) -> list[str]:
    """Returns one sentence for each round whose sum was not released.

    Args:
      metrics: of a segment; ``aborted [rounds]`` is absent without a secure sum.
      first: rounds done before the segment.
      built: what is trained.
    """
    message = built.algorithm.message
    sentences = []
    for i, aborted in enumerate(metrics.get("aborted", ())):
        if not aborted:
            continue
        count, least = int(metrics["num_clients"][i]), message.min_messages
        messages = f"{count} message{'' if count == 1 else 's'}"
        why = f"{messages}, fewer than the threshold {least}: the sum was"
        if message.groups > 1:
            why = (
                f"{messages}, in each of the {message.groups} groups fewer than the "
                f"threshold {least}: no sum was"
            )
        sentences.append(
            f"round {first + i + 1}: {why} not released; the next cohort goes on"
        )
    return sentences


def _settings(config: Config) -> Any:
    return Settings() if config.privacy is None else config.privacy


def _of_phases(line: Mapping[str, Any], direction: str) -> int:
    """Returns the bytes that the protocol of a secure sum sent; 0 where none was."""
    prefix = f"secagg_bytes_{direction}_"
    return round(sum(v for name, v in line.items() if name.startswith(prefix)))


def _messages(line: Mapping[str, Any]) -> int:
    return line.get("num_clients", 0) + line.get("non_finite", 0)
