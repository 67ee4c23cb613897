"""One function per subcommand; heavy imports happen inside."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from fedjax_health import records


class Outcome(NamedTuple):
    """What a command leaves for the user.

    Attributes:
      result: the object that ``--json`` prints.
      show: writes the same for a person.
    """

    result: dict[str, Any]
    show: Callable[[TextIO], None]


def run_command(options: argparse.Namespace) -> Outcome:
    """Runs the command that was asked for.

    Args:
      options: what ``parse_flags`` returned.

    Returns:
      Its result.
    """
    match options.command:
        case "run":
            return run(options)
        case "resume":
            return resume(options)
        case "sweep":
            return sweep(options)
        case "plan":
            return plan(options)
        case "evaluate":
            return evaluate(options)
        case "report":
            return report(options)
        case "leakcheck":
            return leakcheck(options)
        case "privacy":
            return privacy(options)
        case "audit":
            return audit(options)
        case "generate":
            return generate(options)
        case "presets":
            return presets(options)
    raise ValueError(f"unknown command {options.command!r}")


def run(options: argparse.Namespace) -> Outcome:
    """Trains a detector in a new run folder.

    Args:
      options: config, overrides, seed, out and the device options.

    Returns:
      Final metrics and the folder.
    """
    config = _load(options)
    name = config_name(options.config)
    folder = Path(options.out or records.default_folder(name, config.seed))
    records.check_unused(folder)
    _check_files(config)
    _prepare(options, config.devices)

    from fedjax_health import training

    return _watch(
        lambda progress: training.train(config, folder, progress), folder, options
    )


def resume(options: argparse.Namespace) -> Outcome:
    """Goes on with a run from its last good checkpoint, or with a sweep.

    Args:
      options: folder, workers and the device options.

    Returns:
      Final metrics and the folder.
    """
    if records.sweep_folder(options.folder).sweep.is_file():
        from fedjax_health.cli import sweep as sweeps

        return _swept(sweeps.go_on(options), options)
    from fedjax_health.config import load

    folder = records.open_folder(options.folder)
    _prepare(options, load(folder.config).devices or _devices_before(folder))

    from fedjax_health import training

    return _watch(
        lambda progress: training.resume(folder.root, progress), folder.root, options
    )


def sweep(options: argparse.Namespace) -> Outcome:
    """Measures a grid of configurations in a new folder.

    Args:
      options: config, overrides, base, only, out, workers and the device options.

    Returns:
      How the cells ended, and where results lie.
    """
    from fedjax_health.cli import sweep as sweeps

    return _swept(sweeps.start(options), options)


def _swept(result: dict[str, Any], options: argparse.Namespace) -> Outcome:
    shown = _with_report(result, result["folder"], options)
    return Outcome(shown, lambda stream: _show().tree(shown, stream))


def plan(options: argparse.Namespace) -> Outcome:
    """Describes a run without running it.

    Args:
      options: config, overrides, seed and the device options.

    Returns:
      Stages, message, bytes, memory and mapping.
    """
    config = _load(options)
    _check_files(config)
    _prepare(options, config.devices)

    from fedjax_health import training

    description = training.describe(config)
    return Outcome(description, lambda stream: _show().tree(description, stream))


def evaluate(options: argparse.Namespace) -> Outcome:
    """Scores new data with the detector of a finished run.

    Args:
      options: folder, data, out and the device options.

    Returns:
      Metrics where the data has labels, and where scores and alarms lie.
    """
    from fedjax_health.config import load

    folder = records.open_folder(options.folder)
    config = load(folder.config)
    _check_new_files(config, options.data)
    _prepare(options, config.devices or _devices_before(folder))

    from fedjax_health.cli.progress import build_progress
    from fedjax_health.evaluate import evaluate as score

    progress = build_progress()
    try:
        result = score(folder.root, options.data, progress, out=options.out)
    finally:
        progress.on_end()
    shown = _with_report(result, result["folder"], options)
    return Outcome(shown, lambda stream: _show().result(shown, stream))


def report(options: argparse.Namespace) -> Outcome:
    """Writes the report of a finished run or of an evaluation.

    Args:
      options: folder, out and tensorboard.

    Returns:
      The page, the figures, its sections and what is left out.
    """
    from fedjax_health.report import write_report

    events = options.tensorboard
    if events == "":
        events = Path(options.folder) / "tensorboard"
    result = write_report(options.folder, out=options.out, tensorboard=events)
    return Outcome(result, lambda stream: _show().tree(result, stream))


def leakcheck(options: argparse.Namespace) -> Outcome:
    """Says what gives the label away; the exit code is 0 whatever it is.

    Args:
      options: path, config, overrides and seed.

    Returns:
      The checks and every column.
    """
    from fedjax_health.cli.leakcheck import check, present

    result = check(options)
    return Outcome(result, lambda stream: present(result, stream))


def privacy(options: argparse.Namespace) -> Outcome:
    """Says what is protected, against whom, how much and over how long.

    Args:
      options: folder, config, overrides, seed, population, numbers and plot.

    Returns:
      The guarantee, epsilon over rounds, and noise for a target.
    """
    from fedjax_health.cli.privacy import answer, present

    result = answer(options)
    return Outcome(result, lambda stream: present(result, stream))


def audit(options: argparse.Namespace) -> Outcome:
    """Attacks a finished run; the exit code is 0 whatever is found.

    Args:
      options: folder, shadows, canaries, rounds, seed and the device options.

    Returns:
      Every attack with its threat model and figure, and where the page lies.
    """
    from fedjax_health.config import load

    folder = records.open_folder(options.folder)
    _prepare(options, load(folder.config).devices or _devices_before(folder))

    from fedjax_health.cli.audit import attack, present

    result = attack(options)
    return Outcome(result, lambda stream: present(result, stream))


def generate(options: argparse.Namespace) -> Outcome:
    """Writes the embedded data to a file, and a configuration that reads it.

    Args:
      options: config, overrides, seed, out and the device options.

    Returns:
      The file, its size and its configuration.
    """
    from fedjax_health.config import ConfigError, HospitalSim, simulation_settings

    config = _load(options)
    if not isinstance(config.data, HospitalSim):
        raise ConfigError(
            "config: data: generate writes the embedded data only: "
            "add --set data=hospital_sim"
        )
    from fedjax_health.cli.generate import check_output, write_simulation

    default = f"{config_name(options.config)}-{config.seed}.parquet"
    path = check_output(options.out or default)
    _prepare(options, config.devices)
    settings = simulation_settings(config.data)
    result = write_simulation(settings, config.seed, path)
    return Outcome(result, lambda stream: _show().tree(result, stream))


def presets(options: argparse.Namespace) -> Outcome:
    """Lists the presets, or prints one as TOML.

    Args:
      options: the name, or None.

    Returns:
      Names and summaries, or one preset's text.
    """
    from fedjax_health.config import (
        preset_names,
        preset_summary,
        preset_text,
        sweep_names,
    )

    if options.name:
        text = preset_text(options.name)
        return Outcome(
            {"name": options.name, "toml": text}, lambda stream: _write(stream, text)
        )
    runs, sweeps = (
        [{"name": n, "summary": preset_summary(n)} for n in names]
        for names in (preset_names(), sweep_names())
    )

    def show(stream: TextIO):
        for title, rows in (("run --config", runs), ("sweep --config", sweeps)):
            named = [{title: row["name"], **row} for row in rows]
            _show().rows(named, (title, "summary"), stream)

    return Outcome({"presets": runs, "sweeps": sweeps}, show)


def config_name(config: str) -> str:
    """Returns the name that a run of this configuration gets.

    Args:
      config: a file or the name of a preset.
    """
    return Path(config).name.removesuffix(".toml") or "run"


def _load(options: argparse.Namespace):
    from fedjax_health.config import load

    return load(options.config, options.overrides, seed=options.seed)


def _check_files(config):
    # A misspelt path need not wait for jax to start.
    from fedjax_health import build

    build.check_files(config)


def _check_new_files(config, path: str):
    from fedjax_health import build

    build.check_evaluation_files(config, path)


def _prepare(options: argparse.Namespace, devices: int | None):
    from fedjax_health.cli.startup import prepare_jax

    prepare_jax(
        devices=options.device_count or devices,
        cache_dir=options.cache_dir,
        no_cache=options.no_cache,
    )


def _devices_before(folder: records.RunFolder) -> int | None:
    """Returns the CPU devices that a run was started with, None if unknown."""
    environment = records.read_json(folder.environment)
    return environment.get("devices") if environment.get("platform") == "cpu" else None


def _watch(
    work: Callable[[records.Progress], dict[str, Any]],
    folder: Path,
    options: argparse.Namespace,
) -> Outcome:
    """Runs training with progress on stderr; an interrupt says how to go on."""
    from fedjax_health.cli.progress import build_progress

    progress = build_progress()
    try:
        result = work(progress)
    except KeyboardInterrupt:
        if records.run_folder(folder).config.is_file():
            way_out = f"go on with: fedjax-health resume {folder}"
        else:
            way_out = "nothing was trained yet"
        raise KeyboardInterrupt(f"interrupted; {way_out}") from None
    finally:
        progress.on_end()
    shown = _with_report(result, folder, options)
    return Outcome(shown, lambda stream: _show().result(shown, stream))


def _with_report(
    result: dict[str, Any], folder: str | Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Adds the page to a result, which must not be lost if no page can be written."""
    if options.no_report:
        return result
    from fedjax_health.report import write_report

    try:
        page = write_report(folder)["report"]
    except records.RunFolderError as error:
        print(f"fedjax-health: no report: {error}", file=sys.stderr)
        return result
    return {**result, "report": str(page)}


def _write(stream: TextIO, text: str):
    stream.write(text)


def _show():
    from fedjax_health.cli import show

    return show
