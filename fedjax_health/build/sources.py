"""A configuration names where the data comes from; here it becomes a dataset."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fedjax_health import config
from fedjax_health.build.custom import custom_entry
from fedjax_health.config import Config, ConfigError, Custom
from fedjax_health.data import hospital_sim
from fedjax_health.data.leakcheck import repeated_times
from fedjax_health.data.loaders import (
    eicu,
    events,
    heart,
    mimic_demo,
    physionet2012,
    tabular,
    ton_iot,
)
from fedjax_health.data.loaders.events import EventRoles
from fedjax_health.data.loaders.hospital_file import HOSPITAL_FILE_ROLES
from fedjax_health.data.loaders.loaded import Loaded
from fedjax_health.data.loaders.reading import check_file, require_folder, shorten
from fedjax_health.data.loaders.roles import ColumnRoles, Link
from fedjax_health.data.loaders.wustl import WUSTL_ROLES, load_wustl
from fedjax_health.data.preprocess.logs import apply_logs, match_columns
from fedjax_health.data.schema import (
    Dataset,
    DataWarning,
    check_dataset,
    last_rows,
    segment_starts,
    select_modalities,
)
from fedjax_health.data.summarise import summarise

# What columns of a table are that are no features and are not dropped either.
ROLES = ("label", "attack", "client", "entity", "patient", "time")


def build_dataset(settings: Config) -> Dataset:
    """Loads or generates the data that a detector is trained and tested on.

    Raises:
      DataError: if it cannot be used.
      ConfigError: if the configuration does not name it.
    """
    return _summarised(settings, _load(settings))


def _summarised(settings: Config, dataset: Dataset) -> Dataset:
    chosen = settings.summarise
    if chosen is None:
        return dataset
    logged = apply_logs(match_columns(dataset, chosen.log), dataset)
    return summarise(logged, statistics=chosen.statistics, modalities=chosen.modalities)


def _load(settings: Config) -> Dataset:
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
            return tabular.load_table(_path(data.path), _roles(data))
        case config.Physionet2012():
            _path(data.path)
            return physionet2012.load_physionet2012(**_fields(data))
        case config.Events():
            return events.load_events(_path(data.path), data.entities, _events(data))
        case config.Eicu():
            _path(data.path)
            return eicu.load_eicu(**_fields(data))
        case config.TonIot():
            _path(data.path)
            return ton_iot.load_ton_iot(**_fields(data))
        case config.Heart():
            return heart.load_heart(_path(data.path))
        case config.MimicDemo():
            return mimic_demo.load_mimic_demo(**_fields(data))
        case Custom():
            dataset = custom_entry(data, Dataset, path="data")
            check_dataset(dataset, source=data.target)
            return dataset
    raise ConfigError(f"config: data: {data!r} is no kind of data")


def build_evaluation_dataset(
    settings: Config,
    path: str | os.PathLike[str],
    *,
    feature_names: Mapping[str, Sequence[str]] | None = None,
    client_names: Sequence[str] = (),
) -> Loaded:
    """Loads other data of the kind and roles that a detector was trained on.

    Labels may be absent, of some rows alone or of one class; clients and categories may
    be new; a modality or column whose values may be missing may be absent.

    - hospital_sim: a file that ``fedjax-health generate`` wrote.
    - table: a linked table is looked for under its name beside the new file, and taken
      from where the configuration has it otherwise.
    - events: the table of entities stands beside the observations, under the name that
      the configuration gives it; or the path is the folder of both.
    - custom: the function is called with ``path`` among its arguments.

    Args:
      settings: the configuration of the training.
      path: the new file or folder.
      feature_names: modality name -> columns in training, for roles such as "rest".
      client_names: clients of the training, for files that are clients.

    Returns:
      The rows, and whose labels are known.

    Raises:
      DataError: if it cannot be used.
      ConfigError: if the configuration does not name the data.
    """
    names = _columns_before(settings, feature_names)
    loaded = _load_other(
        settings, os.fspath(path), feature_names=names, client_names=client_names
    )
    warn_of_repeats(settings, loaded.dataset)
    if settings.summarise is None:
        return loaded
    return _summarised_other(settings, loaded, names or {}, feature_names or {})


def _summarised_other(
    settings: Config,
    loaded: Loaded,
    before: Mapping[str, Sequence[str]],
    after: Mapping[str, Sequence[str]],
) -> Loaded:
    """Summarises other data as that of the training was.

    A modality that was summarised and is not there has the summaries of stays in which
    nothing of it was observed; any other that is not there stays out.
    """
    given = loaded.dataset
    absent = [name for name in before if name not in given.features]
    filled = given._replace(
        features=dict(given.features), feature_names=dict(given.feature_names)
    )
    for name in absent:
        columns = tuple(before[name])
        shape = (given.num_rows, len(columns))
        filled.features[name] = np.full(shape, np.nan, np.float32)
        filled.feature_names[name] = columns
    summed = tuple(n for n in absent if tuple(before[n]) != tuple(after[n]))
    filled = filled._replace(
        masked=given.masked | set(absent), carried=given.carried | set(summed)
    )
    dataset = _summarised(settings, filled)
    kept = tuple(n for n in dataset.features if n in summed or n not in absent)
    return Loaded(
        select_modalities(dataset, kept), loaded.known[last_rows(given)], summed
    )


def _columns_before(
    settings: Config, feature_names: Mapping[str, Sequence[str]] | None
) -> Mapping[str, Sequence[str]] | None:
    """Returns the columns that summaries such as "pulse mean" were made of."""
    if settings.summarise is None or feature_names is None:
        return feature_names
    endings = tuple(f" {name}" for name in settings.summarise.statistics)
    return {
        modality: tuple(dict.fromkeys(name.rpartition(" ")[0] for name in names))
        if all(name.endswith(endings) for name in names)
        else names
        for modality, names in feature_names.items()
    }


def _load_other(
    settings: Config,
    path: str,
    *,
    feature_names: Mapping[str, Sequence[str]] | None,
    client_names: Sequence[str],
) -> Loaded:
    data = settings.data
    match data:
        case config.HospitalSim():
            loaded = tabular.read_table(path, HOSPITAL_FILE_ROLES)
            return _select(loaded, data.modalities)
        case config.Wustl():
            return _select(tabular.read_table(path, WUSTL_ROLES), data.modalities)
        case config.Table():
            roles = _beside(_roles(data), path)
            return tabular.read_table(
                path, roles, feature_names=feature_names, client_names=client_names
            )
        case config.Physionet2012():
            fields = {**_fields(data), "path": path, "outcomes": None}
            return physionet2012.read_physionet2012(**fields)
        case config.Events():
            observations, entities = _event_files(data, path)
            return events.read_events(
                observations, entities, _events(data), feature_names=feature_names
            )
        case config.Eicu():
            return eicu.read_eicu(**{**_fields(data), "path": path})
        case config.TonIot():
            # Every row is scored, those that repeat another one too.
            known = (feature_names or {}).get("telemetry")
            return ton_iot.read_ton_iot(path, feature_names=known)
        case config.Heart():
            return heart.read_heart(path)
        case config.MimicDemo():
            return mimic_demo.read_mimic_demo(**{**_fields(data), "path": path})
        case Custom(target=target, args=args):
            entry = Custom(target=target, args={**args, "path": path})
            dataset = custom_entry(entry, Dataset, path="data")
            check_dataset(dataset, source=target, one_class=True)
            return Loaded(dataset, np.ones(dataset.num_rows, bool))
    raise ConfigError(f"config: data: {data!r} is no kind of data")


def data_files(settings: Config) -> tuple[Path, ...]:
    """Returns the files that ``build_dataset`` reads, in order; none if it reads none.

    Raises:
      DataError: if one cannot be found.
    """
    data = settings.data
    match data:
        case config.Wustl():
            return tabular.find_tables(_path(data.path), WUSTL_ROLES)
        case config.Heart():
            return tabular.find_tables(_path(data.path), heart.HEART_ROLES)
        case config.Events():
            return (Path(_path(data.path)), Path(data.entities))
        case config.Eicu():
            return eicu.files(
                _path(data.path),
                client=data.client,
                modalities=data.modalities,
                apache_score=data.apache_score,
            )
        case config.TonIot():
            return ton_iot.files(_path(data.path))
        case config.MimicDemo():
            return mimic_demo.files(data.path)
        case config.Table():
            roles = _roles(data)
            linked = (Path(link.path) for link in roles.links)
            return (*tabular.find_tables(_path(data.path), roles), *linked)
        case config.Physionet2012():
            return physionet2012.files(_path(data.path), data.outcomes)
    return ()


def check_files(settings: Config):
    """Refuses files that ``build_dataset`` could not open, before anything is loaded.

    Raises:
      DataError: naming the file.
    """
    if isinstance(settings.data, config.Eicu):
        # A table that is not there may be one that is not needed.
        require_folder(settings.data.path, wanted="the folder of patient.csv.gz")
    for file in data_files(settings):
        if not os.path.isdir(file):
            check_file(file, wanted="a file of data")


def check_evaluation_files(settings: Config, path: str | os.PathLike[str]):
    """Refuses a path at which ``build_evaluation_dataset`` could not find a file.

    Raises:
      DataError: naming the file.
    """
    if isinstance(settings.data, Custom):
        # What its path means is the function's own affair.
        return
    table, files = table_roles(settings), (Path(path),)
    if isinstance(settings.data, config.HospitalSim):
        files = tabular.find_tables(path, HOSPITAL_FILE_ROLES)
    elif table is not None:
        files = tabular.find_tables(path, table[1])
    for file in files:
        if not os.path.isdir(file):
            check_file(file, wanted="a file of data")


def name_files(settings: Config) -> str | None:
    """Returns one line on the tables of a folder or pattern; None for a file's path."""
    table = table_roles(settings)
    if table is None:
        return None
    path, roles = table
    found = tabular.find_tables(path, roles)
    if found == (Path(path),):
        return None
    return f"{path}: {shorten([file.name for file in found])}"


