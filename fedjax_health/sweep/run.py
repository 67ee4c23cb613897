"""A sweep in a folder: cells are measured, each is kept, and a kill costs one cell.

``cells.jsonl`` has one line for each cell that is done, written before the next one
begins; everything else is made from it.
"""

import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from fedjax_health import records
from fedjax_health.config import Config, Custom
from fedjax_health.config.sweep import Cell, Sweep, parse_sweep
from fedjax_health.records import RunFolderError, SweepFolder
from fedjax_health.sweep.results import curves_table, failures, results_table
from fedjax_health.sweep.select import best_worst
from fedjax_health.sweep.workers import Task, run_groups


class SweepProgress(NamedTuple):
    """What a sweep tells while it runs; every entry is called by keyword.

    Attributes:
      on_start: ``(*, cells, done)``: how many there are, and how many are done.
      on_cell: ``(*, cell, record, seconds, done, cells)``: ``done`` of ``cells`` are.
      on_message: ``(text)``, for anything else that a person should read.
    """

    on_start: Callable[..., None]
    on_cell: Callable[..., None]
    on_message: Callable[[str], None]


class Setup(NamedTuple):
    """What a process needs before it measures; sent to every worker.

    Attributes:
      devices: CPU devices of the process; None leaves them as they are.
      cache: folder of compiled programs, or None for none.
    """

    devices: int | None
    cache: str | None


def run_sweep(
    sweep: Sweep,
    folder: str | os.PathLike[str],
    progress: SweepProgress,
    *,
    workers: int = 1,
    make_measure: Callable[[], Callable[[Any], dict[str, Any]]],
) -> dict[str, Any]:
    """Measures every cell of a sweep in a new folder.

    Args:
      sweep: from ``config.load_sweep``.
      folder: absent or empty.
      progress: told what happens.
      workers: processes that measure cells; 1 for this one.
      make_measure: called once in every process; see ``measure_cells``.

    Returns:
      Where things lie, how many cells ended how, and what failed.

    Raises:
      RunFolderError: if the folder is in use.
      DataError: if a file of data cannot be found; nothing is measured then.
      SweepError: if no process can measure anything.
    """
    _check_files(sweep)
    paths = records.create_sweep_folder(folder)
    with records.locked(paths):
        if workers <= 1:
            make_measure = _made(make_measure)
        about = records.environment(context=_context(sweep))
        records.write_json(paths.environment, about)
        # Last: with it there is a sweep to resume.
        records.write_text(paths.sweep, sweep.toml)
        return _go_on(sweep, paths, progress, workers, make_measure)


def resume_sweep(
    folder: str | os.PathLike[str],
    progress: SweepProgress,
    *,
    workers: int = 1,
    make_measure: Callable[[], Callable[[Any], dict[str, Any]]],
) -> dict[str, Any]:
    """Goes on with a sweep: done cells stay, failed ones are tried again.

    Args:
      folder: of the sweep.
      progress: told what happens.
      workers: processes that measure cells; 1 for this one.
      make_measure: called once in every process; see ``measure_cells``.

    Returns:
      As ``run_sweep``.

    Raises:
      RunFolderError: if there is no sweep, another process works on it, or the data
        of cells that are left has changed since.
      DataError, SweepError: as ``run_sweep``.
    """
    paths = records.open_sweep_folder(folder)
    sweep = parse_sweep(paths.sweep.read_text(encoding="utf-8"))
    with records.locked(paths):
        # A kill may leave half a line, and a cell that failed may do better now.
        records.truncate_jsonl(
            paths.cells, lambda line: line["record"]["status"] != "failed"
        )
        records.truncate_jsonl(paths.timings, lambda _: True)
        if cells_left(sweep, read_cells(paths)):
            _check_files(sweep)
            if workers <= 1:
                make_measure = _made(make_measure)
            _check_context(_context(sweep), paths, progress)
        return _go_on(sweep, paths, progress, workers, make_measure)


def _made(make_measure: Callable[[], Any]) -> Callable[[], Any]:
    """Makes it now: devices are asked for before data of one's own may start jax."""
    measure = make_measure()
    return lambda: measure


def _check_files(sweep: Sweep):
    """Refuses files that cannot be opened before a cell is measured."""
    from fedjax_health import build

    for config in _data_of(sweep).values():
        build.check_files(config)


