"""A configuration names where the data comes from; here it becomes a dataset."""

from pathlib import Path

import msgspec

from fedjax_health import config
from fedjax_health.build.custom import custom_entry
from fedjax_health.config import Config, ConfigError, Custom
from fedjax_health.data import hospital_sim
from fedjax_health.data.loaders import physionet2012
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
        case config.Physionet2012():
            _path(data.path)
            return physionet2012.load_physionet2012(**msgspec.structs.asdict(data))
        case Custom():
            dataset = custom_entry(data, Dataset, path="data")
            check_dataset(dataset, source=data.target)
            return dataset
    raise ConfigError(f"config: data: {data!r} is no kind of data")


def data_files(settings: Config) -> tuple[Path, ...]:
    """Returns the files that ``build_dataset`` reads, in order; none if it reads none.

    Raises:
      DataError: if one cannot be found.
    """
    data = settings.data
    match data:
        case config.Table(path=path) | config.Wustl(path=path):
            return (Path(_path(path)),)
        case config.Physionet2012():
            return physionet2012.files(_path(data.path), data.outcomes)
    return ()


def _path(path: str) -> str:
    if not path:
        raise ConfigError("config: data.path: name the file: --set data.path=FILE")
    return path
