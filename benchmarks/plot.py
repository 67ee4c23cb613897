"""Picture and table of an engine report: ``python -m benchmarks.plot``.

``python -m benchmarks.plot RESULTS.json docs/speed.png`` draws rounds per second of
each engine; ``python -m benchmarks.plot --table RESULTS.json`` prints the table of
``benchmarks/README.md``. Both read what ``benchmarks.engine`` wrote.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

LABELS = {
    "mlp": "W1: MLP",
    "gru": "W2: GRU",
    "fedjax": "FedJAX",
    "pfl": "pfl",
}

# Apart in grey as well as in colour.
OURS, RIVAL, RULE = "#1f5a8a", "#b9c4cd", "#333333"


class Bar(NamedTuple):
    """One engine of one workload.

    Attributes:
      label: its name.
      speed: rounds per second with ``median``, ``min`` and ``max``.
      ratio: our speed over its speed in the same form, or None for ours.
      record: its part of the report.
    """

    label: str
    speed: dict[str, Any]
    ratio: dict[str, Any] | None
    record: dict[str, Any]


def bars_of(part: dict[str, Any]) -> list[Bar]:
    """Returns the engines of one workload that were measured, ours first."""
    ours = part["ours"]
    bars = [Bar("fedjax_health", ours["rounds_per_second"], None, ours)]
    for name, rival in part["rivals"].items():
        if rival["status"] == "measured":
            label = LABELS.get(name, name)
            bars.append(Bar(label, rival["theirs"], rival["ratio"], rival))
    return bars


def table(report: dict[str, Any]) -> str:
    """Returns the Markdown table of a report, the centralised limit included."""
    lines = [
        "| workload | engine | rounds/s | ratio (range) | warm s | peak MiB | loss |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for workload, part in report["workloads"].items():
        central = part["central"]
        limit = Bar("centralised limit", central["theirs"], central["ratio"], central)
        for bar in [*bars_of(part), limit]:
            ratio = "" if bar.ratio is None else _ratio(bar.ratio)
            cells = [
                LABELS.get(workload, workload),
                bar.label,
                _speed(bar.speed["median"]),
                ratio,
                f"{bar.record['warm_seconds']:.1f}",
                f"{bar.record['peak_rss_bytes'] / 2**20:.0f}",
                f"{bar.record['loss']:.4f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(ratio: dict[str, Any]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"


def _speed(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def draw(report: dict[str, Any], path: Path) -> None:
    """Draws rounds per second, one axis for each workload.

    Bars are medians with their range; a dashed line is the centralised limit.

    Args:
      report: what ``benchmarks.engine`` wrote.
      path: of the picture; its suffix is the format.
    """
    from matplotlib.figure import Figure

    parts = report["workloads"]
    figure = Figure(figsize=(4.6 * len(parts), 2.3), layout="constrained")
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axis, (workload, part) in zip(axes, parts.items(), strict=True):
        bars = bars_of(part)
        limit = part["central"]["theirs"]["median"]
        widest = max([limit, *(bar.speed["max"] for bar in bars)])
        for place, bar in enumerate(bars):
            middle, low, high = (bar.speed[key] for key in ("median", "min", "max"))
            axis.barh(place, middle, 0.62, color=OURS if place == 0 else RIVAL)
            axis.errorbar(
                middle,
                place,
                xerr=[[middle - low], [high - middle]],
                color=RULE,
                capsize=2.5,
                linewidth=0.9,
            )
            text = _speed(middle)
            if bar.ratio is not None:
                text += f"  (ours {bar.ratio['median']:.1f}\N{MULTIPLICATION SIGN})"
            # White behind the text, so that the limit's line does not cross it.
            axis.text(
                high + 0.02 * widest,
                place,
                text,
                va="center",
                fontsize=8.5,
                zorder=3,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )
        axis.axvline(limit, color=RULE, linestyle=(0, (4, 3)), linewidth=1, zorder=0)
        axis.annotate(
            f"centralised limit {_speed(limit)}",
            (limit, 1.02),
            xycoords=("data", "axes fraction"),
            ha="right" if limit > 0.6 * widest else "center",
            fontsize=8.5,
        )
        axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axis.set_ylim(len(bars) - 0.5, -0.5)
        axis.set_xlim(0, 1.16 * widest)
        axis.set_xlabel(f"{LABELS.get(workload, workload)}, rounds per second")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON of benchmarks.engine")
    parser.add_argument("picture", type=Path, nargs="?", help="such as docs/speed.png")
    parser.add_argument("--table", action="store_true", help="print Markdown")
    args = parser.parse_args()
    if not args.table and args.picture is None:
        parser.error("name a picture, or give --table")
    report = json.loads(args.results.read_text(encoding="utf-8"))
    if args.table:
        print(table(report))
    if args.picture is not None:
        draw(report, args.picture)


if __name__ == "__main__":
    main()
