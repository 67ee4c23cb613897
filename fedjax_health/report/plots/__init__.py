"""The figures of a report; each is a function of what was read."""

from collections.abc import Callable

from matplotlib.figure import Figure

from fedjax_health.report.plots import curves, groups, rounds, timeline
from fedjax_health.report.plots.style import COLOURS, DARK, house_style, to_png, to_svg
from fedjax_health.report.records import View

__all__ = ["COLOURS", "DARK", "FIGURES", "draw", "to_png", "to_svg"]

FIGURES: dict[str, Callable[[View], Figure | None]] = {
    "training": curves.training,
    "epsilon": rounds.epsilon,
    "traffic": rounds.traffic,
    "messages": rounds.messages,
    "roc": curves.roc,
    "pr": curves.pr,
    "scores": curves.scores,
    "calibration": curves.calibration,
    "clients": groups.clients,
    "attacks": groups.attacks,
    "delay": curves.delay,
    "alarms": timeline.alarms,
    "modalities": groups.modalities,
}


def draw(view: View) -> dict[str, Figure]:
    """Draws every figure that there is something for.

    Args:
      view: what was read.

    Returns:
      Name -> figure, in the order of the report.
    """
    with house_style():
        drawn = {name: function(view) for name, function in FIGURES.items()}
        there = {n: figure for n, figure in drawn.items() if figure is not None}
        for figure in there.values():
            # Laid out once, so that page and picture have everything in one place.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
    return there
