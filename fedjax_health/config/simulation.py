"""The generator's settings from a configuration."""

import dataclasses

from fedjax_health.config.common import ConfigError
from fedjax_health.config.data import HospitalSim
from fedjax_health.data.hospital_sim.settings import PRESETS, SimSettings


def simulation_settings(data: HospitalSim, *, path: str = "data") -> SimSettings:
    """Returns a preset's settings with the fields that the record sets.

    Args:
      data: the record.
      path: where it stands, for the message.

    Raises:
      ConfigError: for sizes that cannot be generated.
    """
    names = {field.name for field in dataclasses.fields(SimSettings)}
    given = {name: getattr(data, name, None) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        return dataclasses.replace(PRESETS[data.preset], **changes)
    except ValueError as error:
        raise ConfigError(f"config: {path}: {error}") from error
