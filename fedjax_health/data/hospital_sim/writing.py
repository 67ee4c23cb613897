"""HospitalSim as a CSV or Parquet file with every column named.

The file is written hospital by hospital, so that full-size data never stand in memory,
into a temporary file beside its place that is renamed when it is whole.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.hospital_sim.dataset import build_plan, generate_hospital_rows
from fedjax_health.data.hospital_sim.hierarchy import Plan
from fedjax_health.data.hospital_sim.settings import SimSettings

META_COLUMNS = (
    "hospital",
    "client",
    "department",
    "patient",
    "entity",
    "device",
    "device_type",
    "time",
)


def hospital_frame(
    settings: SimSettings, seed: int, hospital: int, *, plan: Plan | None = None
) -> pd.DataFrame:
    """Returns one hospital as a table: ids, time, features, label, attack, oracle.

    ``patient`` and ``entity`` are unique in the whole data set; an imaging device
    stands in the column ``patient`` under its department's name.

    Args:
      settings: what to generate.
      seed: a non-negative integer below 2**32.
      hospital: number of the hospital, from 0.
      plan: from ``build_plan`` for the same settings and seed, to save drawing it.

    Raises:
      ValueError: if there is no such hospital.
    """
    rows = generate_hospital_rows(settings, seed, hospital, plan=plan)
    dataset = rows.dataset
    name = f"hospital_{hospital:03d}"
    departments = np.array(c.DEPARTMENTS)[rows.department]
    imaging = rows.device_type == len(c.DEVICE_TYPES) - 1
    unit = np.char.add(f"{name}/unit_", np.char.zfill(rows.unit.astype(str), 3))
    room = np.char.add(np.char.add(f"{name}/", departments), "/imaging")
    patient = np.where(imaging, room, unit)
    meta = (
        np.full(dataset.num_rows, name),
        np.array(dataset.client_names)[dataset.client],
        departments,
        patient,
        np.char.add(np.char.add(patient, "/"), rows.device.astype(str)),
        rows.device,
        np.array(c.DEVICE_TYPES)[rows.device_type],
        dataset.time,
    )
    columns: dict[str, np.ndarray] = dict(zip(META_COLUMNS, meta, strict=True))
    for modality, values in dataset.features.items():
        for number, feature in enumerate(dataset.feature_names[modality]):
            columns[feature] = values[:, number]
    columns["label"] = dataset.label.astype(np.int8)
    columns["attack"] = np.array(dataset.attack_names)[dataset.attack]
    if dataset.oracle is not None:
        columns["oracle"] = dataset.oracle
    return pd.DataFrame(columns)


def _write_parquet(settings: SimSettings, seed: int, path: Path) -> int:
    plan, written = build_plan(settings, seed), 0
    writer = None
    try:
        for hospital in range(settings.hospitals):
            frame = hospital_frame(settings, seed, hospital, plan=plan)
            table = pa.Table.from_pandas(frame, preserve_index=False)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            written += len(frame)
    finally:
        if writer is not None:
            writer.close()
    return written


def _write_csv(settings: SimSettings, seed: int, path: Path) -> int:
    plan, written = build_plan(settings, seed), 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for hospital in range(settings.hospitals):
            frame = hospital_frame(settings, seed, hospital, plan=plan)
            frame.to_csv(file, index=False, header=hospital == 0)
            written += len(frame)
    return written


def write(settings: SimSettings, seed: int, path: str | os.PathLike[str]) -> int:
    """Writes a data set to a file, whole or not at all.

    Args:
      settings: what to generate.
      seed: a non-negative integer below 2**32.
      path: ends in ``.csv`` or ``.parquet``; an existing file is replaced.

    Returns:
      The number of rows.

    Raises:
      ValueError: for another ending, or a folder that does not exist.
    """
    target = Path(path)
    writers = {".csv": _write_csv, ".parquet": _write_parquet}
    if target.suffix not in writers:
        raise ValueError(f"{target}: the file's name must end in .csv or .parquet")
    if not target.parent.is_dir():
        raise ValueError(f"{target}: the folder {target.parent} does not exist")
    handle, name = tempfile.mkstemp(
        prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        rows = writers[target.suffix](settings, seed, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def _umask() -> int:
    """Returns the process's file mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