def _data_of(sweep: Sweep) -> dict[str, Config]:
    """Returns one configuration for each data that cells name, as text."""
    return {
        records.canonical_json(msgspec.to_builtins(cell.config.data)): cell.config
        for cell in sweep.cells
    }


def _context(sweep: Sweep) -> dict[str, Any]:
    """Returns what must hold, or is warned about, when a sweep goes on."""
    import jax

    import fedjax_health

    return {
        "data": {text: _version(config) for text, config in _data_of(sweep).items()},
        "jax": jax.__version__,
        "fedjax_health": fedjax_health.__version__,
    }


def _version(config: Config) -> str | None:
    from fedjax_health.training.setup import data_version

    try:
        return data_version(config)
    except Exception:
        # Code of one's own raised something: its cells will say what.
        if isinstance(config.data, Custom):
            return None
        raise


def _check_context(now: dict[str, Any], paths: SweepFolder, progress: SweepProgress):
    """Refuses other data than the sweep began with, and tells other versions."""
    environment = records.read_json(paths.environment)
    then = environment.get("context", {})
    known = {n: v for n, v in then.get("data", {}).items() if v is not None}
    for text, version in now["data"].items():
        if version is not None and known.get(text, version) != version:
            raise RunFolderError(
                f"{paths.root}: the data has changed since the sweep was started: put "
                f"it back, or start a new sweep: {text}"
            )
    names = [name for name in ("jax", "fedjax_health") if then.get(name) != now[name]]
    if names:
        told = ", ".join(f"{name} {then.get(name)} -> {now[name]}" for name in names)
        progress.on_message(f"warning: bits may differ from the first cells: {told}")
        resumed = [*environment.get("resumed", []), {n: now[n] for n in names}]
        environment["resumed"] = resumed
    # What could not be told at the start is known from here on.
    environment["context"] = {**now, **then, "data": {**now["data"], **known}}
    records.write_json(paths.environment, environment)


# What the engine says of a run that diverges, after the way out.
_CHECKPOINT = "; the last checkpoint"


def measure_cells(setup: Setup) -> Callable[[Config], dict[str, Any]]:
    """Returns what measures configurations in this process.

    Args:
      setup: asked for before jax starts; without effect where it has.
    """
    from fedjax_health.engine.devices import enable_cache, use_cpu_devices

    if setup.devices is not None:
        use_cpu_devices(setup.devices)
    if setup.cache is not None:
        enable_cache(setup.cache)

    from fedjax_health.data.schema import DataWarning
    from fedjax_health.sweep.measure import Bench

    bench = Bench()

    def measure(config: Config) -> dict[str, Any]:
        clock = time.monotonic()
        with records.tell_warnings(records.SILENT, DataWarning) as told:
            try:
                record: dict[str, Any] = bench.measure(config)
            except Exception as error:
                # Whatever it is, the other cells do not depend on it.
                reason = f"{type(error).__name__}: {error}"
                record = {"status": "failed", "reason": reason}
        if told:
            record["warnings"] = list(told)
        if record["status"] == "diverged":
            # A sweep saves no checkpoint that one could go back to.
            record["reason"] = record["reason"].partition(_CHECKPOINT)[0]
        return {"record": record, "seconds": time.monotonic() - clock}

    return measure


def groups_of(cells: Iterable[Cell], *, at_least: int = 1) -> list[list[Task]]:
    """Returns the cells to measure, those of one structure together.

    Cells that compute the same occur once. A group shares compiled programs: its cells
    differ in numbers and seeds alone.

    Args:
      cells: those that are not done.
      at_least: groups that are wanted, so that no worker is idle: the largest are
        halved until there are as many, or one for each cell.
    """
    groups: dict[str, dict[str, Task]] = {}
    for cell in cells:
        group = groups.setdefault(_structure(cell.config), {})
        group.setdefault(cell.key, Task(cell.key, cell.config))
    found = [list(group.values()) for group in groups.values()]
    while len(found) < at_least:
        place = max(range(len(found)), key=lambda i: len(found[i]), default=None)
        if place is None or len(found[place]) < 2:
            break
        whole = found[place]
        half = (len(whole) + 1) // 2
        found[place : place + 1] = [whole[:half], whole[half:]]
    return found


def _structure(config: Config) -> str:
    def shape(value: Any) -> Any:
        match value:
            case dict():
                return {n: shape(v) for n, v in value.items()}
            case list() | tuple():
                return [shape(v) for v in value]
            case float():
                return None
        return value

    fields = msgspec.to_builtins(config)
    fields.pop("seed")
    # How many attack is traced, and how many a rule assumes is not.
    fields["malicious"] = [config.malicious, config.assumed_malicious]
    return json.dumps(
        {n: v if n == "malicious" else shape(v) for n, v in fields.items()},
        sort_keys=True,
    )


