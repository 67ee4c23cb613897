"""Runs of a configuration that are kept: a finished one is read, no other repeated."""

from pathlib import Path
from typing import Any

from fedjax_health.config import Config


def finished_run(settings: Config, folder: Path) -> dict[str, Any]:
    """Returns the result of a configuration; an interrupted run goes on.

    Args:
      settings: the configuration.
      folder: its run folder.

    Raises:
      ValueError: if the folder holds a run of another configuration.
    """
    from fedjax_health import config, records, training

    written = records.run_folder(folder).config
    if not written.is_file():
        return training.train(settings, folder, records.SILENT)
    before = config.load(written)
    if config.config_hash(before) != config.config_hash(settings):
        raise ValueError(
            f"{folder} holds a run of another configuration: name another folder "
            "(--out FOLDER)"
        )
    return training.resume(folder, records.SILENT)
