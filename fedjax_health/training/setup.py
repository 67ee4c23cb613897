"""What a run is made of before its first round."""

from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_health
from fedjax_health import build, records
from fedjax_health.config import Config, Custom, HospitalSim, config_hash
from fedjax_health.core import trees
from fedjax_health.core.rng import root_key
from fedjax_health.data.hospital_sim import VERSION
from fedjax_health.data.leakcheck import LeakReport
from fedjax_health.data.preprocess import summary
from fedjax_health.data.schema import Dataset, DataWarning, dataset_sha256
from fedjax_health.engine.devices import available_cores
from fedjax_health.records import Progress
from fedjax_health.training.account import privacy_messages

# A run folder's lines, predictions and settings beside its checkpoints.
SMALL_FILES = 32 << 20


class Run(NamedTuple):
    """A configuration with all that was built from it.

    Attributes:
      config: the configuration.
      prepared: its data.
      built: its detector and algorithm.
      data_version: what tells changed data.
      leaks: what the leak check found, or None where it was not asked for.
      warnings: what looked wrong in the data, apart from what the leak check says.
    """

    config: Config
    prepared: build.Prepared
    built: build.Built
    data_version: str
    leaks: LeakReport | None = None
    warnings: tuple[str, ...] = ()


def prepare_run(config: Config, progress: Progress, *, leaks: bool = False) -> Run:
    """Builds everything that a configuration names; nothing is trained.

    Args:
      config: the configuration.
      progress: told the size of things, and of every leak check that fails.
      leaks: whether the data is searched for what gives the label away.
    """
    named = build.name_files(config)
    if named is not None:
        progress.on_message(f"reading {named}")
    with records.tell_warnings(progress, DataWarning) as told:
        dataset = build.build_dataset(config)
        prepared = build.prepare(config, dataset)
    if not leaks:
        # A check says the same.
        with records.tell_warnings(progress, DataWarning) as repeats:
            build.warn_of_repeats(config, dataset)
        # A resumed run has checked before: its result is that of one go.
        told |= {} if config.leakcheck else repeats
    train_part, population = summary(prepared.parts.train), prepared.store.num_clients
    held_out = train_part.num_clients - population
    progress.on_message(
        f"data: {dataset.num_rows:,} rows, {population:,} clients"
        + (f" and {held_out:,} held out, " if held_out else ", ")
        + f"{100 * float(np.mean(dataset.label)):.1f} % positive; "
        f"{prepared.store.num_examples:,} training examples"
    )
    if train_part.single_class_clients:
        progress.on_message(
            f"{len(train_part.single_class_clients)} of {population} "
            "clients have one class only in training"
        )
    found = build.find_leaks(config, dataset, prepared.split) if leaks else None
    for check in found.checks if found is not None else ():
        if not check.passed:
            progress.on_message(f"warning: leak check, {check.check}: {check.message}")
    with records.tell_warnings(progress, DataWarning) as told_later:
        built = build.build(config, prepared)
    progress.on_message(f"clients: {built.algorithm.parallelism}")
    for text in privacy_messages(config, built, prepared.store):
        progress.on_message(text)
    said = tuple(dict.fromkeys((*told, *told_later)))
    return Run(config, prepared, built, data_version(config, dataset), found, said)


def data_version(config: Config, dataset: Dataset | None = None) -> str:
    """Returns what tells changed data: a SHA-256, or the version of the generator.

    Args:
      config: which names the data.
      dataset: what was built from it; only data of one's own is looked into, and
        built where it is absent.
    """
    match config.data:
        case HospitalSim():
            return f"hospital_sim {VERSION}"
        case Custom():
            return dataset_sha256(dataset or build.build_dataset(config))
    return records.files_sha256(build.data_files(config))


def machine(run: Run) -> dict[str, Any]:
    """Returns what the bits of a run may depend on beside its configuration."""
    return {
        "devices": jax.local_device_count(),
        "platform": jax.default_backend(),
        "processes": jax.process_count(),
        "threads": available_cores(),
        "parallelism": run.built.algorithm.parallelism,
    }


def run_context(run: Run) -> dict[str, Any]:
    """Returns what must hold, or is warned about, when a checkpoint is used again."""
    return {
        "config": config_hash(run.config),
        "data": run.data_version,
        **machine(run),
        "jax": jax.__version__,
        "fedjax_health": fedjax_health.__version__,
    }


def state_bytes(run: Run) -> int:
    """Returns the bytes of a run's state on one device."""
    state = jax.eval_shape(
        run.built.algorithm.init,
        root_key(run.config.seed),
        run.built.abstract_params,
    )
    return trees.num_bytes(state._replace(key=()))


def disk_bytes(run: Run) -> int:
    """Returns the bytes that a run folder may grow to."""
    # A checkpoint holds the state and the best model; one more is written than kept.
    one = 2 * state_bytes(run)
    test = run.prepared.parts.test.num_rows * 64
    return one * (run.config.checkpoint.keep + 1) + test + SMALL_FILES
