"""Figures of a sweep: heatmaps of worst cases and attacks, training under attack."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fedjax_health.report.plots.style import (
    BLUE,
    COLOURS,
    MUTED,
    ORANGE,
    TEAL,
    house_style,
    legend,
    new_figure,
    shown,
)
from fedjax_health.report.sweep import summary
from fedjax_health.report.sweep.read import SweepView, clean_values
from fedjax_health.report.tables.metrics import METRICS
from fedjax_health.report.words import DASH

LINES = (
    (BLUE, "-"),
    (ORANGE, "--"),
    (TEAL, "-."),
    (COLOURS["violet"], ":"),
    (COLOURS["sand"], "-"),
    (MUTED, "--"),
)
# More than these cannot be told apart.
DRAWN = len(LINES)
# Cells keep their colours on a dark page, and so must what stands in them.
ON_DARK, ON_LIGHT = "#fafcff", "#10171f"


def draw(view: SweepView) -> dict[str, Figure]:
    """Draws every figure that there is something for.

    Args:
      view: what was read.

    Returns:
      Name -> figure, in the order of the report.
    """
    found = summary.cases(view)
    with house_style():
        drawn = {
            "worst": worst(view, found),
            **by_attack(view),
            "curves": curves(view, found),
            "success": success(view),
        }
        there = {name: figure for name, figure in drawn.items() if figure is not None}
        for figure in there.values():
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
    return there


def metric_name(view: SweepView) -> str:
    """Returns the metric that is compared as a person writes it.

    Args:
      view: what was read.
    """
    return METRICS[view.settings.report.metric][0]


def worst(view: SweepView, found: Sequence[summary.Case]) -> Figure | None:
    """Draws the worst case over attacks, at the last and at the best step.

    Args:
      view: what was read.
      found: from ``summary.cases``.
    """
    rows, columns = summary.rows_of(view), summary.columns_of(view)
    at = {(case.row, case.column): case for case in found}
    if not any(case.final.count for case in found):
        return None
    figure = new_figure(1.25 + 0.3 * len(rows))
    panels = figure.subplots(1, 2, sharey=True)
    name = metric_name(view)
    values = {
        step: np.array([[getattr(at[r, c], step).value for c in columns] for r in rows])
        for step in ("final", "best")
    }
    scale = _scale(np.stack(list(values.values())))
    for axes, step in zip(panels, values, strict=True):
        _heatmap(axes, values[step], rows, columns, scale=scale)
        axes.set_title(f"{name} at the {'last' if step == 'final' else 'best'} step")
        axes.set_xlabel(" · ".join(view.roles.columns) or "")
    return figure


def by_attack(view: SweepView) -> dict[str, Figure]:
    """Draws candidates against attacks, one figure for each circumstance.

    Args:
      view: what was read.
    """
    if view.roles.worst is None:
        return {}
    table = summary.mean_table(view, f"final_{view.settings.report.metric}")
    at = {(r, c, a): mean.value for r, c, a, mean in table.itertuples(index=False)}
    rows, attacks = summary.rows_of(view), summary.attacks_of(view)
    drawn = {}
    for number, column in enumerate(summary.columns_of(view)):
        values = np.array(
            [[at.get((r, column, a), math.nan) for a in attacks] for r in rows]
        )
        if not np.isfinite(values).any() or _all_alike(values):
            continue
        figure = new_figure(
            1.75 + 0.3 * len(rows), width=max(4.2, 2.4 + 0.62 * len(attacks))
        )
        axes = figure.subplots()
        _heatmap(axes, values, rows, attacks, slanted=True)
        where = " · ".join(view.roles.columns)
        axes.set_title(f"{metric_name(view)} at the last step, {where} {shown(column)}")
        drawn[f"attacks-{number}"] = figure
    return drawn


def curves(view: SweepView, found: Sequence[summary.Case]) -> Figure | None:
    """Draws the test metric by round, each candidate under its worst attack.

    The last circumstance is drawn, which is the hardest where shares of malicious
    clients grow. Lines are means over repetitions, bands reach from the least to the
    largest.

    Args:
      view: what was read.
      found: from ``summary.cases``.
    """
    column = f"test_{view.settings.report.metric}"
    columns = summary.columns_of(view)
    if not len(view.curves) or column not in view.curves or not columns:
        return None
    table = summary.with_places(view, view.curves)
    here = [c for c in found if c.column == columns[-1] and c.final.count]
    here = sorted(here, key=lambda case: -case.final.value)[:DRAWN]
    figure = new_figure(3.2)
    axes = figure.subplots()
    handles, labels = [], []
    for case, (colour, style) in zip(here, LINES, strict=False):
        part = table[
            (table.row == case.row)
            & (table.column == case.column)
            & ((table.attack == case.worst) | (case.worst == ""))
        ]
        by_round = part.groupby("round")[column].agg(["mean", "min", "max"])
        if by_round.empty:
            continue
        axes.fill_between(
            by_round.index,
            by_round["min"],
            by_round["max"],
            color=colour,
            alpha=0.15,
            lw=0,
        )
        (line,) = axes.plot(by_round.index, by_round["mean"], color=colour, ls=style)
        handles.append(line)
        under = f" under {shown(case.worst)}" if case.worst else ""
        labels.append(f"{shown(case.row)}{under}")
    if not handles:
        return None
    axes.set(xlabel="round", ylabel=f"{metric_name(view)}, test part")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, high - 0.1), high)
    axes.set_title(
        f"Training under the worst attack, {' · '.join(view.roles.columns)} "
        f"{shown(columns[-1])}"
    )
    legend(figure, handles, labels, ncols=2, loc="outside upper left")
    return figure


def success(view: SweepView) -> Figure | None:
    """Draws the success rate of backdoors, candidates against circumstances.

    Args:
      view: what was read.
    """
    table = summary.mean_table(view, "final_attack_success")
    told = {
        (r, c, a): mean.value
        for r, c, a, mean in table.itertuples(index=False)
        if mean.count and a not in clean_values(view)
    }
    if not told:
        return None
    rows = summary.rows_of(view)
    columns = [
        (c, a)
        for c in summary.columns_of(view)
        for a in summary.attacks_of(view)
        if any((r, c, a) in told for r in rows)
    ]
    values = np.array(
        [[told.get((r, c, a), math.nan) for c, a in columns] for r in rows]
    )
    figure = new_figure(
        1.9 + 0.3 * len(rows), width=max(4.2, 2.4 + 0.62 * len(columns))
    )
    axes = figure.subplots()
    _heatmap(
        axes,
        values,
        rows,
        [f"{c} · {a}" for c, a in columns],
        slanted=True,
        bad_is_high=True,
    )
    axes.set_title("Attack success rate of backdoors at the last step")
    return figure


def _all_alike(values: np.ndarray) -> bool:
    """Returns whether no attack makes a difference, as where nobody is malicious."""
    if values.shape[1] < 2:
        return False
    return bool(
        np.array_equal(values, values[:, [0] * values.shape[1]], equal_nan=True)
    )


def _heatmap(
    axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    scale: Normalize | None = None,
    slanted: bool = False,
    bad_is_high: bool = False,
):
    """Draws numbers on a scale of brightness, so that it reads in grey as well."""
    ends = ("#17456e", "#eef4f9")
    colours = LinearSegmentedColormap.from_list(
        "scale", ends[::-1] if bad_is_high else ends
    )
    scale = scale or _scale(values)
    axes.grid(visible=False)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for i in range(len(rows)):
        for j in range(len(columns)):
            value = values[i, j]
            known = bool(np.isfinite(value))
            place = float(scale(value)) if known else 1.0
            axes.add_patch(_cell(j, i, colours(place) if known else "none"))
            dark = known and (place > 0.55 if bad_is_high else place < 0.45)
            axes.text(
                j,
                i,
                _short(value) if known else DASH,
                ha="center",
                va="center",
                fontsize=8.5,
                color=ON_DARK if dark else ON_LIGHT if known else MUTED,
            )
    axes.set_xticks(range(len(columns)), [shown(name, length=22) for name in columns])
    axes.set_yticks(range(len(rows)), [shown(name, length=26) for name in rows])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if slanted:
        for text in axes.get_xticklabels():
            text.set(rotation=32, ha="right", rotation_mode="anchor")


def _scale(values: np.ndarray) -> Normalize:
    """Returns a scale that makes no mountain of a difference of a hundredth."""
    told = values[np.isfinite(values)]
    low, high = (told.min(), told.max()) if len(told) else (0.0, 1.0)
    return Normalize(min(low, high - 0.05), high)


def _cell(j: int, i: int, colour):
    return Rectangle(
        (j - 0.48, i - 0.46), 0.96, 0.92, facecolor=colour, edgecolor=MUTED, lw=0.4
    )


def _short(value: float) -> str:
    text = f"{value:.3f}"
    return text.removeprefix("0") if 0 <= value < 1 else text
