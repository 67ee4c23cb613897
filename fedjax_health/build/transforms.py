"""Entries of ``transforms`` become client transforms."""

from typing import Any

from fedjax_health import config, transforms
from fedjax_health.build.custom import custom_entry
from fedjax_health.core.types import ClientTransform


def build_transform(entry: Any, *, path: str) -> ClientTransform:
    """Returns the transform that an entry stands for.

    Args:
      entry: the record.
      path: of the entry in the configuration, for messages.
    """
    match entry:
        case config.Identity():
            return transforms.identity()
        case config.ClipL2():
            return transforms.clip_l2(entry.max_norm)
    return custom_entry(entry, ClientTransform, path=path)
