"""Scores, attacks and alarms of a few streams over time."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fedjax_health.report.episodes import Panel, choose_panels
from fedjax_health.report.nouns import nouns_of
from fedjax_health.report.plots.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    SHADE,
    legend,
    new_figure,
    shown,
)
from fedjax_health.report.predictions import Predictions
from fedjax_health.report.records import View, settings_of, value_of

# From here on an axis is labelled by the time since its first row.
LARGE_TIME = 1e6
SECONDS_OF_DAY = 86_400.0

# Ticks of alarms stand below the scores, names of attacks above them.
LOW, TOP, HIGH = -0.3, 1.04, 1.3


def alarms(view: View) -> Figure | None:
    """Draws a few streams that are worth a look.

    Args:
      view: what was read.

    Returns:
      The figure, or None without alarms in time.
    """
    rows = view.predictions
    length = settings_of(view, "window").get("length")
    window = length if isinstance(length, int) else 0
    nouns = nouns_of(view)
    if rows is None:
        return None
    panels = choose_panels(rows, window=window, one=nouns.one)
    if not panels:
        return None
    figure = new_figure(0.75 + 1.45 * len(panels))
    grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    threshold = value_of(view, "delay_threshold")
    for axes, panel in zip(grid, panels, strict=True):
        _draw_panel(axes, panel, rows, threshold)
    dated = rows.dated
    grid[-1].set_xlabel("date and time" if dated else "time (unit of the data)")
    handles = [Line2D([], [], color=BLUE, linewidth=1.3)]
    labels = ["score"]
    if threshold is not None:
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1))
        labels.append(f"threshold {threshold:.3f}")
    if rows.label is None:
        handles.append(_tick(ORANGE, 1.6))
        labels.append("alarm")
    else:
        handles += [Patch(color=SHADE), _tick(ORANGE, 1.6), _tick(INK, 0.9)]
        labels += [nouns.one, f"alarm at {nouns.row.removesuffix(' row')}"]
        labels.append("false alarm")
    legend(figure, handles, labels, ncols=len(handles), loc="outside upper left")
    return figure


def _draw_panel(axes: Axes, panel: Panel, rows: Predictions, threshold: float | None):
    piece = slice(panel.first, panel.end)
    time, score = rows.time[piece], rows.score[piece]
    label = None if rows.label is None else rows.label[piece] == 1
    alarm = np.zeros(len(time), bool) if rows.alarm is None else rows.alarm[piece]
    start = ""
    if rows.dated:
        # matplotlib counts days.
        time = time / SECONDS_OF_DAY
    elif np.abs(time).max() >= LARGE_TIME:
        start = f" (time from {time[0]:,.0f} on)"
        time = time - time[0]
    step = float(np.median(np.diff(time))) if len(time) > 1 else 1.0
    if label is not None:
        _shade_attacks(axes, panel, rows, time, label, step)
    axes.plot(time, score, color=BLUE, linewidth=1.2)
    if threshold is not None:
        axes.axhline(threshold, color=INK, linewidth=0.9, linestyle="--")
    true = alarm if label is None else alarm & label
    false = alarm & ~true
    # Two rows of ticks below the scores, so that grey print tells them apart too.
    axes.vlines(time[true], -0.14, -0.03, color=ORANGE, linewidth=1.6)
    axes.vlines(time[false], -0.27, -0.16, color=INK, linewidth=0.9)
    client = shown(rows.client_names[rows.client[panel.first]])
    entity = shown(rows.entity_names[rows.entity[panel.first]], length=20)
    axes.set_title(f"{client}, entity {entity}: {panel.why}{start}", fontsize=9)
    axes.set(ylim=(LOW, HIGH), xlim=(time[0] - step / 2, time[-1] + step / 2))
    axes.set_yticks([0, 0.5, 1])
    axes.set_ylabel("score")
    axes.grid(False, axis="x")
    axes.axhline(-0.015, color=MUTED, linewidth=0.5)
    if rows.dated:
        locator = AutoDateLocator(maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    else:
        axes.ticklabel_format(axis="x", style="plain", useOffset=False)


def _shade_attacks(
    axes: Axes,
    panel: Panel,
    rows: Predictions,
    time: np.ndarray,
    label: np.ndarray,
    step: float,
):
    change = np.flatnonzero(np.diff(label.astype(int)))
    edges = np.concatenate([[0], change + 1, [len(label)]])
    first_time, last_time = float(time[0] - step / 2), float(time[-1] + step / 2)
    low, high = -LOW / (HIGH - LOW), (TOP - LOW) / (HIGH - LOW)
    free = first_time
    for first, end in itertools.pairwise(edges):
        if not label[first]:
            continue
        left = float(time[first] - step / 2)
        right = float(time[end - 1] + step / 2)
        axes.axvspan(left, right, ymin=low, ymax=high, color=SHADE, linewidth=0)
        if rows.attack is None:
            continue
        name = shown(rows.attack_names[rows.attack[panel.first + first]], length=22)
        room = (last_time - first_time) * (0.011 * len(name) + 0.01)
        at = min(left, last_time - room)
        # A name is left out where it would run into the one before.
        if at >= free:
            axes.text(at, 1.09, name, fontsize=7.5, va="bottom", color=INK)
            free = at + room


def _tick(colour: str, width: float) -> Line2D:
    return Line2D(
        [],
        [],
        linestyle="none",
        marker="|",
        markersize=9,
        color=colour,
        markeredgewidth=width,
    )
