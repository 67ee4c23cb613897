"""Figures of the whole test part: training, ranking, calibration, delay."""

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fedjax_health.report.nouns import nouns_of
from fedjax_health.report.plots.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PALE,
    TEAL,
    legend,
    new_figure,
    percent,
    unit_axis,
)
from fedjax_health.report.records import View, numbers_of, value_of

RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def training(view: View) -> Figure | None:
    """Draws the loss and the validation figures by round.

    Args:
      view: what was read.

    Returns:
      The figure, or None where no round has left a line.
    """
    rounds, loss = numbers_of(view, "loss")
    if not len(rounds):
        return None
    figure = new_figure(2.75)
    left, right = figure.subplots(1, 2)
    left.plot(rounds, loss, color=BLUE)
    if len(rounds) == 1:
        left.plot(rounds, loss, "o", color=BLUE)
    left.set(title="Training loss", xlabel="round", ylabel="loss, mean over examples")
    lines = [
        ("validation_auroc", "AUROC", BLUE, "o", "-"),
        ("validation_auprc", "AUPRC", ORANGE, "s", "--"),
    ]
    handles, labels = [], []
    for name, label, colour, marker, style in lines:
        at, values = numbers_of(view, name)
        if len(at):
            (line,) = right.plot(
                at, values, style, marker=marker, markersize=4, color=colour
            )
            handles.append(line)
            labels.append(label)
    right.set(title="Validation", xlabel="round", ylabel="AUROC, AUPRC")
    right.set_ylim(top=min(1.0, right.get_ylim()[1]))
    best = view.result.get("best_round")
    if isinstance(best, int) and handles:
        line = right.axvline(best, color=MUTED, linewidth=1.1, linestyle=":")
        handles.append(line)
        labels.append(f"measured model, round {best:,}")
    if handles:
        legend(figure, handles, labels, ncols=3, loc="outside upper right")
    for axes in (left, right):
        # The same rounds on both sides, however few were compared.
        axes.set_xlim(_room(rounds))
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _room(rounds: np.ndarray) -> tuple[float, float]:
    first, last = float(rounds.min()), float(rounds.max())
    margin = 0.04 * (last - first) or 0.5
    return first - margin, last + margin


