"""What was fitted, in one file without pickled objects."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_health.core import files
from fedjax_health.data.preprocess.encode import (
    encoded_columns,
    encoded_names,
)
from fedjax_health.data.preprocess.outliers import Fences
from fedjax_health.data.preprocess.pipeline import Preprocessing
from fedjax_health.data.preprocess.project import Projection
from fedjax_health.data.preprocess.scaling import Scaler
from fedjax_health.data.schema import DataError

_FORMAT = "fedjax_health preprocessing 1"
_SCALER = ("mean", "std", "unseen_mean", "unseen_std")
_FENCES = ("lower", "upper", "unseen_lower", "unseen_upper")
_PROJECTION = ("mean", "basis", "explained")
# What zipfile, zlib, NumPy and json raise on bytes that are not theirs.
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def save_preprocessing(
    preprocessing: Preprocessing, path: str | os.PathLike[str]
) -> None:
    """Writes what was fitted as an .npz, in one step.

    Args:
      preprocessing: what to write.
      path: the file; an old one is replaced only when the new one is complete.

    Raises:
      DataError: if the file cannot be written.
    """
    scaler, fences = preprocessing.scaler, preprocessing.fences
    names = {
        "format": _FORMAT,
        "feature_names": preprocessing.feature_names,
        "masked": sorted(preprocessing.masked),
        "carried": sorted(preprocessing.carried),
        "logged": preprocessing.logged,
        "vocabulary": preprocessing.vocabulary,
        "clip": preprocessing.clip,
        "scaler": {"client_names": scaler.client_names, "scope": scaler.scope},
        "fences": None
        if fences is None
        else {"client_names": fences.client_names, "action": fences.action},
        "projections": list(preprocessing.projections),
    }
    arrays: dict[str, Any] = {
        "names": np.frombuffer(json.dumps(names).encode(), np.uint8)
    }
    for position, name in enumerate(preprocessing.feature_names):
        for field in _SCALER:
            arrays[f"scaler_{field}_{position}"] = getattr(scaler, field)[name]
        for field in _FENCES if fences is not None else ():
            arrays[f"fences_{field}_{position}"] = getattr(fences, field)[name]
    for position, projection in enumerate(preprocessing.projections.values()):
        for field in _PROJECTION:
            arrays[f"projection_{field}_{position}"] = getattr(projection, field)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    file = Path(path)
    try:
        files.write_bytes(file, buffer.getvalue())
    except OSError as error:
        raise DataError(
            f"{file} cannot be written: {error.strerror or error}"
        ) from None


def load_preprocessing(path: str | os.PathLike[str]) -> Preprocessing:
    """Reads what was fitted and checks that it is whole.

    Args:
      path: a file that ``save_preprocessing`` wrote.

    Raises:
      DataError: if the file is missing, damaged or something else.
    """
    file = Path(path)
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as archive:
            names = json.loads(archive["names"].tobytes())
            if names["format"] != _FORMAT:
                raise DataError(f"{file} is of another format, {names['format']!r}")
            preprocessing = _read(names, archive)
        _check(preprocessing, str(file))
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; check the path") from None
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    except _DAMAGE as error:
        raise DataError(f"{file} is no preprocessing or is damaged ({error})") from None
    return preprocessing


def _read(names: Mapping[str, Any], archive: Mapping[str, np.ndarray]) -> Preprocessing:
    feature_names = {
        str(name): tuple(map(str, columns))
        for name, columns in names["feature_names"].items()
    }
    vocabulary = {
        str(modality): {
            str(column): tuple(map(str, categories))
            for column, categories in columns.items()
        }
        for modality, columns in names["vocabulary"].items()
    }

    def by_modality(kind: str, field: str) -> dict[str, np.ndarray]:
        return {
            name: archive[f"{kind}_{field}_{position}"]
            for position, name in enumerate(feature_names)
        }

    scaler = Scaler(
        **{field: by_modality("scaler", field) for field in _SCALER},
        feature_names={
            name: encoded_names(columns, vocabulary.get(name, {}))
            for name, columns in feature_names.items()
        },
        client_names=tuple(map(str, names["scaler"]["client_names"])),
        scope=str(names["scaler"]["scope"]),
    )
    fences = None
    if names["fences"] is not None:
        fences = Fences(
            **{field: by_modality("fences", field) for field in _FENCES},
            client_names=tuple(map(str, names["fences"]["client_names"])),
            action=str(names["fences"]["action"]),
        )
    return Preprocessing(
        feature_names=feature_names,
        masked=frozenset(map(str, names["masked"])),
        carried=frozenset(map(str, names["carried"])),
        logged={
            str(name): tuple(map(str, columns))
            for name, columns in names["logged"].items()
        },
        vocabulary=vocabulary,
        fences=fences,
        scaler=scaler,
        clip=float(names["clip"]),
        projections={
            str(name): Projection(
                *(archive[f"projection_{field}_{position}"] for field in _PROJECTION)
            )
            for position, name in enumerate(names["projections"])
        },
    )


def _check(preprocessing: Preprocessing, source: str) -> None:
    """Refuses arrays that do not fit the names, or numbers that cannot be."""
    scaler, fences = preprocessing.scaler, preprocessing.fences
    _require(scaler.scope in ("client", "pooled"), source, f"scope {scaler.scope!r}")
    _require(preprocessing.clip > 0, source, f"clip {preprocessing.clip}")
    modalities = set(preprocessing.feature_names)
    for name, held in (
        ("masked", preprocessing.masked),
        ("carried", preprocessing.carried),
        ("logged", preprocessing.logged),
        ("vocabulary", preprocessing.vocabulary),
        ("projections", preprocessing.projections),
    ):
        _require(set(held) <= modalities, source, f"{name} names other modalities")
    for name, columns in preprocessing.logged.items():
        known = set(columns) <= set(preprocessing.feature_names[name])
        _require(known, source, f"logged names other columns of {name!r}")
    one_hot = encoded_columns(preprocessing.vocabulary)
    rows = len(scaler.client_names) if scaler.scope == "client" else 1
    for name, columns in scaler.feature_names.items():
        _require(set(one_hot.get(name, ())) <= set(columns), source, "vocabulary")
        for field in _SCALER:
            what = f"{field} of {name!r}"
            array = _shaped(
                getattr(scaler, field)[name], field, rows, len(columns), source, what
            )
            if field.endswith("std"):
                # Infinite where nothing varied.
                _require(bool((array > 0).all()), source, f"{what} not positive")
                continue
            std = getattr(scaler, field.replace("mean", "std"))[name]
            fits = np.isfinite(array) | (np.isnan(array) & np.isinf(std))
            _require(bool(fits.all()), source, f"{what} not finite")
        for field in _FENCES if fences is not None else ():
            assert fences is not None
            what, held = f"{field} of {name!r}", len(fences.client_names)
            array = _shaped(
                getattr(fences, field)[name], field, held, len(columns), source, what
            )
            _require(not np.isnan(array).any(), source, f"{what} is NaN")
    for name, (mean, basis, explained) in preprocessing.projections.items():
        width, what = len(scaler.feature_names[name]), f"components of {name!r}"
        fits = basis.ndim == 2 and mean.shape == (width,)
        fits = fits and basis.shape == (width, len(explained)) and explained.ndim == 1
        _require(fits, source, f"{what} are {basis.dtype} {basis.shape}")
        finite = all(np.isfinite(array).all() for array in (mean, basis, explained))
        _require(finite, source, f"{what} not finite")


def _shaped(
    array: np.ndarray, field: str, rows: int, width: int, source: str, what: str
) -> np.ndarray:
    shape = (width,) if field.startswith("unseen") else (rows, width)
    fits = array.shape == shape and array.dtype == np.float64
    found = f"{what} is {array.dtype} {array.shape}, expected float64 {shape}"
    _require(fits, source, found)
    return array


def _require(fits: bool, source: str, what: str) -> None:
    if not fits:
        raise DataError(f"{source} is damaged: {what}")
