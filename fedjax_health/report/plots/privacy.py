"""Epsilon over the rounds of a run."""

from collections.abc import Sequence
from pathlib import Path

from fedjax_health.report.plots.style import (
    BLUE,
    MUTED,
    house_style,
    new_figure,
    to_png,
    to_svg,
)


def write_epsilon(
    path: Path,
    curve: Sequence[tuple[int, float]],
    *,
    delta: float,
    unit: str,
    target: float | None = None,
):
    """Writes the picture of epsilon over rounds.

    Args:
      path: a file ending in .svg or .png.
      curve: (round, epsilon so far).
      delta: of the guarantee.
      unit: whom it protects.
      target: an epsilon to mark, or None.
    """
    with house_style():
        figure = new_figure(3.2)
        axes = figure.subplots()
        axes.plot(*zip(*curve, strict=True), color=BLUE, linewidth=1.6, marker=".")
        if target is not None:
            axes.axhline(target, color=MUTED, linestyle="--", linewidth=1)
        axes.set_xlabel("round")
        axes.set_ylabel("epsilon so far")
        axes.set_ylim(bottom=0)
        axes.set_title(f"Privacy of one {unit}, delta {delta:g}")
    if path.suffix == ".svg":
        path.write_text(to_svg(figure, salt="privacy"), encoding="utf-8")
    else:
        path.write_bytes(to_png(figure))
