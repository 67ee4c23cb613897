"""A table so small that a whole run takes seconds, and the runs made from it."""

import contextlib
from pathlib import Path

import jax
import numpy as np

from fedjax_health import records, training
from fedjax_health.config import Config, parse
from fedjax_health.engine import checkpoint
from fedjax_health.training.best import no_best
from fedjax_health.training.result import scoring_view
from fedjax_health.training.run import Saved, initial_state
from fedjax_health.training.setup import prepare_run

CLIENTS, ENTITIES, ROWS = 4, 2, 120
COLUMNS = ("load", "rate", "noise")

SETTINGS = """
rounds = 4
devices = 1

[data]
kind = "table"
client = "site"
entity = "device"
time = "minute"
path = "{path}"

[split]
scope = "entity"

[window]
length = 5
stride = 5

[model]
kind = "gru"
hidden = 4

[local]
batch_size = 16

[local.optimizer]
learning_rate = 0.5

[evaluation]
every = 2

[checkpoint]
every = 2
keep = 2
"""


def table_lines(*, seed: int = 7) -> list[str]:
    """Returns a CSV of streams in which attacks of 8 rows come every 30 rows."""
    rng = np.random.default_rng(seed)
    lines = ["site,device,minute,load,rate,noise,label"]
    for site in range(CLIENTS):
        for device in range(ENTITIES):
            attack = (np.arange(ROWS) - 3 * site) % 30 < 8
            values = rng.normal(size=(ROWS, len(COLUMNS)))
            values[:, 0] += 1.5 * attack
            values[:, 1] -= attack
            for minute in range(ROWS):
                cells = ",".join(f"{value:.4f}" for value in values[minute])
                lines.append(f"s{site},d{device},{minute},{cells},{attack[minute]:d}")
    return lines


def write_table(path: Path, lines: list[str] | None = None) -> Path:
    """Writes the lines, those of ``table_lines`` where absent."""
    chosen = table_lines() if lines is None else lines
    path.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return path


def settings(path: Path) -> str:
    """Returns the configuration of a run on a table, TOML."""
    return SETTINGS.format(path=path)


def config(path: Path, *overrides: str) -> Config:
    """Returns the same as a record."""
    return parse(settings(path), overrides)


class Run:
    """A finished run: its result, its files and what it said."""

    def __init__(self, config: Config, root: Path):
        self.config = config
        self.messages: list[str] = []
        self.paths = records.run_folder(root)
        self.result = training.train(config, root, self.progress)

    @property
    def progress(self) -> records.Progress:
        return records.SILENT._replace(on_message=self.messages.append)

    @property
    def lines(self) -> list[dict]:
        return records.read_jsonl(self.paths.metrics)

    def bytes(self) -> dict[str, bytes]:
        """Everything of the run that must not depend on how it was computed."""
        return kept_bytes(self.paths)


def kept_bytes(paths: records.RunFolder) -> dict[str, bytes]:
    """Returns the files of a run folder that hold no wall times."""
    files = (
        paths.metrics,
        paths.predictions,
        paths.figures,
        paths.model,
        paths.detector,
        paths.result,
    )
    return {file.name: file.read_bytes() for file in files}


class InterruptedRunError(Exception):
    """Ends a run as if its process had died between two rounds."""


def interrupt(config: Config, root: Path, *, after: int) -> records.RunFolder:
    """Trains until the first segment that ends at round ``after`` or later."""

    def on_round(*, round: int, **_):
        if round >= after:
            raise InterruptedRunError

    with contextlib.suppress(InterruptedRunError):
        training.train(config, root, records.SILENT._replace(on_round=on_round))
    return records.run_folder(root)


def saved(config: Config, paths: records.RunFolder) -> Saved:
    """Returns the newest checkpoint."""
    prepared = prepare_run(config, records.SILENT)
    state = initial_state(prepared)
    target = Saved(state, no_best(scoring_view(prepared, state)))
    restored = checkpoint.restore_latest(paths.checkpoints, target)
    assert restored is not None
    return restored.tree


def saved_numbers(config: Config, paths: records.RunFolder) -> list[bytes]:
    """Returns every leaf of the newest checkpoint: state and best model."""
    tree = saved(config, paths)
    key = jax.random.key_data(tree.state.key)
    leaves = jax.tree.leaves((tree.state._replace(key=key), tree.best))
    return [np.asarray(leaf).tobytes() for leaf in leaves]
