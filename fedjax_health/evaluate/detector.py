"""A trained detector as files: all it takes to score rows that training never saw."""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_health import records
from fedjax_health.core import trees
from fedjax_health.core.types import InputLayout, ModalityColumns, Params
from fedjax_health.evaluate.scoring import Weights
from fedjax_health.records import RunFolder, RunFolderError

_FORMAT = "fedjax_health detector 1"
_DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    OSError,
    zipfile.BadZipFile,
    zlib.error,
)


class DetectorFile(NamedTuple):
    """What stands beside the parameters.

    Attributes:
      layout: how the columns of the input are laid out.
      target: what a label belongs to, "row" or "entity".
      window: time steps of an example, or None.
      streams: whether rows follow each other in time.
      client_names: clients of the training, in the order of their own parameters.
      attack_names: types of attack in the training data.
      threshold: the lowest probability that counts as detected (best validation F1).
      alarm_threshold: the lowest probability that gives alarm (validation false-alarm
        rate); that of detection where rows have no time.
      false_alarm_rate: the validation rate behind the alarm threshold.
      round: rounds that the parameters had been trained for.
      took_part: for each client whether it was ever drawn, where a part of the model is
        personal; empty where nothing is, or where that is not known.
    """

    layout: InputLayout
    target: str
    window: int | None
    streams: bool
    client_names: tuple[str, ...]
    attack_names: tuple[str, ...]
    threshold: float
    alarm_threshold: float
    false_alarm_rate: float
    round: int
    took_part: tuple[bool, ...] = ()


def save_detector(paths: RunFolder, weights: Weights, about: DetectorFile) -> None:
    """Writes parameters and what stands beside them, the latter last.

    Args:
      paths: the run folder.
      weights: of the best model.
      about: how to use them.

    Raises:
      RunFolderError: if the disk is full.
    """
    arrays: dict[str, Any] = {
        f"{kind}/{name}": np.asarray(leaf)
        for kind, tree in weights._asdict().items()
        if tree is not None
        for name, leaf in zip(
            trees.path_names(tree), jax.tree.leaves(tree), strict=True
        )
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    records.write_bytes(paths.model, buffer.getvalue())
    text = {
        "format": _FORMAT,
        "sha256": records.file_sha256(paths.model),
        **about._asdict(),
        "layout": [columns._asdict() for columns in about.layout],
    }
    records.write_json(paths.detector, text)


def read_detector(paths: RunFolder) -> DetectorFile:
    """Reads what stands beside the parameters of a finished run.

    Raises:
      RunFolderError: if the run is not finished, or the file is damaged.
    """
    if not paths.detector.is_file():
        raise RunFolderError(
            f"{paths.root}: holds no trained detector yet: finish the run first "
            f"(fedjax-health resume {paths.root})"
        )
    values = records.read_json(paths.detector)
    try:
        if values.pop("format") != _FORMAT:
            raise ValueError("another format")
        values.pop("sha256")
        layout = tuple(_columns(columns) for columns in values.pop("layout"))
        for name in ("client_names", "attack_names", "took_part"):
            values[name] = tuple(values.get(name, ()))
        return DetectorFile(layout=layout, **values)
    except _DAMAGE as error:
        raise RunFolderError(
            f"{paths.detector}: is damaged ({error}): bring it back, or train again"
        ) from None


def load_weights(paths: RunFolder, abstract_params: Params) -> Weights:
    """Reads the parameters and checks that they are whole and fit the model.

    Args:
      paths: the run folder.
      abstract_params: shapes and dtypes of the model's parameters.

    Raises:
      RunFolderError: if they are damaged or belong to another model.
    """
    expected = records.read_json(paths.detector).get("sha256")
    try:
        content = Path(paths.model).read_bytes()
        if records.file_sha256(paths.model) != expected:
            raise ValueError("its SHA-256 is not the one that was written")
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _DAMAGE as error:
        raise RunFolderError(f"{paths.model}: is damaged: {error}") from None
    names = trees.path_names(abstract_params)
    structure = jax.tree.structure(abstract_params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(abstract_params)]
    params = [arrays.get(f"params/{name}") for name in names]
    own = [arrays.get(f"own/{name}") for name in names]
    for name, shape, shared, personal in zip(names, shapes, params, own, strict=True):
        found = personal.shape[1:] if shared is None and personal is not None else None
        found = shared.shape if shared is not None else found
        if found != shape:
            raise RunFolderError(
                f"{paths.model}: parameter {name} has shape {found} where the model of "
                f"{paths.config.name} has {shape}: the configuration was edited"
            )
    has_own = any(leaf is not None for leaf in own)
    return Weights(
        structure.unflatten(params), structure.unflatten(own) if has_own else None
    )


def _columns(saved: dict[str, Any]) -> ModalityColumns:
    def span(name: str) -> tuple[int, int] | None:
        value = saved[name]
        return None if value is None else (int(value[0]), int(value[1]))

    first, end = saved["values"]
    return ModalityColumns(
        str(saved["name"]), (int(first), int(end)), span("observed"), span("elapsed")
    )
