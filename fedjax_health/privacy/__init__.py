"""Differential privacy: mechanisms, and what they cost.

Names are imported on first use: accounting needs no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_health.privacy.banded import banded_mf
    from fedjax_health.privacy.central import central_gaussian
    from fedjax_health.privacy.distributed import (
        distributed_discrete_gaussian,
        distributed_skellam,
    )
    from fedjax_health.privacy.local import local_gaussian
    from fedjax_health.privacy.tree import tree_aggregation

__all__ = [
    "banded_mf",
    "central_gaussian",
    "distributed_discrete_gaussian",
    "distributed_skellam",
    "local_gaussian",
    "tree_aggregation",
]

_HOMES = {
    "banded_mf": "banded",
    "central_gaussian": "central",
    "distributed_discrete_gaussian": "distributed",
    "distributed_skellam": "distributed",
    "local_gaussian": "local",
    "tree_aggregation": "tree",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
