"""The embedded data as a file, with the configuration that reads it back."""

import os
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from fedjax_health.config import ConfigError
from fedjax_health.data.hospital_sim import SimSettings, write
from fedjax_health.data.hospital_sim.constants import EMR_FEATURES, IOT_FEATURES
from fedjax_health.data.loaders.hospital_file import HOSPITAL_FILE_ROLES
from fedjax_health.records import clear_errors, write_text

SUFFIXES = (".csv", ".parquet")


def check_output(path: str | os.PathLike[str]) -> Path:
    """Refuses a file that cannot be written, before any work is done.

    Args:
      path: the file to be.

    Returns:
      The same path.

    Raises:
      ConfigError: for an unknown ending, a file in use or a missing folder.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: the name must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist")
    for file in (path, path.with_suffix(".toml")):
        if file.exists():
            raise ConfigError(f"{file}: exists already: name another (--out FILE)")
    return path


def write_simulation(settings: SimSettings, seed: int, path: Path) -> dict[str, Any]:
    """Writes the data as one table, and its column roles beside it.

    Args:
      settings: what to generate.
      seed: of the data.
      path: from ``check_output``.

    Returns:
      Paths and sizes, for the user.

    Raises:
      RunFolderError: if the disk is full.
    """
    with clear_errors(path):
        rows = write(settings, seed, path)
    config = path.with_suffix(".toml")
    write_text(config, tomli_w.dumps({"data": table_roles(path)}))
    return {
        "path": str(path),
        "config": str(config),
        "rows": rows,
        "hospitals": settings.hospitals,
        "features": {"iot": len(IOT_FEATURES), "emr": len(EMR_FEATURES)},
        "bytes": path.stat().st_size,
    }


def table_roles(path: Path) -> dict[str, Any]:
    """Returns the ``data`` table of a configuration that reads the file.

    Args:
      path: the file.
    """
    roles = msgspec.to_builtins(HOSPITAL_FILE_ROLES)
    # TOML has no null.
    given = {name: value for name, value in roles.items() if value not in (None, [])}
    return {"kind": "table", "path": str(path), **given}
