"""A configuration becomes the rule of a round and the mixings before it."""

from typing import Any

from fedjax_health import aggregators, config, secagg
from fedjax_health.build.custom import custom_entry
from fedjax_health.config import Config, ConfigError
from fedjax_health.core.types import Aggregator, Mixing


def build_aggregator(settings: Config, *, assumed: int = 0) -> Aggregator:
    """Returns the rule, behind its mixings where there are any.

    Args:
      settings: the configuration.
      assumed: clients of a cohort that are taken to be malicious by rules and mixings
        that do not say so themselves.

    Raises:
      ConfigError: for numbers that the rule refuses.
    """
    rule = _told(_rule, settings.aggregator, assumed, path="aggregator")
    if rule.secure is not None and settings.mixings:
        raise ConfigError(
            "config: mixings: secure aggregation shows sums of messages, which no "
            "mixing can look into: leave mixings out"
        )
    mixings = [
        _told(_mixing, entry, assumed, path=f"mixings.{i}")
        for i, entry in enumerate(settings.mixings)
    ]
    return aggregators.pipeline(*mixings, rule) if mixings else rule


def _told(make, entry: Any, assumed: int, *, path: str):
    named = getattr(entry, "num_malicious", None)
    try:
        return make(entry, assumed if named is None else named, path)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config: {path}: {error}") from error


def _rule(entry: Any, f: int, path: str) -> Aggregator:
    match entry:
        case config.Mean():
            return aggregators.mean()
        case config.Median():
            return aggregators.median()
        case config.TrimmedMean():
            return aggregators.trimmed_mean(f)
        case config.MeanAroundMedian():
            return aggregators.mean_around_median(f)
        case config.Krum():
            return aggregators.krum(f, neighbors=entry.neighbors)
        case config.MultiKrum():
            return aggregators.multi_krum(f, keep=entry.keep, neighbors=entry.neighbors)
        case config.Bulyan():
            return aggregators.bulyan(f)
        case config.Mda():
            return aggregators.mda(f)
        case config.Smea():
            return aggregators.smea(f)
        case config.Caf():
            return aggregators.caf(f)
        case config.GeometricMedian():
            return aggregators.geometric_median(
                steps=entry.steps, smoothing=entry.smoothing
            )
        case config.CenteredClip():
            return aggregators.centered_clip(radius=entry.radius, steps=entry.steps)
        case config.Monna():
            return aggregators.monna(f, trusted=entry.trusted)
        case config.Cge():
            return aggregators.cge(f)
        case config.SignMajority():
            return aggregators.sign_majority()
        case config.RobustLearningRate():
            return aggregators.robust_learning_rate(threshold=entry.threshold)
        case config.Dnc():
            return aggregators.dnc(
                f,
                iterations=entry.iterations,
                subdimension=entry.subdimension,
                fraction=entry.fraction,
            )
        case config.FlTrust():
            return aggregators.fltrust()
        case config.FoolsGold():
            return aggregators.foolsgold(population=entry.population)
        case config.Flame():
            return aggregators.flame(noise=entry.noise)
        case config.SignGuard():
            return aggregators.signguard(low=entry.low, high=entry.high)
        case config.SecureMean():
            return secagg.secure_mean(
                bits=entry.bits,
                value_range=entry.value_range,
                max_weight=entry.max_weight,
                fidelity=entry.fidelity,
                threshold=entry.threshold,
                degree=entry.degree,
                corrupt=entry.corrupt,
                dropout=entry.dropout,
            )
        case config.GroupedSecure():
            named = getattr(entry.rule, "num_malicious", None)
            return secagg.grouped_secure(
                entry.group_size,
                _rule(entry.rule, f if named is None else named, f"{path}.rule"),
                bits=entry.bits,
                value_range=entry.value_range,
                max_weight=entry.max_weight,
                fidelity=entry.fidelity,
                min_group=entry.min_group,
                population=entry.population,
                malicious=entry.malicious,
                degree=entry.degree,
                corrupt=entry.corrupt,
                dropout=entry.dropout,
            )
    return custom_entry(entry, Aggregator, path=path)


def _mixing(entry: Any, f: int, path: str) -> Mixing:
    match entry:
        case config.Nnm():
            return aggregators.nnm(f)
        case config.Bucketing():
            return aggregators.bucketing(entry.size)
        case config.ClipNorms():
            return aggregators.clip_norms(entry.max_norm)
        case config.Arc():
            return aggregators.arc(f)
    return custom_entry(entry, Mixing, path=path)
