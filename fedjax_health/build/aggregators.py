"""A configuration becomes the rule of a round and the mixings before it."""

from typing import Any

from fedjax_health import aggregators, config
from fedjax_health.build.custom import custom_entry
from fedjax_health.config import Config, ConfigError
from fedjax_health.core.types import Aggregator, Mixing


def build_aggregator(settings: Config) -> Aggregator:
    """Returns the rule, behind its mixings where there are any.

    Raises:
      ConfigError: for numbers that the rule refuses.
    """
    rule = _told(_rule, settings.aggregator, path="aggregator")
    mixings = [
        _told(_mixing, entry, path=f"mixings.{i}")
        for i, entry in enumerate(settings.mixings)
    ]
    return aggregators.pipeline(*mixings, rule) if mixings else rule


def _told(make, entry: Any, *, path: str):
    try:
        return make(entry, path)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config: {path}: {error}") from error


def _rule(entry: Any, path: str) -> Aggregator:
    match entry:
        case config.Mean():
            return aggregators.mean()
        case config.Median():
            return aggregators.median()
        case config.TrimmedMean():
            return aggregators.trimmed_mean(entry.num_malicious)
        case config.MeanAroundMedian():
            return aggregators.mean_around_median(entry.num_malicious)
        case config.Krum():
            return aggregators.krum(entry.num_malicious, neighbors=entry.neighbors)
        case config.MultiKrum():
            return aggregators.multi_krum(
                entry.num_malicious, keep=entry.keep, neighbors=entry.neighbors
            )
        case config.Bulyan():
            return aggregators.bulyan(entry.num_malicious)
        case config.Mda():
            return aggregators.mda(entry.num_malicious)
        case config.Smea():
            return aggregators.smea(entry.num_malicious)
        case config.Caf():
            return aggregators.caf(entry.num_malicious)
        case config.GeometricMedian():
            return aggregators.geometric_median(
                steps=entry.steps, smoothing=entry.smoothing
            )
        case config.CenteredClip():
            return aggregators.centered_clip(radius=entry.radius, steps=entry.steps)
        case config.Monna():
            return aggregators.monna(entry.num_malicious, trusted=entry.trusted)
        case config.Cge():
            return aggregators.cge(entry.num_malicious)
        case config.SignMajority():
            return aggregators.sign_majority()
        case config.RobustLearningRate():
            return aggregators.robust_learning_rate(threshold=entry.threshold)
        case config.Dnc():
            return aggregators.dnc(
                entry.num_malicious,
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
    return custom_entry(entry, Aggregator, path=path)


def _mixing(entry: Any, path: str) -> Mixing:
    match entry:
        case config.Nnm():
            return aggregators.nnm(entry.num_malicious)
        case config.Bucketing():
            return aggregators.bucketing(entry.size)
        case config.ClipNorms():
            return aggregators.clip_norms(entry.max_norm)
        case config.Arc():
            return aggregators.arc(entry.num_malicious)
    return custom_entry(entry, Mixing, path=path)
