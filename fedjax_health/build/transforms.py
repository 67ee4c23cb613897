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
    return custom_entry(entry, ClientTransform, path=path)
