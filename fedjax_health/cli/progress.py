"""Live progress on a terminal, plain lines elsewhere; always on stderr."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from fedjax_health.records import Progress

PLAIN_INTERVAL = 5.0


def build_progress(
    stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic
) -> Progress:
    """Returns the progress display that fits a stream.

    Args:
      stream: where it goes; stderr where absent.
      clock: seconds.

    Returns:
      Callbacks for ``training.train`` and ``training.resume``.
    """
    chosen: TextIO = sys.stderr if stream is None else stream
    return live(chosen, clock=clock) if chosen.isatty() else plain(chosen, clock=clock)


def plain(stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Writes one line for each evaluation, and else at most one in five seconds.

    Args:
      stream: where it goes.
      clock: seconds.

    Returns:
      The callbacks.
    """
    state: dict[str, Any] = {"total": 0, "last": -math.inf, "compiled": None}

    def on_start(*, total_rounds: int, first_round: int = 0):
        state.update(total=total_rounds, compiled=None, last=clock())
        _say(stream, f"training {total_rounds} rounds{_from(first_round)}")

    def on_round(
        *,
        round: int,
        loss: float,
        clients_per_s: float | None = None,
        validation: float | None = None,
        epsilon: float | None = None,
        uplink_bytes: int | None = None,
    ):
        now = clock()
        _note_first(state, round, now)
        due = now - state["last"] >= PLAIN_INTERVAL or round == state["total"]
        if validation is None and not due:
            return
        state["last"] = now
        rate, left = _pace(state, round, now, clients_per_s)
        _say(
            stream,
            f"round {round}/{state['total']}  "
            + _figures(loss, rate, validation, epsilon, uplink_bytes)
            + (f"  {left} left" if left else ""),
        )

    def on_message(text: str):
        _say(stream, text)

    def on_end():
        with contextlib.suppress(BrokenPipeError):
            stream.flush()

    return Progress(on_start, on_round, on_message, on_end)


def live(stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Draws one bar that is brought up to date in place.

    Args:
      stream: a terminal.
      clock: seconds.

    Returns:
      The callbacks.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(file=stream, force_terminal=True),
        # What a library prints goes where the command has sent it.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    state: dict[str, Any] = {"validation": None, "task": None}

    def on_start(*, total_rounds: int, first_round: int = 0):
        state.update(total=total_rounds, compiled=None)
        state["task"] = bar.add_task(
            "", total=total_rounds, completed=first_round, figures="", left=""
        )
        bar.start()

    def on_round(
        *,
        round: int,
        loss: float,
        clients_per_s: float | None = None,
        validation: float | None = None,
        epsilon: float | None = None,
        uplink_bytes: int | None = None,
    ):
        if state["task"] is None:
            return
        # The last evaluation stays in sight between two of them.
        state["validation"] = state["validation"] if validation is None else validation
        now = clock()
        _note_first(state, round, now)
        rate, left = _pace(state, round, now, clients_per_s)
        bar.update(
            state["task"],
            completed=round,
            figures=_figures(loss, rate, state["validation"], epsilon, uplink_bytes),
            left=f"{left} left" if left else "",
        )

    def on_message(text: str):
        bar.console.print(text, markup=False, highlight=False)

    def on_end():
        bar.stop()

    return Progress(on_start, on_round, on_message, on_end)


def duration(seconds: float) -> str:
    """Returns a duration for a person, such as ``1:02:03`` or ``0:09``.

    Args:
      seconds: its length.
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _figures(
    loss: float,
    clients_per_s: float | None,
    validation: float | None,
    epsilon: float | None,
    uplink_bytes: int | None,
) -> str:
    parts = [f"loss {loss:.4f}"]
    if validation is not None:
        parts.append(f"validation AUROC {validation:.4f}")
    if epsilon is not None:
        parts.append(f"epsilon {epsilon:.2f}")
    if uplink_bytes is not None:
        sent = uplink_bytes / 1e6
        parts.append(f"{sent:,.1f} MB up" if sent >= 0.95 else f"{sent:.2g} MB up")
    if clients_per_s is not None:
        digits = 0 if clients_per_s >= 10 else 1
        parts.append(f"{clients_per_s:,.{digits}f} clients/s")
    return "  ".join(parts)


def _note_first(state: dict[str, Any], done: int, now: float):
    # What comes before the end of the first segment is mostly compiling.
    if state["compiled"] is None:
        state["compiled"] = (done, now)


def _pace(
    state: dict[str, Any], done: int, now: float, clients_per_s: float | None
) -> tuple[float | None, str]:
    """Returns (clients/s, time left): nothing of a segment that was compiled in."""
    first, start = state["compiled"]
    if done <= first:
        return None, ""
    return clients_per_s, duration(
        (now - start) / (done - first) * (state["total"] - done)
    )


def _from(first_round: int) -> str:
    return f", from round {first_round + 1}" if first_round else ""


def _say(stream: TextIO, text: str):
    # A reader that has gone away must not end hours of training.
    with contextlib.suppress(BrokenPipeError):
        print(text, file=stream, flush=True)
