"""HospitalSim: the embedded generator of hospital traffic, records and attacks.

``SimSettings`` and ``PRESETS`` import nothing heavy; the rest is loaded on first use,
so that a command line can list presets without importing jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fedjax_health.data.hospital_sim.settings import PRESETS, VERSION, SimSettings

if TYPE_CHECKING:
    from fedjax_health.data.hospital_sim.dataset import (
        HospitalRows,
        build_plan,
        generate,
        generate_hospital,
        generate_hospital_rows,
    )
    from fedjax_health.data.hospital_sim.report import OracleRow, oracle_report
    from fedjax_health.data.hospital_sim.writing import (
        META_COLUMNS,
        hospital_frame,
        write,
    )

__all__ = [
    "META_COLUMNS",
    "PRESETS",
    "VERSION",
    "HospitalRows",
    "OracleRow",
    "SimSettings",
    "build_plan",
    "generate",
    "generate_hospital",
    "generate_hospital_rows",
    "hospital_frame",
    "oracle_report",
    "write",
]

_HOMES = {
    "META_COLUMNS": "writing",
    "HospitalRows": "dataset",
    "OracleRow": "report",
    "build_plan": "dataset",
    "generate": "dataset",
    "generate_hospital": "dataset",
    "generate_hospital_rows": "dataset",
    "hospital_frame": "writing",
    "oracle_report": "report",
    "write": "writing",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