def _go_on(
    sweep: Sweep,
    paths: SweepFolder,
    progress: SweepProgress,
    workers: int,
    make_measure: Callable[[], Callable[[Any], dict[str, Any]]],
) -> dict[str, Any]:
    done = read_cells(paths)
    by_key = {cell.key: cell for cell in cells_left(sweep, {})}
    left = cells_left(sweep, done)
    progress.on_start(cells=len(by_key), done=len(by_key) - len(left))

    # Those of cells that are done were told when they were measured.
    warned = {text for record in done.values() for text in record.get("warnings", ())}

    def on_record(key: str, measured: dict[str, Any]):
        record, seconds = measured.get("record", measured), measured.get("seconds", 0.0)
        line = {"cell": key, "record": record}
        records.append_jsonl(paths.cells, [line], durable=True)
        # As it is read back, so that a sweep in one piece gives the same tables.
        record = json.loads(records.canonical_json(record))
        records.append_jsonl(paths.timings, [{"cell": key, "seconds": seconds}])
        done[key] = record
        for text in record.get("warnings", ()):
            if text not in warned:
                warned.add(text)
                progress.on_message(f"warning: {text}")
        progress.on_cell(
            cell=by_key[key],
            record=record,
            seconds=seconds,
            done=sum(k in done for k in by_key),
            cells=len(by_key),
        )

    groups = groups_of(left, at_least=workers)
    run_groups(groups, make_measure, on_record, workers=workers)
    return _finish(sweep, paths, done, progress)


def cells_left(sweep: Sweep, done: Mapping[str, dict[str, Any]]) -> list[Cell]:
    """Returns the cells that are to be measured, of equal ones the first.

    Args:
      sweep: the grid.
      done: key -> record; one that failed is tried again.
    """
    by_key: dict[str, Cell] = {}
    for cell in sweep.cells:
        # Of cells that compute the same, the first one lends its name.
        by_key.setdefault(cell.key, cell)
    return [
        cell
        for key, cell in by_key.items()
        if key not in done or done[key]["status"] == "failed"
    ]


def read_cells(paths: SweepFolder) -> dict[str, dict[str, Any]]:
    """Returns the records of the cells that are done, by their keys.

    Args:
      paths: of the sweep.
    """
    return {line["cell"]: line["record"] for line in records.read_jsonl(paths.cells)}


def _finish(
    sweep: Sweep,
    paths: SweepFolder,
    done: Mapping[str, dict[str, Any]],
    progress: SweepProgress,
) -> dict[str, Any]:
    """Writes the tables."""
    table = results_table(sweep, done)
    clean = [
        choice.value
        for axis in sweep.axes
        if axis.name == sweep.report.worst
        for choice in axis.choices
        if choice.clean
    ]
    chosen = best_worst(table, sweep.report, clean)
    table["selected"] = table.index.isin(_index_of(table, chosen))
    curves = curves_table(sweep, done)
    for frame, path in ((table, paths.results), (curves, paths.curves)):
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        records.write_bytes(path, buffer.getvalue())
    records.write_text(paths.results_csv, table.to_csv(index=False))
    records.write_json(
        paths.settings,
        {
            "axes": [
                {
                    "name": axis.name,
                    "values": [choice.value for choice in axis.choices],
                    "clean": [c.value for c in axis.choices if c.clean],
                }
                for axis in sweep.axes
            ],
            "report": msgspec.to_builtins(sweep.report),
        },
    )
    sentences = failures(table)
    for sentence in sentences:
        progress.on_message(f"warning: {sentence}")
    counts = table.drop_duplicates(subset=_names(table)).status.value_counts()
    return {
        "cells": {str(name): int(count) for name, count in sorted(counts.items())},
        **({"failures": list(sentences)} if sentences else {}),
        "results": str(paths.results),
        "folder": str(paths.root),
    }


def _names(table) -> list[str]:
    return list(table.columns[: table.columns.get_loc("tuned") + 1])


def _index_of(table, chosen):
    keys = _names(table)
    marked = table.merge(
        chosen[keys].drop_duplicates(), on=keys, how="left", indicator=True
    )
    return table.index[(marked["_merge"] == "both").to_numpy()]
