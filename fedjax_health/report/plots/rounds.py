"""Figures of the rounds: privacy spent, bytes sent, and what became of messages."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedjax_health.report.plots.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    TEAL,
    legend,
    new_figure,
    percent,
)
from fedjax_health.report.privacy import is_told, privacy_of
from fedjax_health.report.records import View, numbers_of
from fedjax_health.report.words import byte_unit, number


def epsilon(view: View) -> Figure | None:
    """Draws the epsilon of the rounds so far.

    Args:
      view: what was read.

    Returns:
      The figure, or None where no round tells an epsilon.
    """
    rounds, values = numbers_of(view, "epsilon")
    if not len(rounds):
        return None
    figure = new_figure(2.75)
    axes = figure.subplots()
    told = privacy_of(view)
    delta = told.get("delta")
    at = f" at delta {delta:g}" if isinstance(delta, float) else ""
    axes.plot(rounds, values, "o-", color=BLUE, markersize=4)
    axes.set(title=f"Privacy spent{at}", ylabel="epsilon so far", ylim=(0, None))
    best, spent = told.get("best_round"), told.get("epsilon_at_best_round")
    if isinstance(best, int) and isinstance(spent, float) and best > 0:
        line = axes.axvline(best, color=MUTED, linewidth=1.1, linestyle=":")
        label = f"measured model, round {best:,}: {number(spent)}"
        legend(figure, [line], [label], loc="outside upper right")
    _round_axis(axes, np.append(rounds, 1.0))
    return figure


def traffic(view: View) -> Figure | None:
    """Draws the bytes of each round and those of all rounds so far.

    Args:
      view: what was read.

    Returns:
      The figure, or None where bytes were not counted, or are those of plain messages.
    """
    if not is_told(view) or not len(numbers_of(view, "uplink_bytes")[0]):
        return None
    figure = new_figure(2.75)
    left, right = figure.subplots(1, 2)
    directions = (
        ("uplink_bytes", "from the clients", BLUE, "-"),
        ("downlink_bytes", "to the clients", ORANGE, "--"),
    )
    handles, labels = [], []
    for axes, suffix, title in (
        (left, "", "Bytes of a round"),
        (right, "_total", "Bytes so far"),
    ):
        told = [numbers_of(view, f"{name}{suffix}") for name, *_ in directions]
        largest = max((float(v.max()) for _, v in told if len(v)), default=0.0)
        scale, unit = byte_unit(largest)
        handles, labels = [], []
        for (rounds, values), (_, label, colour, style) in zip(
            told, directions, strict=True
        ):
            if len(rounds):
                marker = "o" if len(rounds) == 1 else None
                handles += axes.plot(
                    rounds, values / scale, style, marker=marker, color=colour
                )
                labels.append(label)
                _round_axis(axes, rounds)
        axes.set(title=title, ylabel=unit, ylim=(0, 1.1 * max(largest, 1) / scale))
    legend(figure, handles, labels, ncols=2, loc="outside upper right")
    return figure


def messages(view: View) -> Figure | None:
    """Draws clipped messages, saturated numbers and aborted rounds.

    Args:
      view: what was read.

    Returns:
      The figure, or None where no round tells any of them.
    """
    shares = (
        ("clip_fraction", "messages clipped", BLUE, "-"),
        ("saturation", "numbers saturated", TEAL, "--"),
    )
    at, aborted = numbers_of(view, "aborted")
    told = [(numbers_of(view, name), *look) for name, *look in shares]
    known = [rounds for (rounds, _), *_ in told if len(rounds)]
    if len(at):
        known.append(at)
    if not known:
        return None
    figure = new_figure(2.75)
    axes = figure.subplots()
    handles, labels, most = [], [], 0.0
    for (rounds, values), label, colour, style in told:
        if len(rounds):
            marker = "o" if len(rounds) == 1 else None
            handles += axes.plot(rounds, values, style, marker=marker, color=colour)
            labels.append(label)
            most = max(most, float(values.max()))
    which = at[aborted > 0]
    if len(which):
        handles += axes.plot(which, np.zeros(len(which)), "x", color=INK, clip_on=False)
        labels.append("round aborted")
    # Where nothing was clipped, an axis of its own making would show thousandths.
    top = 1.08 * most if most > 0 else 1.0
    axes.set(title="Messages", ylabel="share", ylim=(0, top))
    axes.yaxis.set_major_formatter(FuncFormatter(percent))
    _round_axis(axes, np.concatenate(known))
    if handles:
        legend(figure, handles, labels, ncols=3, loc="outside upper right")
    return figure


def _round_axis(axes: Axes, rounds: np.ndarray):
    first, last = float(rounds.min()), float(rounds.max())
    margin = 0.04 * (last - first) or 0.5
    axes.set(xlabel="round", xlim=(first - margin, last + margin))
    ticks = MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_locator(ticks)