def table_roles(settings: Config) -> tuple[str, ColumnRoles] | None:
    """Returns (path, roles) where the data is a table, None for other kinds of it."""
    data = settings.data
    match data:
        case config.Wustl():
            return _path(data.path), WUSTL_ROLES
        case config.Heart():
            return _path(data.path), heart.HEART_ROLES
        case config.Table():
            return _path(data.path), _roles(data)
    return None


def warn_of_repeats(settings: Config, dataset: Dataset):
    """Warns of rows of one entity and one time, as the leak check does."""
    if not has_time(settings):
        return
    text = repeated_times(dataset, names_of(settings, dataset))
    if text is not None:
        warnings.warn(text, DataWarning, stacklevel=2)


def has_time(settings: Config) -> bool:
    """Returns whether rows have a time, other than their order in a file."""
    table = table_roles(settings)
    if table is not None:
        return table[1].time is not None
    return not isinstance(settings.data, config.TonIot)


def names_of(settings: Config, dataset: Dataset) -> dict[str, str]:
    """Returns role -> column of what is no feature; nothing for what there is one of.

    Args:
      settings: the configuration.
      dataset: its data.
    """
    table = table_roles(settings)
    if table is None:
        names = {"client": "client", "entity": "entity", "time": "time"}
        if dataset.patient is not None:
            names["patient"] = "patient"
    else:
        columns = {role: getattr(table[1], role) for role in ROLES}
        names = {role: name for role, name in columns.items() if name is not None}
    if dataset.num_clients < 2 and table is None:
        names.pop("client")
    if len(segment_starts(dataset)) < 2 and table is None:
        names.pop("entity")
    return names


