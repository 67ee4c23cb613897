"""A sweep on the tiny table, its cells and a folder made by hand."""

from pathlib import Path

from fedjax_health.config.sweep import Sweep, load_sweep
from fedjax_health.sweep.run import SweepProgress
from tests import tiny

AXES = """
[cell]
model = { kind = "mlp", hidden = [4] }
window = { length = 1, stride = 1 }

[axes]
seed = [0, 1]
malicious = [0.0, 0.25]

[axes.defence.mean]
aggregator = "mean"

[axes.defence."centred clipping"]
aggregator = "centered_clip"
tune = { "aggregator.radius" = [0.001, 10.0] }

[axes.attack."no attack"]
clean = true

[axes.attack."sign flip"]
attack = { kind = "sign_flip", scale = 3.0 }

[axes.attack.ipm]
attack = "ipm"
"""


def write(folder: Path, axes: str = AXES) -> Path:
    """Writes table, base and sweep; returns the sweep's file."""
    table = tiny.write_table(folder / "ward.csv")
    base = folder / "base.toml"
    base.write_text(tiny.settings(table), encoding="utf-8")
    path = folder / "grid.toml"
    path.write_text(f'base = "{base}"\n{axes}', encoding="utf-8")
    return path


def load(
    folder: Path, *overrides: str, axes: str = AXES, axes_given=(), **options
) -> Sweep:
    """Returns the sweep on a table in a folder."""
    return load_sweep(write(folder, axes), overrides, axes=axes_given, **options)


class Heard:
    """What a sweep told."""

    def __init__(self, stop_after: int | None = None):
        self.messages: list[str] = []
        self.cells: list[str] = []
        self.done = 0
        self._stop_after = stop_after

    @property
    def progress(self) -> SweepProgress:
        return SweepProgress(self._start, self._cell, self.messages.append)

    def _start(self, *, cells, done):
        self.total, self.done = cells, done

    def _cell(self, *, cell, record, seconds, done, cells):
        del record, seconds, done, cells
        self.cells.append(cell.key)
        if len(self.cells) == self._stop_after:
            raise KeyboardInterrupt
