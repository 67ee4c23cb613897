"""The command ``sweep``: options become a grid, and its cells lines on stderr."""

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from fedjax_health import records
from fedjax_health.config.sweep import Cell, load_sweep, parse_sweep
from fedjax_health.sweep.run import (
    Setup,
    SweepProgress,
    cells_left,
    measure_cells,
    read_cells,
    resume_sweep,
    run_sweep,
)
from fedjax_health.sweep.workers import SweepError

# What a process of its own takes beside its data, roughly.
WORKER_BYTES = 2 << 30


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Runs a sweep in a new folder.

    Args:
      options: config, overrides, base, axes, only, out, workers and the device
        options.

    Returns:
      See ``run_sweep``.
    """
    sweep = load_sweep(
        options.config,
        options.overrides,
        base=options.base,
        axes=options.axes,
        only=options.only,
    )
    name = Path(options.config).name.removesuffix(".toml") or "sweep"
    folder = Path(options.out or records.default_folder(name, 0))
    records.check_unused(folder)
    workers, devices = crew(options, cells_left(sweep, {}))
    return _watch(
        lambda progress, make: run_sweep(
            sweep, folder, progress, workers=workers, make_measure=make
        ),
        folder,
        options,
        devices,
    )


def go_on(options: argparse.Namespace) -> dict[str, Any]:
    """Goes on with a sweep.

    Args:
      options: folder, workers and the device options.

    Returns:
      See ``resume_sweep``.
    """
    paths = records.open_sweep_folder(options.folder)
    sweep = parse_sweep(paths.sweep.read_text(encoding="utf-8"))
    workers, devices = crew(options, cells_left(sweep, read_cells(paths)))
    return _watch(
        lambda progress, make: resume_sweep(
            options.folder, progress, workers=workers, make_measure=make
        ),
        paths.root,
        options,
        devices,
    )


def _watch(work, folder: Path, options: argparse.Namespace, devices: int):
    from fedjax_health.cli.startup import prepare_cache

    cache = prepare_cache(options.cache_dir, no_cache=options.no_cache)
    make = functools.partial(measure_cells, Setup(devices, cache))
    try:
        return _with_figures(work(lines(sys.stderr), make))
    except KeyboardInterrupt:
        if records.sweep_folder(folder).sweep.is_file():
            way_out = f"go on with: fedjax-health resume {folder}"
        else:
            way_out = "nothing was measured yet"
        raise KeyboardInterrupt(f"interrupted; {way_out}") from None


def _with_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Refuses the result of a sweep that has measured nothing."""
    if result["cells"].keys() & {"done", "diverged"}:
        return result
    reasons = "; ".join(result.get("failures", ()))
    raise SweepError(f"{result['folder']}: no cell has figures: {reasons}")


def crew(options: argparse.Namespace, cells: Sequence[Cell]) -> tuple[int, int]:
    """Returns how many processes measure cells, and the CPU devices of each.

    Args:
      options: workers and device_count, None where they are not given.
      cells: those that are left.
    """
    from fedjax_health.engine.devices import available_cores

    workers = max(1, min(_most_workers(options), len(cells)))
    if options.device_count:
        return workers, options.device_count
    alone = 1 if workers > 1 else min(available_cores(), 8)
    # A mesh is made of devices that are there.
    return workers, max([alone, *(cell.config.devices or 1 for cell in cells)])


def _most_workers(options: argparse.Namespace) -> int:
    if options.workers is not None:
        return options.workers
    from fedjax_health.engine.devices import available_cores, available_memory

    free = available_memory()
    fitting = available_cores() if free is None else max(1, free // WORKER_BYTES)
    return int(min(available_cores(), fitting))


def lines(stream: TextIO, *, clock=time.monotonic) -> SweepProgress:
    """Returns callbacks that write one line a cell.

    Args:
      stream: where they go.
      clock: seconds.
    """
    state = {"start": 0.0, "first": 0}

    def on_start(*, cells: int, done: int):
        state.update(start=clock(), first=done)
        known = f", {done} of them done already" if done else ""
        _say(stream, f"{cells} different cells{known}")

    def on_cell(*, cell, record, seconds: float, done: int, cells: int):
        now = done - state["first"]
        left = (clock() - state["start"]) / max(now, 1) * (cells - done)
        named = ", ".join(f"{n}={v}" for n, v in cell.values.items())
        tuned = "".join(f", {n}={v}" for n, v in cell.tuned.items())
        _say(
            stream,
            f"{done}/{cells}  {named}{tuned}: {_outcome(record)}  "
            f"({seconds:.1f} s)  {_duration(left)} left",
        )

    def on_message(text: str):
        _say(stream, text)

    return SweepProgress(on_start, on_cell, on_message)


def _outcome(record: dict[str, Any]) -> str:
    if record["status"] != "done":
        return f"{record['status']}: {record['reason']}"
    return f"AUROC {record['final']['test']['auroc']:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(stream: TextIO, text: str):
    print(text, file=stream, flush=True)
