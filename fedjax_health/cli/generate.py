"""A dataset as a CSV or Parquet file, with the configuration that reads it back."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w

from fedjax_health.data.schema import DataError, Dataset
from fedjax_health.records import clear_errors, sync_folder, write_text

SUFFIXES = (".csv", ".csv.gz", ".parquet")
ROLES = ("client", "entity", "time", "label", "attack", "oracle")


def check_output(path: str | os.PathLike[str]) -> Path:
    """Refuses a file that cannot be written, before any work is done.

    Args:
      path: the file to be.

    Returns:
      The same path.

    Raises:
      DataError: for an unknown ending, a file in use or a missing folder.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: the name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist")
    for file in (path, config_path(path)):
        if file.exists():
            raise DataError(f"{file}: exists already: name another (--out FILE)")
    return path


def config_path(path: Path) -> Path:
    """Returns where the configuration of a data file lies.

    Args:
      path: the data file.
    """
    stem = next(path.name.removesuffix(s) for s in SUFFIXES if path.name.endswith(s))
    return path.with_name(f"{stem}.toml")


def write_dataset(
    dataset: Dataset, path: Path, *, oracle: bool = False
) -> dict[str, Any]:
    """Writes a dataset as one table, and its column roles beside it.

    Args:
      dataset: any dataset.
      path: a file ending in .csv, .csv.gz or .parquet.
      oracle: whether to write the oracle's score; it is a role of no run.

    Returns:
      Paths, sizes and prevalence, for the user.

    Raises:
      RunFolderError: if the disk is full.
    """
    frame, modalities = to_frame(dataset, oracle=oracle)
    _write_frame(frame, path)
    features = [column for columns in modalities.values() for column in columns]
    data: dict[str, Any] = {
        "kind": "table",
        "path": str(path),
        "label": "label",
        "attack": "attack",
        "normal": dataset.attack_names[0],
        "client": "client",
        "entity": "entity",
        "time": "time",
        "drop": ["oracle"] if "oracle" in frame else [],
        "allow_missing": bool(frame[features].isna().to_numpy().any()),
        "modalities": modalities,
    }
    write_text(config_path(path), tomli_w.dumps({"data": data}))
    return {
        "path": str(path),
        "config": str(config_path(path)),
        "rows": dataset.num_rows,
        "clients": dataset.num_clients,
        "features": {name: len(columns) for name, columns in modalities.items()},
        "positive_share": float(np.mean(dataset.label)) if dataset.num_rows else None,
        "bytes": path.stat().st_size,
    }


def to_frame(
    dataset: Dataset, *, oracle: bool = False
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Lays a dataset out as one table.

    Args:
      dataset: any dataset.
      oracle: whether to add the oracle's score, where there is one.

    Returns:
      The table, and the columns of each modality; a column whose name occurs twice
      carries its modality before it.
    """
    names = [n for columns in dataset.feature_names.values() for n in columns]
    taken = {name for name in names if names.count(name) > 1} | set(ROLES)
    columns: dict[str, Any] = {
        "client": np.asarray(dataset.client_names, object)[dataset.client],
        "entity": dataset.entity,
        "time": dataset.time,
        "label": dataset.label.astype(np.int8),
        "attack": np.asarray(dataset.attack_names, object)[dataset.attack],
    }
    if oracle and dataset.oracle is not None:
        columns["oracle"] = dataset.oracle
    modalities: dict[str, list[str]] = {}
    for modality, features in dataset.feature_names.items():
        written = [f"{modality}.{n}" if n in taken else n for n in features]
        modalities[modality] = written
        for index, name in enumerate(written):
            columns[name] = dataset.features[modality][:, index]
    return pd.DataFrame(columns), modalities


def _write_frame(frame: pd.DataFrame, path: Path):
    suffix = next(suffix for suffix in SUFFIXES if path.name.endswith(suffix))
    with (
        clear_errors(path),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder,
    ):
        temporary = Path(folder) / f"table{suffix}"
        if suffix == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False)
        os.replace(temporary, path)
        sync_folder(path.parent)
