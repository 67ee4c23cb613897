"""A run as TensorBoard's event file, by the writer of the ``tensorboard`` package.

The file has one name, so that a second report replaces the first. TensorBoard's own
``EventFileWriter`` would add a file at every call, named by the host.
"""

import io
import os
import struct
from pathlib import Path
from typing import Any

from fedjax_health import records
from fedjax_health.report.figures import Number
from fedjax_health.report.records import View, numbers_of

FILE = "events.out.tfevents.fedjax_health"
VALIDATION = "validation_"


class MissingExtraError(ValueError):
    """A package of an extra that is not installed; the text says how to get it."""


def require():
    """Refuses to go on without the ``tensorboard`` package.

    Raises:
      MissingExtraError: if it is not installed.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "tensorboard is not installed: pip install 'fedjax-health[tensorboard]'"
        ) from error


def write_events(
    view: View,
    folder: str | os.PathLike[str],
    *,
    pictures: dict[str, bytes],
    started: float,
) -> Path:
    """Writes scalars by round, the final figures and the pictures.

    Scalars of ``metrics.jsonl`` come under ``training/`` and ``validation/``, clients
    per second under ``timings/``, final figures under ``test/`` and pictures under
    ``figures/``, the last two at the round of the model that they belong to.

    Args:
      view: what was read.
      folder: created where absent.
      pictures: name -> PNG.
      started: seconds since 1970 at which the run began.

    Returns:
      The event file.

    Raises:
      MissingExtraError: if the ``tensorboard`` package is not installed.
    """
    require()
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    # Their names are made when these modules are imported.
    event_of: Any = vars(event_pb2)["Event"]
    summary_of: Any = vars(summary_pb2)["Summary"]
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)

    def write(step: int, values: list[Any]):
        event = event_of(
            wall_time=started + _elapsed(view, step),
            step=step,
            summary=summary_of(value=values),
        )
        writer.write(event.SerializeToString())

    writer.write(
        event_of(wall_time=started, file_version="brain.Event:2").SerializeToString()
    )
    for step, scalars in _scalars(view).items():
        values = [summary_of.Value(tag=t, simple_value=v) for t, v in scalars.items()]
        write(step, values)
    last = _final_step(view)
    final = [
        summary_of.Value(tag=f"test/{name}", simple_value=value)
        for name, value in _final(view).items()
        if value is not None
    ]
    images = [
        summary_of.Value(tag=f"figures/{name}", image=_image(summary_of.Image, picture))
        for name, picture in pictures.items()
    ]
    write(last, final + images)
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_bytes(path, buffer.getvalue())
    return path


def _scalars(view: View) -> dict[int, dict[str, float]]:
    """Returns round -> tag -> number, in the order of the rounds."""
    names = sorted({name for row in view.rounds for name in row} - {"round"})
    table: dict[int, dict[str, float]] = {}
    for name in names:
        tag = (
            f"validation/{name.removeprefix(VALIDATION)}"
            if name.startswith(VALIDATION)
            else f"training/{name}"
        )
        for step, value in zip(*numbers_of(view, name), strict=True):
            table.setdefault(int(step), {})[tag] = float(value)
    for line in view.timings:
        speed, step = line.get("clients_per_s"), line.get("round")
        if isinstance(speed, int | float) and isinstance(step, int):
            table.setdefault(step, {})["timings/clients_per_s"] = float(speed)
    return dict(sorted(table.items()))


def _final(view: View) -> dict[str, Number]:
    if view.figures is not None and view.figures.metrics:
        return dict(view.figures.metrics)
    values = view.result.get("metrics")
    return {
        name: value
        for name, value in (values if isinstance(values, dict) else {}).items()
        if isinstance(value, int | float)
    }


def _final_step(view: View) -> int:
    for name in ("best_round", "rounds"):
        if isinstance(view.result.get(name), int):
            return view.result[name]
    return 0


def _elapsed(view: View, step: int) -> float:
    """Returns the seconds of training up to a round, by the segments that are done."""
    keys = ("training_s", "evaluation_s", "checkpoint_s")
    seconds = 0.0
    for line in view.timings:
        at = line.get("round")
        if isinstance(at, int) and at <= step:
            seconds += sum(v for k in keys if isinstance(v := line.get(k), int | float))
    return seconds


def _image(image: Any, picture: bytes) -> Any:
    # Width and height are the first two numbers of a PNG's first chunk.
    width, height = struct.unpack(">II", picture[16:24])
    return image(height=height, width=width, colorspace=4, encoded_image_string=picture)
