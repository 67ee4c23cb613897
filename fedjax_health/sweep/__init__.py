"""Many runs of one configuration, varied along axes, and one table of what they gave.

Names are imported on first use: a sweep is read and checked without jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_health.sweep.results import results_table
    from fedjax_health.sweep.run import resume_sweep, run_sweep
    from fedjax_health.sweep.select import best_worst

__all__ = ["best_worst", "results_table", "resume_sweep", "run_sweep"]

_HOMES = {
    "best_worst": "select",
    "results_table": "results",
    "resume_sweep": "run",
    "run_sweep": "run",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
