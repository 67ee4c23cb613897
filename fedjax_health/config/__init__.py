"""Configuration: frozen records, read from TOML, checked, overridden and saved.

No registry and no other string look-up: a slot is a union of records, and ``Custom``
names a function of your own by ``package.module:function``.
"""

from fedjax_health.config.common import ConfigError, Custom, Record
from fedjax_health.config.custom import call_custom, import_target
from fedjax_health.config.data import HospitalSim, Physionet2012, Table, Wustl
from fedjax_health.config.detector import Bce, Gru, Mlp
from fedjax_health.config.federation import (
    Checkpoint,
    ClipL2,
    Evaluation,
    Fixed,
    Head,
    Identity,
    Mean,
    Norm,
    Poisson,
)
from fedjax_health.config.learning import (
    Adam,
    Constant,
    Cosine,
    Ditto,
    Exponential,
    FedAvg,
    FedProx,
    Local,
    Scaffold,
    ServerAdam,
    ServerSgd,
    ServerYogi,
    Sgd,
    WarmupCosine,
)
from fedjax_health.config.parse import config_hash, load, parse, to_toml, validate
from fedjax_health.config.preparation import (
    ByClient,
    Chronological,
    Contiguous,
    DirichletLabels,
    EpisodeBlocks,
    Iid,
    LeaveOneOut,
    Natural,
    Outliers,
    QuantitySkew,
    Scaling,
    Stratified,
    Window,
)
from fedjax_health.config.presets import preset_names, preset_summary, preset_text
from fedjax_health.config.simulation import simulation_settings
from fedjax_health.config.top import Config

__all__ = [
    "Adam",
    "Bce",
    "ByClient",
    "Checkpoint",
    "Chronological",
    "ClipL2",
    "Config",
    "ConfigError",
    "Constant",
    "Contiguous",
    "Cosine",
    "Custom",
    "DirichletLabels",
    "Ditto",
    "EpisodeBlocks",
    "Evaluation",
    "Exponential",
    "FedAvg",
    "FedProx",
    "Fixed",
    "Gru",
    "Head",
    "HospitalSim",
    "Identity",
    "Iid",
    "Local",
    "Mean",
    "Mlp",
    "LeaveOneOut",
    "Link",
    "Natural",
    "Norm",
    "Outliers",
    "Poisson",
    "QuantitySkew",
    "Record",
    "Scaffold",
    "Scaling",
    "ServerAdam",
    "ServerSgd",
    "ServerYogi",
    "Sgd",
    "Table",
    "WarmupCosine",
    "Window",
    "Stratified",
    "Wustl",
    "call_custom",
    "config_hash",
    "import_target",
    "load",
    "parse",
    "preset_names",
    "preset_summary",
    "preset_text",
    "simulation_settings",
    "to_toml",
    "validate",
]
