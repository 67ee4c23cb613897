"""What a run leaves on disk, written so that a kill at any moment leaves it usable.

Whole files are replaced atomically (temporary file, fsync, rename, fsync of the
folder). Lines of a JSONL file are appended; those of rounds after the last good
checkpoint are dropped on resume.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_health.core import files

PACKAGES = (
    "fedjax-health",
    "jax",
    "jaxlib",
    "numpy",
    "flax",
    "optax",
    "orbax-checkpoint",
    "msgspec",
    "pandas",
    "pyarrow",
    "dp-accounting",
)

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

StrPath = str | os.PathLike[str]


class RunFolderError(ValueError):
    """A run folder that cannot be used; the text names it and the way out."""


class RunFolder(NamedTuple):
    """Where each part of a run lies.

    Attributes:
      root: the folder itself.
      config: the resolved configuration, TOML.
      environment: versions and machine, JSON.
      metrics: one line a round, without wall times, JSONL.
      timings: one line a segment of rounds, wall times, JSONL.
      result: the final metrics, JSON.
      figures: curves, intervals and figures by client and attack, JSON.
      leakcheck: what the leak check found before training, JSON.
      audit: what attacks on the finished run found, JSON.
      audit_page: the same for a reader, HTML.
      preprocessing: all that was fitted to the training part, NPZ.
      model: parameters of the best model, NPZ.
      detector: what it takes to use them on other data, JSON.
      predictions: scores of the test part, Parquet.
      report: the whole run for a reader, HTML.
      plots: folder of the report's figures, PNG.
      evaluations: folder of what ``evaluate`` found on other data.
      checkpoints: folder of the saved states.
      lock: held by the process that runs or resumes.
    """

    root: Path
    config: Path
    environment: Path
    metrics: Path
    timings: Path
    result: Path
    figures: Path
    leakcheck: Path
    audit: Path
    audit_page: Path
    preprocessing: Path
    model: Path
    detector: Path
    predictions: Path
    report: Path
    plots: Path
    evaluations: Path
    checkpoints: Path
    lock: Path


class SweepFolder(NamedTuple):
    """Where each part of a sweep lies.

    Attributes:
      root: the folder itself.
      sweep: the whole grid, TOML.
      environment: versions and machine, JSON.
      settings: axes and what the report compares, JSON.
      cells: one line a cell that is done, JSONL.
      timings: one line a cell, wall times, JSONL.
      results: one row a cell, Parquet.
      results_csv: the same, CSV.
      curves: one row an evaluation, Parquet.
      report: the whole sweep for a reader, HTML.
      plots: folder of the report's figures, PNG.
      lock: held by the process that runs or resumes.
    """

    root: Path
    sweep: Path
    environment: Path
    settings: Path
    cells: Path
    timings: Path
    results: Path
    results_csv: Path
    curves: Path
    report: Path
    plots: Path
    lock: Path


class Progress(NamedTuple):
    """What a run tells while it runs; every entry is called by keyword.

    Attributes:
      on_start: ``(*, total_rounds, first_round=0)``; first_round is above 0 on resume.
      on_round: ``(*, round, loss, clients_per_s=None, validation=None, epsilon=None,
        uplink_bytes=None)``; round counts rounds done, from 1; epsilon and bytes are
        those of all rounds so far, bytes where a stage works on messages.
      on_message: ``(text)``, for anything else that a person should read.
      on_end: ``()``, also after an error.
    """

    on_start: Callable[..., None]
    on_round: Callable[..., None]
    on_message: Callable[[str], None]
    on_end: Callable[[], None]


def _ignore(*_args: Any, **_kwargs: Any) -> None:
    return None


SILENT = Progress(_ignore, _ignore, _ignore, _ignore)


def run_folder(root: StrPath) -> RunFolder:
    """Returns the paths of a run folder; touches nothing.

    Args:
      root: the folder.
    """
    root = Path(root)
    return RunFolder(
        root=root,
        config=root / "config.toml",
        environment=root / "environment.json",
        metrics=root / "metrics.jsonl",
        timings=root / "timings.jsonl",
        result=root / "result.json",
        figures=root / "figures.json",
        leakcheck=root / "leakcheck.json",
        audit=root / "audit.json",
        audit_page=root / "audit.html",
        preprocessing=root / "preprocessing.npz",
        model=root / "model.npz",
        detector=root / "detector.json",
        predictions=root / "predictions.parquet",
        report=root / "report.html",
        plots=root / "plots",
        evaluations=root / "evaluations",
        checkpoints=root / "checkpoints",
        lock=root / ".lock",
    )


def sweep_folder(root: StrPath) -> SweepFolder:
    """Returns the paths of a sweep's folder; touches nothing.

    Args:
      root: the folder.
    """
    root = Path(root)
    return SweepFolder(
        root=root,
        sweep=root / "sweep.toml",
        environment=root / "environment.json",
        settings=root / "settings.json",
        cells=root / "cells.jsonl",
        timings=root / "timings.jsonl",
        results=root / "results.parquet",
        results_csv=root / "results.csv",
        curves=root / "curves.parquet",
        report=root / "report.html",
        plots=root / "plots",
        lock=root / ".lock",
    )


def check_unused(root: StrPath):
    """Refuses an output folder in use, or one that could not be made.

    Args:
      root: the folder; it may be absent or empty.

    Raises:
      RunFolderError: if it is a file, holds anything or cannot be written to.
    """
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise RunFolderError(f"{root}: is a file; name a folder (--out FOLDER)")
    if root.is_dir() and any(entry.name != ".lock" for entry in root.iterdir()):
        run, sweep = run_folder(root), sweep_folder(root)
        for kind, done in (("run", run.result), ("sweep", sweep.results)):
            if done.is_file():
                raise RunFolderError(
                    f"{root}: output folder in use: it holds a finished {kind}; name "
                    "another (--out FOLDER)"
                )
        way_out = (
            f"go on with it (fedjax-health resume {root})"
            if run.config.is_file() or sweep.sweep.is_file()
            else "empty it"
        )
        raise RunFolderError(
            f"{root}: output folder in use: {way_out} or name another (--out FOLDER)"
        )
    _check_writable(root)


def _check_writable(root: Path):
    """Refuses a folder that cannot be made, before hours are spent on what goes there.

    Whether a folder can be made is only known when one has been made: rights alone do
    not tell, for the superuser least of all.
    """
    place = root.absolute()
    while not os.path.exists(place):
        place = place.parent
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".", suffix=files.TEMPORARY, dir=place))
    except OSError as error:
        raise RunFolderError(
            f"{root}: cannot be created: {error.strerror}; name another (--out FOLDER)"
        ) from error


def create_folder(root: StrPath) -> RunFolder:
    """Creates an output folder.

    Args:
      root: the folder; it may be absent or empty.

    Returns:
      Its paths.

    Raises:
      RunFolderError: if it is in use or cannot be created.
    """
    check_unused(root)
    folder = run_folder(root)
    _make(folder.checkpoints, root)
    return folder


def create_sweep_folder(root: StrPath) -> SweepFolder:
    """Creates the folder of a sweep.

    Args:
      root: the folder; it may be absent or empty.

    Returns:
      Its paths.

    Raises:
      RunFolderError: if it is in use or cannot be created.
    """
    check_unused(root)
    folder = sweep_folder(root)
    _make(folder.root, root)
    return folder


def _make(folder: Path, root: StrPath):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{root}: cannot be created: {error.strerror}") from error


def open_sweep_folder(root: StrPath) -> SweepFolder:
    """Returns the paths of a folder that a sweep has left.

    Args:
      root: the folder.

    Raises:
      RunFolderError: if there is no sweep in it.
    """
    folder = sweep_folder(root)
    if not folder.root.is_dir():
        raise RunFolderError(f"{root}: no such folder")
    if not folder.sweep.is_file():
        raise RunFolderError(f"{root}: holds no sweep: sweep.toml is missing")
    return folder


def open_folder(root: StrPath) -> RunFolder:
    """Returns the paths of a folder that a run has left.

    Args:
      root: the folder.

    Raises:
      RunFolderError: if there is no run in it.
    """
    folder = run_folder(root)
    if not folder.root.is_dir():
        raise RunFolderError(f"{root}: no such folder")
    if not folder.config.is_file():
        raise RunFolderError(f"{root}: holds no run: config.toml is missing")
    return folder


def default_folder(name: str, seed: int, *, base: StrPath = "runs") -> Path:
    """Returns the first free one of ``base/name-seed``, ``base/name-seed-2``, ...

    Args:
      name: of the preset or configuration file.
      seed: of the run.
      base: folder that holds the runs.
    """
    first = Path(base) / f"{name}-{seed}"
    folder, number = first, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


@contextlib.contextmanager
def locked(folder: RunFolder | SweepFolder) -> Iterator[None]:
    """Holds a folder for this process; the system frees it when the process dies.

    Temporary files that a killed process left in the folder are removed.

    Args:
      folder: an existing folder.

    Yields:
      Nothing.

    Raises:
      RunFolderError: if another process holds it.
    """
    with clear_errors(folder.lock), open(folder.lock, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(
                f"{folder.root}: another process runs in this folder: wait for it, end "
                "it, or name another (--out FOLDER)"
            ) from error
        for leftover in folder.root.glob(f".*{files.TEMPORARY}"):
            leftover.unlink(missing_ok=True)
        yield


def require_free_space(folder: StrPath, num_bytes: int):
    """Refuses to start on a disk that is too small.

    Args:
      folder: a folder, or one that will be created.
      num_bytes: bytes that the run will write.

    Raises:
      RunFolderError: with the free and the needed size.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise RunFolderError(
            f"{folder}: {num_bytes / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB "
            "are free: free some space, or name a folder on another disk (--out FOLDER)"
        )