def roc(view: View) -> Figure | None:
    """Draws recall against the false-alarm rate, with the chosen threshold.

    Args:
      view: what was read.

    Returns:
      The figure, or None without the curve.
    """
    curve = view.figures.curves.roc if view.figures else None
    if curve is None or not curve.recall:
        return None
    nouns = nouns_of(view)
    figure, axes = _square()
    (line,) = axes.plot(
        _array(curve.false_alarm_rate), _array(curve.recall), color=BLUE
    )
    (chance,) = axes.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1.1)
    handles = [line, chance]
    labels = [_named("detector", "AUROC", value_of(view, "auroc")), "random, 0.500"]
    point = _at_threshold(view)
    if point is not None:
        handles += axes.plot(point[0], point[1], "o", color=ORANGE, markersize=7)
        labels.append("threshold of the best F1")
    axes.set(
        title="ROC",
        xlabel=_wrapped(f"false-alarm rate (share of {nouns.others})"),
        ylabel=_wrapped(f"recall (share of {nouns.rows})"),
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    unit_axis(axes.xaxis)
    unit_axis(axes.yaxis)
    legend(figure, handles, labels, loc="outside lower left")
    return figure


def pr(view: View) -> Figure | None:
    """Draws precision against recall, with the share of attacks as the base.

    Args:
      view: what was read.

    Returns:
      The figure, or None without the curve.
    """
    curve = view.figures.curves.pr if view.figures else None
    if curve is None or not curve.recall:
        return None
    nouns = nouns_of(view)
    figure, axes = _square()
    # Each step has the precision of its end: the area under it is the AUPRC.
    (line,) = axes.plot(
        _array(curve.recall), _array(curve.precision), ds="steps-pre", color=BLUE
    )
    handles = [line]
    labels = [_named("detector", "AUPRC", value_of(view, "auprc"))]
    prevalence = value_of(view, "prevalence")
    if prevalence is not None:
        handles.append(axes.axhline(prevalence, ls="--", color=MUTED, linewidth=1.1))
        labels.append(f"random, {prevalence:.3f} (share of {nouns.many})")
    point = _at_threshold(view)
    if point is not None and point[2] is not None:
        handles += axes.plot(point[1], point[2], "o", color=ORANGE, markersize=7)
        labels.append("threshold of the best F1")
    axes.set(
        title="Precision and recall",
        xlabel=_wrapped(f"recall (share of {nouns.rows})"),
        ylabel=_wrapped(f"precision ({nouns.many} among {nouns.units} reported)"),
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    unit_axis(axes.xaxis)
    unit_axis(axes.yaxis)
    legend(figure, handles, labels, loc="outside lower left")
    return figure


def scores(view: View) -> Figure | None:
    """Draws how scores of normal and attack rows are distributed.

    Args:
      view: what was read.

    Returns:
      The figure, or None without predictions.
    """
    rows = view.predictions
    if rows is None or not np.isfinite(rows.score).any():
        return None
    nouns = nouns_of(view)
    figure = new_figure(2.95)
    axes = figure.subplots()
    edges = np.linspace(0, 1, 41).tolist()
    handles, labels = [], []
    if rows.label is None:
        groups = [(f"all {nouns.units}", np.ones(len(rows.score), bool))]
    else:
        groups = [(nouns.others, rows.label == 0), (nouns.rows, rows.label == 1)]
    looks: list[dict[str, Any]] = [
        {"color": PALE, "edgecolor": BLUE, "alpha": 0.9},
        {"facecolor": "none", "edgecolor": ORANGE, "hatch": "///", "linewidth": 1.5},
    ]
    for (name, which), look in zip(groups, looks, strict=False):
        values = rows.score[which & np.isfinite(rows.score)]
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            axes.hist(values, edges, weights=weights, histtype="stepfilled", **look)
            handles.append(axes.patches[-1])
            labels.append(f"{name} ({len(values):,})")
    for name, text, style in [
        ("threshold", "threshold of the best F1", "-"),
        ("delay_threshold", "threshold for alarms in time", "--"),
    ]:
        value = value_of(view, name)
        if value is not None and 0 <= value <= 1:
            handles.append(axes.axvline(value, color=INK, linestyle=style, lw=1.3))
            labels.append(f"{text}, {value:.3f}")
    axes.set(
        title="Scores",
        xlabel=f"score (probability of {nouns.row.removesuffix(' row')})",
        ylabel=f"share of the {nouns.units}",
        xlim=(0, 1),
    )
    axes.yaxis.set_major_formatter(FuncFormatter(percent))
    legend(figure, handles, labels, ncols=2, loc="outside upper left")
    return figure


def calibration(view: View) -> Figure | None:
    """Draws the share of attacks against the mean score, bin by bin.

    Args:
      view: what was read.

    Returns:
      The figure, or None without the curve.
    """
    curve = view.figures.curves.calibration if view.figures else None
    if curve is None or not curve.predicted:
        return None
    predicted, observed = _array(curve.predicted), _array(curve.observed)
    rows = _array(curve.rows)
    nouns = nouns_of(view)
    figure = new_figure(3.9, width=4.6)
    top, below = figure.subplots(2, 1, height_ratios=[3.2, 1], sharex=True)
    (perfect,) = top.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1.1)
    order = np.argsort(predicted, kind="stable")
    (line,) = top.plot(
        predicted[order], observed[order], "o-", color=BLUE, markersize=4.5
    )
    label = _named("detector", "ECE", value_of(view, "ece"))
    legend(top, [line, perfect], [label, "perfect"], loc="upper left")
    top.set(
        title="Calibration",
        ylabel=f"share of {nouns.many}",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    unit_axis(top.yaxis)
    below.vlines(predicted, 0, rows, color=BLUE, linewidth=3)
    below.set(xlabel="mean score of the bin", ylabel=nouns.units, ylim=(0, None))
    below.yaxis.get_major_locator().set_params(nbins=3, integer=True)
    below.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    unit_axis(below.xaxis)
    return figure


def delay(view: View) -> Figure | None:
    """Draws the delay and the missed episodes against the false-alarm rate reached.

    Args:
      view: what was read.

    Returns:
      The figure, or None without the curve.
    """
    curve = view.figures.curves.delay if view.figures else None
    if curve is None or not curve.achieved_far:
        return None
    rate = _array(curve.achieved_far)
    order = np.argsort(rate, kind="stable")
    # A rate of 0 has no place on a logarithmic axis.
    order = order[rate[order] > 0]
    if not len(order):
        return None
    rate = rate[order]
    missed = _array(curve.missed_episodes)
    # The legend stands above, where no curve and no point can be behind it.
    figure = new_figure(4.5 if len(missed) else 3.4)
    if len(missed):
        top, below = figure.subplots(2, 1, height_ratios=[2.6, 1], sharex=True)
    else:
        top, below = figure.subplots(), None
    handles = top.plot(rate, _array(curve.mean_delay)[order], color=BLUE)
    labels = ["mean"]
    if curve.median_delay:
        handles += top.plot(rate, _array(curve.median_delay)[order], "--", color=TEAL)
        labels.append("median")
    reached, chosen = value_of(view, "achieved_far"), value_of(view, "mean_delay")
    if reached and chosen is not None:
        handles += top.plot(reached, chosen, "o", color=ORANGE, markersize=7)
        labels.append(f"chosen on validation: {chosen:.1f} steps at {percent(reached)}")
    control = view.figures.control.get("random", {}) if view.figures else {}
    at, random = control.get("achieved_far"), control.get("mean_delay")
    if at and random is not None:
        handles += top.plot(
            at,
            random,
            "x",
            color=INK,
            markersize=7,
            markeredgewidth=1.8,
            zorder=5,
        )
        labels.append(f"random scores: {random:.1f} steps")
    top.set(title="Delay of alarms", ylabel="delay (steps)", ylim=(0, None))
    bottom = below if below is not None else top
    bottom.set_xlabel("false-alarm rate reached on these rows (logarithmic)")
    _rate_axis(bottom, rate)
    if rate[0] <= 0.01 <= rate[-1]:
        for axes in (top, below):
            if axes is not None:
                line = axes.axvline(0.01, color=MUTED, linewidth=1.1, linestyle=":")
        handles.append(line)
        labels.append("1 % of normal rows")
    legend(figure, handles, labels, ncols=3, loc="outside upper left")
    if below is not None:
        below.step(rate, missed[order], where="post", color=BLUE)
        most = np.fmax.reduce(np.append(missed, 1.0))
        # Where none is missed, an axis of its own making would show hundredths.
        below.set(ylabel="missed\nepisodes", ylim=(0, 1.1 * most))
        below.yaxis.get_major_locator().set_params(nbins=3, integer=True)
    return figure


def _square() -> tuple[Figure, Axes]:
    """Returns an empty square; a legend goes below it, as curves run anywhere."""
    figure = new_figure(4.2, width=3.6)
    axes = figure.subplots()
    axes.set_box_aspect(1)
    return figure, axes


def _wrapped(label: str) -> str:
    return textwrap.fill(label, 42)


def _rate_axis(axes: Axes, rate: np.ndarray):
    axes.set_xscale("log")
    low, high = rate[0] / 1.15, min(1.0, rate[-1] * 1.15)
    if low >= high:
        low, high = high / 3, high
    axes.set_xlim(low, high)
    inside = [value for value in RATES if low <= value <= high]
    axes.xaxis.set_major_locator(FixedLocator(inside or [float(rate[0])]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(percent))


def _at_threshold(view: View) -> tuple[float, float, float | None] | None:
    """Returns false-alarm rate, recall and precision of the rows that are reported."""
    rows = view.predictions
    if rows is None or rows.label is None or rows.detected is None:
        return None
    attack, normal = rows.label == 1, rows.label == 0
    if not attack.any() or not normal.any():
        return None
    reported = rows.detected & (attack | normal)
    precision = float(attack[reported].mean()) if reported.any() else None
    return (
        float(rows.detected[normal].mean()),
        float(rows.detected[attack].mean()),
        precision,
    )


def _named(who: str, metric: str, value: float | None) -> str:
    return who if value is None else f"{who}, {metric} {value:.3f}"


def _array(values: Any) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], np.float64)