def _fields(data: config.Record) -> dict[str, Any]:
    return msgspec.structs.asdict(data)


def _events(data: config.Events) -> EventRoles:
    fields = _fields(data)
    # What is observed often enough is told from the training part.
    del fields["path"], fields["entities"], fields["least_share"]
    return EventRoles(**fields)


def _event_files(data: config.Events, path: str) -> tuple[str, str]:
    """Returns the observations and the table of entities beside them."""
    if os.path.isdir(path):
        folder, path = path, os.path.join(path, os.path.basename(data.path))
    else:
        folder = os.path.dirname(path)
    return path, os.path.join(folder, os.path.basename(data.entities))


def _roles(data: config.Table) -> ColumnRoles:
    fields = _fields(data)
    del fields["path"]
    links = tuple(Link(**_fields(link)) for link in data.links)
    return ColumnRoles(**{**fields, "links": links})


def _beside(roles: ColumnRoles, path: str) -> ColumnRoles:
    """Returns the roles with the linked tables that stand beside the new file."""
    links = []
    for link in roles.links:
        for folder in (Path(path), Path(path).parent):
            near = folder / Path(link.path).name
            if os.path.isfile(near):
                link = msgspec.structs.replace(link, path=str(near))
                break
        if os.path.exists(link.path):
            links.append(link)
    # A linked modality that is nowhere counts as not observed.
    carried = {link.modality for link in links} | set(roles.modalities)
    kept = tuple(name for name in roles.carried if name in carried)
    return msgspec.structs.replace(roles, links=tuple(links), carried=kept)


def _select(loaded: Loaded, modalities: Sequence[str]) -> Loaded:
    dataset = select_modalities(loaded.dataset, tuple(modalities))
    return loaded._replace(dataset=dataset)


def _path(path: str) -> str:
    if not path:
        raise ConfigError("config: data.path: name the file: --set data.path=FILE")
    return path
