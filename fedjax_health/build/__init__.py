"""A configuration becomes data, model, loss, plan and algorithm.

Names are imported on first use: loading and checking data does not wait for jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_health.build.algorithm import (
        Built,
        build,
        build_mesh,
        build_sampling,
        initial_params,
        malicious_clients,
    )
    from fedjax_health.build.attacks import trigger_of
    from fedjax_health.build.detector import build_cut, build_loss, build_model
    from fedjax_health.build.leaks import find_leaks, guess_columns
    from fedjax_health.build.plan import build_plan
    from fedjax_health.build.prepared import Prepared, prepare
    from fedjax_health.build.sources import (
        build_dataset,
        build_evaluation_dataset,
        check_evaluation_files,
        check_files,
        data_files,
        name_files,
        warn_of_repeats,
    )
    from fedjax_health.build.split import split_of

__all__ = [
    "Built",
    "Prepared",
    "build",
    "build_cut",
    "build_dataset",
    "build_evaluation_dataset",
    "build_loss",
    "build_mesh",
    "build_model",
    "build_plan",
    "build_sampling",
    "check_evaluation_files",
    "check_files",
    "data_files",
    "find_leaks",
    "guess_columns",
    "initial_params",
    "malicious_clients",
    "name_files",
    "prepare",
    "split_of",
    "trigger_of",
    "warn_of_repeats",
]

_HOMES = {
    "Built": "algorithm",
    "Prepared": "prepared",
    "build": "algorithm",
    "build_cut": "detector",
    "build_dataset": "sources",
    "build_evaluation_dataset": "sources",
    "build_loss": "detector",
    "build_mesh": "algorithm",
    "build_model": "detector",
    "build_plan": "plan",
    "build_sampling": "algorithm",
    "check_evaluation_files": "sources",
    "check_files": "sources",
    "data_files": "sources",
    "find_leaks": "leaks",
    "guess_columns": "leaks",
    "initial_params": "algorithm",
    "malicious_clients": "algorithm",
    "name_files": "sources",
    "prepare": "prepared",
    "split_of": "split",
    "trigger_of": "attacks",
    "warn_of_repeats": "sources",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
