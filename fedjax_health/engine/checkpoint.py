"""Checkpoints that are either whole or not used.

Orbax writes the arrays of a step into a folder. A manifest with the SHA-256 of every
file is written last, so that a step without one was never finished, and a step whose
bytes have changed since is found out: orbax alone loads most bit-flipped checkpoints
without a word. Nothing is pickled.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fedjax_health import records
from fedjax_health.core import files

MANIFEST = "manifest.json"
DAMAGED = "damaged"
_FORMAT = "fedjax_health checkpoint 1"


class CheckpointError(RuntimeError):
    """No usable checkpoint, or one that does not belong to this run."""


class DamagedCheckpointWarning(UserWarning):
    """A damaged checkpoint was set aside and the one before it is used."""


class Restored(NamedTuple):
    """A restored checkpoint.

    Attributes:
      step: the round it was saved after.
      tree: the saved tree, in the structure of the target.
      context: what was saved beside it.
    """

    step: int
    tree: Any
    context: dict[str, Any]


class Checkpoints(NamedTuple):
    """The checkpoints of a run.

    Attributes:
      folder: where they lie, one folder a step.
      keep: how many steps are kept.
      manager: orbax's.
    """

    folder: Path
    keep: int
    manager: ocp.CheckpointManager


def open_checkpoints(folder: str | Path, *, keep: int = 2) -> Checkpoints:
    """Opens a folder for saving; what was left unfinished there is removed.

    Args:
      folder: made if it does not exist.
      keep: steps to keep, 2 or more: with one, a damaged step would leave nothing.

    Raises:
      ValueError: for a ``keep`` below 2.
    """
    if keep < 2:
        raise ValueError(f"keep must be 2 or more checkpoints, not {keep}")
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for step in _steps(folder):
        if not (folder / str(step) / MANIFEST).exists():
            shutil.rmtree(folder / str(step))
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    return Checkpoints(folder, keep, ocp.CheckpointManager(folder, options=options))


def save(
    checkpoints: Checkpoints, step: int, tree: Any, context: dict[str, Any]
) -> None:
    """Saves a tree as a step, then drops the steps beyond ``keep``.

    Args:
      checkpoints: from ``open_checkpoints``.
      step: the round it was made after.
      tree: a pytree of arrays; typed keys are allowed.
      context: numbers and strings that must hold when it is used again.

    Raises:
      OSError: if it cannot be written, for want of space for instance; the steps
        saved before are untouched.
    """
    folder = checkpoints.folder / str(step)
    if folder.exists():
        checkpoints.manager.delete(step)
    args = ocp.args.StandardSave(_flat(tree))  # pyright: ignore[reportCallIssue]
    try:
        with _silent_absl():
            checkpoints.manager.save(step, args=args)
            checkpoints.manager.wait_until_finished()
    except Exception as error:
        number = _full_disk(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error
    _write_manifest(folder, context)
    for old in _steps(checkpoints.folder)[: -checkpoints.keep]:
        checkpoints.manager.delete(old)


def restore_latest(
    folder: str | Path,
    target: Any,
    *,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> Restored | None:
    """Restores the newest whole step; damaged ones are set aside with a warning.

    Args:
      folder: where the steps lie.
      target: a pytree of arrays, or of shapes with shardings, of the saved structure.
      check: called with the context of a whole step before its arrays are read; raises
        where it belongs to another run.

    Returns:
      The restored step, or None if no step was ever finished.

    Raises:
      CheckpointError: if every finished step is damaged, or a whole step does not have
        the structure of ``target``.
    """
    folder = Path(folder).absolute()
    damaged = []
    for step in reversed(_steps(folder)):
        path = folder / str(step)
        if not (path / MANIFEST).exists():
            continue
        problem, context = _verify(path)
        if problem is None:
            if check is not None:
                check(context)
            with _silent_absl():
                return Restored(step, _read(path, target), context)
        warnings.warn(
            f"checkpoint {step} is damaged ({problem}): the one before it is used",
            DamagedCheckpointWarning,
            stacklevel=2,
        )
        damaged.append(path)
        _set_aside(path)
    if damaged:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged and was moved to "
            f"{damaged_folder(folder)}: start a new run, or resume once more to train "
            "this one again from its first round"
        )
    return None


@contextlib.contextmanager
def _silent_absl() -> Iterator[None]:
    """Keeps orbax from printing what is raised anyway, or concerns nobody."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _full_disk(error: BaseException) -> int | None:
    """Returns the error number of a full disk or quota, None for any other error."""
    seen = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, OSError) and cause.errno in records.FULL_DISK:
            return cause.errno
        # tensorstore raises a ValueError that holds the number in its text alone.
        for number in records.FULL_DISK:
            if f"os_error_code='{number}'" in str(cause):
                return number
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def damaged_folder(folder: Path) -> Path:
    """Returns where the damaged steps of a folder are set aside."""
    return folder.with_name(f"{folder.name}-{DAMAGED}")


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def _set_aside(path: Path) -> None:
    """Moves a damaged step out of the way, so that its number can be saved again."""
    place = damaged_folder(path.parent)
    place.mkdir(exist_ok=True)
    number = len(list(place.iterdir()))
    os.replace(path, place / f"{path.name}-{number}")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Returns path -> leaf, in leaf order: no structure that orbax has to know."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _flat(tree: Any) -> dict[str, Any]:
    """Returns path -> array; a typed key goes as its data."""
    return {
        name: jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for name, leaf in _named_leaves(tree).items()
    }


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(data.shape, data.dtype)
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _read(path: Path, target: Any) -> Any:
    leaves = _named_leaves(target)
    abstract = {name: _abstract(leaf) for name, leaf in leaves.items()}
    checkpointer = ocp.StandardCheckpointer()
    saved: Any = checkpointer.metadata(path / "default").item_metadata
    shapes = {name: tuple(entry.shape) for name, entry in dict(saved).items()}
    wanted = {name: tuple(entry.shape) for name, entry in abstract.items()}
    differ = sorted(
        name
        for name in shapes.keys() | wanted.keys()
        if shapes.get(name) != wanted.get(name)
    )
    if differ:
        raise CheckpointError(
            f"{path} was saved by a run of another shape: {differ[0]} is "
            f"{shapes.get(differ[0], 'absent')}, wanted {wanted.get(differ[0], 'none')}"
        )
    restored = checkpointer.restore(path / "default", abstract)
    values = [_restored_leaf(restored[name], leaf) for name, leaf in leaves.items()]
    return jax.tree.structure(target).unflatten(values)


