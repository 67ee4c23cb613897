"""fedjax_health: federated learning for healthcare cyber-security, simulated in JAX.

Names are imported on first use, so that ``import fedjax_health`` and the command's
help do not wait for jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "aggregators": "fedjax_health.aggregators",
    "attacks": "fedjax_health.attacks",
    "data": "fedjax_health.data",
    "losses": "fedjax_health.losses",
    "metrics": "fedjax_health.metrics",
    "models": "fedjax_health.models",
    "privacy": "fedjax_health.privacy",
    "secagg": "fedjax_health.secagg",
    "transforms": "fedjax_health.transforms",
    "CompositionError": "fedjax_health.core.message",
    "Message": "fedjax_health.core.message",
    "Stream": "fedjax_health.core.rng",
    "key_for": "fedjax_health.core.rng",
    "root_key": "fedjax_health.core.rng",
    "AggregationContext": "fedjax_health.core.types",
    "Aggregator": "fedjax_health.core.types",
    "AttackContext": "fedjax_health.core.types",
    "BoundMechanism": "fedjax_health.core.types",
    "ClientBatches": "fedjax_health.core.types",
    "ClientContext": "fedjax_health.core.types",
    "ClientTransform": "fedjax_health.core.types",
    "Cohort": "fedjax_health.core.types",
    "Detection": "fedjax_health.core.types",
    "DataAttack": "fedjax_health.core.types",
    "DataAttackContext": "fedjax_health.core.types",
    "Defence": "fedjax_health.core.types",
    "Examples": "fedjax_health.core.types",
    "FederatedAlgorithm": "fedjax_health.core.types",
    "InputLayout": "fedjax_health.core.types",
    "LossFn": "fedjax_health.core.types",
    "Codec": "fedjax_health.core.types",
    "Gathered": "fedjax_health.core.types",
    "Mechanism": "fedjax_health.core.types",
    "Secure": "fedjax_health.core.types",
    "Mixing": "fedjax_health.core.types",
    "Model": "fedjax_health.core.types",
    "ModalityColumns": "fedjax_health.core.types",
    "RoundState": "fedjax_health.core.types",
    "Sampling": "fedjax_health.core.types",
    "UpdateAttack": "fedjax_health.core.types",
    "LocalAlgorithm": "fedjax_health.client",
    "LocalContext": "fedjax_health.client",
    "LocalResult": "fedjax_health.client",
    "ditto": "fedjax_health.client",
    "fedavg": "fedjax_health.client",
    "fedprox": "fedjax_health.client",
    "scaffold": "fedjax_health.client",
    "ClientStore": "fedjax_health.data.store",
    "build_cohort_fn": "fedjax_health.data.sampling",
    "DataError": "fedjax_health.data.schema",
    "Dataset": "fedjax_health.data.schema",
    "CheckpointError": "fedjax_health.engine.checkpoint",
    "DeviceAveraging": "fedjax_health.engine.hierarchy",
    "DpSgd": "fedjax_health.engine.plan",
    "LocalTraining": "fedjax_health.engine.plan",
    "NonFiniteLossError": "fedjax_health.engine.run",
    "Optimizer": "fedjax_health.engine.plan",
    "RoundPlan": "fedjax_health.engine.plan",
    "Schedule": "fedjax_health.engine.plan",
    "build_algorithm": "fedjax_health.engine.algorithm",
    "client_params": "fedjax_health.engine.algorithm",
    "cosine_schedule": "fedjax_health.engine.plan",
    "exponential_schedule": "fedjax_health.engine.plan",
    "Parts": "fedjax_health.engine.places",
    "SplitTraining": "fedjax_health.engine.places",
    "normalization_leaves": "fedjax_health.engine.places",
    "paths_matching": "fedjax_health.engine.places",
    "run_rounds": "fedjax_health.engine.run",
    "use_cpu_devices": "fedjax_health.engine.devices",
}
_MODULES = {name for name, home in _HOME.items() if home.endswith("." + name)}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from fedjax_health.client import (
        LocalAlgorithm,
        LocalContext,
        LocalResult,
        ditto,
        fedavg,
        fedprox,
        scaffold,
    )
    from fedjax_health.core.message import CompositionError, Message
    from fedjax_health.core.rng import Stream, key_for, root_key
    from fedjax_health.core.types import (
        AggregationContext,
        Aggregator,
        AttackContext,
        BoundMechanism,
        ClientBatches,
        ClientContext,
        ClientTransform,
        Codec,
        Cohort,
        DataAttack,
        DataAttackContext,
        Defence,
        Detection,
        Examples,
        FederatedAlgorithm,
        Gathered,
        InputLayout,
        LossFn,
        Mechanism,
        Mixing,
        ModalityColumns,
        Model,
        RoundState,
        Sampling,
        Secure,
        UpdateAttack,
    )
    from fedjax_health.data.sampling import build_cohort_fn
    from fedjax_health.data.schema import DataError, Dataset
    from fedjax_health.data.store import ClientStore
    from fedjax_health.engine.algorithm import build_algorithm, client_params
    from fedjax_health.engine.checkpoint import CheckpointError
    from fedjax_health.engine.devices import use_cpu_devices
    from fedjax_health.engine.hierarchy import DeviceAveraging
    from fedjax_health.engine.places import (
        Parts,
        SplitTraining,
        normalization_leaves,
        paths_matching,
    )
    from fedjax_health.engine.plan import (
        DpSgd,
        LocalTraining,
        Optimizer,
        RoundPlan,
        Schedule,
        cosine_schedule,
        exponential_schedule,
    )
    from fedjax_health.engine.run import NonFiniteLossError, run_rounds
