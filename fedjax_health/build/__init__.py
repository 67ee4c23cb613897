"""A configuration becomes data, model, loss, plan and algorithm."""

from fedjax_health.build.algorithm import (
    Built,
    build,
    build_mesh,
    build_sampling,
    initial_params,
    malicious_clients,
)
from fedjax_health.build.detector import build_loss, build_model
from fedjax_health.build.plan import build_plan
from fedjax_health.build.prepare import Prepared, prepare
from fedjax_health.build.sources import (
    build_dataset,
    build_evaluation_dataset,
    data_files,
)

__all__ = [
    "Built",
    "Prepared",
    "build",
    "build_dataset",
    "build_evaluation_dataset",
    "build_loss",
    "build_mesh",
    "build_model",
    "build_plan",
    "build_sampling",
    "data_files",
    "initial_params",
    "malicious_clients",
    "prepare",
]
