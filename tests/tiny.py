"""A table so small that a whole run takes seconds, and the runs made from it."""

from pathlib import Path

import numpy as np

from fedjax_health import records, training
from fedjax_health.config import Config, parse

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
    files = (paths.metrics, paths.predictions, paths.result)
    return {file.name: file.read_bytes() for file in files}
