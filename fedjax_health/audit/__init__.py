"""What a finished run leaks: membership, canaries and inverted messages, measured.

Names are imported on first use: parsing a command line does not wait for jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_health.audit.bound import EpsilonBound, epsilon_bound
    from fedjax_health.audit.run import Options, audit

__all__ = ["EpsilonBound", "Options", "audit", "epsilon_bound"]

_HOMES = {
    "EpsilonBound": "bound",
    "Options": "run",
    "audit": "run",
    "epsilon_bound": "bound",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
