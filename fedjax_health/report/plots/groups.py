"""Figures by client, by type of attack and by modality."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from fedjax_health.report.figures import Attack, Client
from fedjax_health.report.nouns import ATTACKS, Nouns, nouns_of
from fedjax_health.report.plots.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PARTS,
    TEAL,
    legend,
    new_figure,
    percent,
    shown,
    unit_axis,
)
from fedjax_health.report.predictions import Predictions
from fedjax_health.report.records import View

# More names than this cannot be read beside an axis.
NAMED = 32
KINDS = 24


def clients(view: View) -> Figure | None:
    """Draws AUROC and AUPRC of each client, the lowest first.

    Args:
      view: what was read.

    Returns:
      The figure, or None where no client holds both classes.
    """
    everyone = view.figures.clients if view.figures else ()
    ranked = sorted(
        (client for client in everyone if client.auroc is not None),
        key=lambda client: (client.auroc, client.client),
    )
    if not ranked:
        return None
    named = len(ranked) <= NAMED
    figure = new_figure(max(1.9, 1.1 + 0.21 * len(ranked)) if named else 2.9)
    axes = figure.subplots()
    place = np.arange(len(ranked))
    auroc = np.array([client.auroc for client in ranked], float)
    auprc = np.array([_number(client.auprc) for client in ranked])
    spread = view.figures.client_spread.get("auroc") if view.figures else None
    mean = spread.mean if spread is not None else float(auroc.mean())
    decile = spread.worst_decile if spread is not None else None
    # A tenth of fewer than 20 clients is the worst of them.
    tenth = "worst AUROC" if decile == auroc.min() else "worst tenth, AUROC"
    lines = [(mean, "mean AUROC", "-"), (decile, tenth, "--")]
    if named:
        _draw_named(axes, ranked, place, auroc, auprc)
        draw = axes.axvline
    else:
        axes.plot(place + 1, auroc, "o", color=BLUE, markersize=3.2)
        axes.plot(place + 1, auprc, "s", color=ORANGE, markersize=3, mfc="none")
        axes.set(xlabel="clients, by AUROC", ylabel="AUROC, AUPRC", ylim=(-0.02, 1.02))
        unit_axis(axes.yaxis)
        draw = axes.axhline
    handles = [
        axes.plot([], [], "o", color=BLUE)[0],
        axes.plot([], [], "s", color=ORANGE, markerfacecolor="none")[0],
    ]
    labels = ["AUROC", "AUPRC"]
    for value, text, style in lines:
        if value is not None:
            handles.append(draw(value, color=MUTED, linestyle=style, linewidth=1.1))
            labels.append(f"{text} {value:.3f}")
    axes.set_title("Clients")
    legend(figure, handles, labels, ncols=4, loc="outside upper left")
    return figure


def attacks(view: View) -> Figure | None:
    """Draws recall and AUROC of each type of attack.

    Args:
      view: what was read.

    Returns:
      The figure, or None where no types are told apart.
    """
    kinds = view.figures.attacks if view.figures else ()
    kinds = sorted(kinds, key=lambda attack: (-attack.rows, attack.attack))[:KINDS]
    if not kinds:
        return None
    figure = new_figure(1.1 + 0.42 * len(kinds))
    axes = figure.subplots()
    place = np.arange(len(kinds))
    recall = np.array([_number(attack.recall) for attack in kinds])
    auroc = np.array([_number(attack.auroc) for attack in kinds])
    bars = axes.barh(place, recall, 0.52, color=TEAL, alpha=0.75)
    (dots,) = axes.plot(
        auroc, place, "D", color=BLUE, markersize=6, markeredgecolor=PAPER
    )
    axes.set_yticks(place, [_attack_label(attack) for attack in kinds])
    axes.set(xlim=(0, 1.02), ylim=(len(kinds) - 0.45, -0.55), xlabel="recall, AUROC")
    unit_axis(axes.xaxis)
    axes.grid(False, axis="y")
    nouns = nouns_of(view)
    many = f"{nouns.many[:1].upper()}{nouns.many[1:]}"
    axes.set_title("Types of attack" if nouns == ATTACKS else many)
    labels = [
        "recall at the threshold of the best F1",
        f"AUROC against all {nouns.others}",
    ]
    legend(figure, [bars, dots], labels, ncols=2, loc="outside upper left")
    return figure


def modalities(view: View) -> Figure | None:
    """Draws the mean share of each modality in the score, by type of row.

    Args:
      view: what was read.

    Returns:
      The figure, or None where the model has no shares.
    """
    rows = view.predictions
    if rows is None or not rows.shares:
        return None
    groups = _row_groups(rows, nouns_of(view))
    if not groups:
        return None
    names = list(rows.shares)
    table = np.array([[_mean(rows.shares[n][w]) for n in names] for _, w in groups])
    figure = new_figure(1.1 + 0.36 * len(groups))
    axes = figure.subplots()
    left = np.zeros(len(groups))
    place = np.arange(len(groups))
    handles, labels = [], []
    for i, name in enumerate(names):
        colour, hatch = PARTS[i % len(PARTS)]
        look: dict[str, Any] = {"facecolor": colour, "edgecolor": PAPER, "hatch": hatch}
        axes.barh(place, table[:, i], 0.62, left=left, **look)
        left += np.nan_to_num(table[:, i])
        handles.append(Patch(**look))
        labels.append(shown(name, length=20))
    axes.set_yticks(place, [f"{shown(n)} ({w.sum():,})" for n, w in groups])
    axes.set(
        xlim=(0, max(1.0, float(left.max()))),
        ylim=(len(groups) - 0.45, -0.55),
        xlabel="mean share in the score",
    )
    axes.xaxis.set_major_formatter(FuncFormatter(percent))
    axes.grid(False, axis="y")
    axes.set_title("Modalities")
    legend(figure, handles, labels, ncols=4, loc="outside upper left")
    return figure


def _draw_named(axes, ranked: list[Client], place, auroc, auprc):
    low, high = np.fmin(auroc, auprc), np.fmax(auroc, auprc)
    axes.hlines(place, low, high, color=MUTED, linewidth=0.8)
    axes.plot(auprc, place, "s", color=ORANGE, markersize=5.5, markerfacecolor=PAPER)
    axes.plot(auroc, place, "o", color=BLUE, markersize=6)
    axes.set_yticks(place, [shown(client.client) for client in ranked])
    axes.set(ylim=(len(ranked) - 0.4, -0.6), xlabel="AUROC, AUPRC")
    axes.set_xlim(-0.02, 1.02)
    unit_axis(axes.xaxis)
    axes.tick_params(axis="y", labelcolor=INK)


def _row_groups(rows: Predictions, nouns: Nouns) -> list[tuple[str, np.ndarray]]:
    """Returns normal rows and each type of attack, or all rows without labels."""
    if rows.label is None:
        everything = np.ones(len(rows.score), bool)
        return [(f"all {nouns.units}", everything)] if len(everything) else []
    normal = "normal" if nouns == ATTACKS else nouns.others
    groups = [(normal, rows.label == 0)]
    if rows.attack is None:
        groups.append(("attack", rows.label == 1))
    else:
        for code, name in enumerate(rows.attack_names):
            groups.append((name, (rows.attack == code) & (rows.label == 1)))
    groups = [(name, which) for name, which in groups if which.any()]
    first = [group for group in groups if group[0] == normal][:1]
    others = sorted(groups[len(first) :], key=lambda group: -int(group[1].sum()))
    return [*first, *others[:KINDS]]


def _attack_label(attack: Attack) -> str:
    return f"{shown(attack.attack)} ({attack.rows:,})"


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def _number(value: float | None) -> float:
    return np.nan if value is None else value
