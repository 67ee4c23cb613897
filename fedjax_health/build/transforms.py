"""Entries of ``transforms`` become client transforms."""

from typing import Any

from fedjax_health import config, transforms
from fedjax_health.build.custom import custom_entry
from fedjax_health.core.types import ClientTransform


def build_transform(entry: Any, *, path: str, cohort: int = 1) -> ClientTransform:
    """Returns the transform that an entry stands for.

    Args:
      entry: the record.
      path: of the entry in the configuration, for messages.
      cohort: expected clients of a round.
    """
    match entry:
        case config.Identity():
            return transforms.identity()
        case config.ClipL2():
            return transforms.clip_l2(entry.max_norm)
        case config.ClipPerLeaf():
            return transforms.clip_per_leaf(entry.max_norm)
        case config.AdaptiveClip():
            try:
                return transforms.adaptive_clip(
                    entry.initial,
                    entry.quantile,
                    entry.learning_rate,
                    entry.bit_noise,
                    cohort=cohort,
                )
            except ValueError as error:
                raise config.ConfigError(f"config: {path}: {error}") from error
        case config.LocalMomentum():
            return transforms.local_momentum(entry.beta)
        case config.ErrorFeedback():
            inner = build_transform(entry.inner, path=f"{path}.inner", cohort=cohort)
            return transforms.error_feedback(inner)
        case config.Ef21():
            inner = build_transform(entry.inner, path=f"{path}.inner", cohort=cohort)
            return transforms.ef21(inner, participation=entry.participation)
    return _compressor(entry) or custom_entry(entry, ClientTransform, path=path)


def _compressor(entry: Any) -> ClientTransform | None:
    match entry:
        case config.TopK():
            return transforms.top_k(entry.keep)
        case config.RandomK():
            return transforms.random_k(
                entry.keep, shared=entry.shared, unbiased=entry.unbiased
            )
        case config.Threshold():
            return transforms.threshold(entry.value)
        case config.Sign():
            return transforms.sign(per_leaf=entry.per_leaf)
        case config.Qsgd():
            return transforms.qsgd(entry.levels, bucket=entry.bucket)
        case config.TernGrad():
            return transforms.terngrad()
        case config.Drive():
            return transforms.drive(unbiased=entry.unbiased)
        case config.Eden():
            return transforms.eden(entry.bits)
    return None