@contextlib.contextmanager
def tell_warnings(
    progress: Progress, category: type[Warning]
) -> Iterator[dict[str, type[Warning]]]:
    """Tells warnings of a kind as messages, each once, when the block has ended.

    Args:
      progress: told ``warning: ...``.
      category: which warnings; others are warned of as usual.

    Yields:
      The text of each that was told -> its class, filled when the block has ended.
    """
    told: dict[str, type[Warning]] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", category)
        yield told
    for one in caught:
        if not issubclass(one.category, category):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        elif str(one.message) not in told:
            told[str(one.message)] = one.category
            progress.on_message(f"warning: {one.message}")


@contextlib.contextmanager
def clear_errors(path: StrPath) -> Iterator[None]:
    """Turns a full disk into one clear line.

    Args:
      path: what is being written, for the message.

    Yields:
      Nothing.

    Raises:
      RunFolderError: in place of an OSError that says that the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise RunFolderError(
            f"{path}: the disk is full: free some space, then resume the run"
        ) from error


def write_bytes(path: StrPath, data: bytes):
    """Replaces a file atomically.

    Args:
      path: the file; its folder exists.
      data: its new content.

    Raises:
      RunFolderError: if the disk is full; the old file then stands as it was.
    """
    with clear_errors(path):
        files.write_bytes(path, data)


def write_text(path: StrPath, text: str):
    """Replaces a text file atomically; see ``write_bytes``.

    Args:
      path: the file; its folder exists.
      text: its new content, written as UTF-8.
    """
    write_bytes(path, text.encode())


def write_json(path: StrPath, value: Any):
    """Replaces a JSON file atomically; NaN and infinities become null.

    Args:
      path: the file; its folder exists.
      value: anything that ``canonical_json`` takes.
    """
    write_bytes(path, (canonical_json(value) + "\n").encode())


def file_sha256(path: StrPath) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits.

    Args:
      path: the file.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Sequence[StrPath]) -> str:
    """Returns one SHA-256 of several files: that of the only one, or of all digests.

    Args:
      paths: the files, in an order that does not change.
    """
    digests = [file_sha256(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def canonical_json(value: Any, *, non_finite: str = "null") -> str:
    """Writes JSON in one form: sorted keys, no spaces, floats that read back exactly.

    Args:
      value: dicts, lists, tuples, text, numbers, None; NumPy and JAX scalars and
        arrays become numbers and lists.
      non_finite: "null" writes NaN and infinities as null, "refuse" raises.

    Returns:
      One line.

    Raises:
      ValueError: for a number that is not finite, if refused.
    """
    tree = _plain(value, non_finite == "null")
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def append_jsonl(path: StrPath, rows: Iterable[Any], *, durable: bool = False):
    """Appends lines and hands them to the system before it returns.

    Args:
      path: the file; created where absent.
      rows: one object a line.
      durable: also wait for the disk (a power cut, not only a kill).

    Raises:
      RunFolderError: if the disk is full.
    """
    text = "".join(canonical_json(row) + "\n" for row in rows)
    with clear_errors(path), open(path, "ab") as file:
        file.write(text.encode())
        file.flush()
        if durable:
            os.fsync(file.fileno())


def read_json(path: StrPath) -> Any:
    """Reads a JSON file.

    Args:
      path: the file.

    Raises:
      RunFolderError: if it is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error


