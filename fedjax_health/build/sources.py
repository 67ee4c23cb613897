"""A configuration names where the data comes from; here it becomes a dataset."""

import msgspec

from fedjax_health import config
from fedjax_health.build.custom import custom_entry
from fedjax_health.config import Config, ConfigError, Custom
from fedjax_health.data import hospital_sim
from fedjax_health.data.loaders.tabular import ColumnRoles, load_table
from fedjax_health.data.loaders.wustl import load_wustl
from fedjax_health.data.schema import Dataset, check_dataset, select_modalities


def build_dataset(settings: Config) -> Dataset:
    """Loads or generates the data.

    Raises:
      DataError: if it cannot be used.
      ConfigError: if the configuration does not name it.
    """
    data = settings.data
    match data:
        case config.HospitalSim():
            simulation = config.simulation_settings(data)
            dataset = hospital_sim.generate(simulation, settings.seed)
            return select_modalities(dataset, data.modalities)
        case config.Wustl():
            dataset = load_wustl(_path(data.path))
            return select_modalities(dataset, data.modalities)
        case config.Table():
            fields = msgspec.structs.asdict(data)
            path = _path(fields.pop("path"))
            return load_table(path, ColumnRoles(**fields))
        case Custom():
            dataset = custom_entry(data, Dataset, path="data")
            check_dataset(dataset, source=data.target)
            return dataset
    raise ConfigError(f"config: data: {data!r} is no kind of data")


def _path(path: str) -> str:
    if not path:
        raise ConfigError("config: data.path: name the file: --set data.path=FILE")
    return path