def _restored_leaf(value: Any, leaf: Any) -> Any:
    if not _is_key(leaf):
        return value
    data = jnp.asarray(np.asarray(value))
    key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    sharding = getattr(leaf, "sharding", None)
    return key if sharding is None else jax.device_put(key, sharding)


def _digests(path: Path, *, sync: bool) -> dict[str, str]:
    """Returns relative file name -> SHA-256, every file forced to disk on request."""
    digests = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        if name == MANIFEST:
            continue
        with open(file, "rb") as content:
            digests[name] = hashlib.file_digest(content, "sha256").hexdigest()
            if sync:
                os.fsync(content.fileno())
    return digests


def _seal(payload: dict[str, Any]) -> str:
    text = json.dumps(payload, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_manifest(path: Path, context: dict[str, Any]) -> None:
    payload = {
        "format": _FORMAT,
        "context": context,
        "files": _digests(path, sync=True),
    }
    for folder in {path, *(p.parent for p in path.rglob("*"))}:
        files.sync_folder(folder)
    manifest = json.dumps({"payload": payload, "sha256": _seal(payload)})
    files.write_bytes(path / MANIFEST, manifest.encode())
    files.sync_folder(path.parent)


def _verify(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Returns what is wrong with a step, None if nothing is, and its context."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        payload, seal = manifest["payload"], manifest["sha256"]
        if seal != _seal(payload) or payload["format"] != _FORMAT:
            return "its manifest has changed", {}
        listed = payload["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read: {error}", {}
    found = _digests(path, sync=False)
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing", {}
        if name not in listed:
            return f"{name} does not belong to it", {}
        if listed[name] != found[name]:
            return f"{name} has changed", {}
    return None, payload["context"]