def read_jsonl(path: StrPath) -> list[Any]:
    """Reads a JSONL file; a last line that a kill has cut short is left out.

    Args:
      path: the file; an absent one has no lines.

    Returns:
      One object a line.

    Raises:
      RunFolderError: if any other line is not JSON.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows = []
    # What follows the last newline was never finished, even if it happens to parse.
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RunFolderError(f"{path}: line {number} is damaged") from error
    return rows


def truncate_jsonl(path: StrPath, keep: Callable[[Any], bool]) -> int:
    """Drops lines atomically, such as those of rounds after the last checkpoint.

    Args:
      path: the file; an absent one stays absent.
      keep: says of each object whether it stays.

    Returns:
      Lines that stay.

    Raises:
      RunFolderError: if a line other than the last is not JSON.
    """
    path = Path(path)
    if not path.exists():
        return 0
    lines = path.read_bytes().split(b"\n")[:-1]
    kept = [
        line for line, row in zip(lines, read_jsonl(path), strict=True) if keep(row)
    ]
    # Lines are copied as they stand, so that what stays keeps its bytes.
    write_bytes(path, b"".join(line + b"\n" for line in kept))
    return len(kept)


def environment(**extra: Any) -> dict[str, Any]:
    """Returns what a result may depend on beside its configuration.

    Args:
      **extra: further entries, such as devices.

    Returns:
      Versions, platform and processors; no host name, user or path.
    """
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "usable_cpus": len(affinity(0)) if affinity else os.cpu_count(),
        "packages": versions,
        **extra,
    }


def _plain(value: Any, null: bool) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item, null) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, null) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), null)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        if null:
            return None
        raise ValueError(f"{value} has no place in JSON")
    return value
