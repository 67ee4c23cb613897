"""One look for every figure: colours, sizes, names as plain text, and the two formats.

Colours are told apart by brightness as well as by hue, and each has a name: the page
replaces them by its own, so that figures fit a dark page too.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Name -> colour on white. No two are equal, so that a colour has one name.
COLOURS = {
    "ink": "#1c2530",
    "muted": "#5c6975",
    "grid": "#dde3e8",
    "paper": "#ffffff",
    "blue": "#1f6fb4",
    "orange": "#c9510c",
    "teal": "#3fa796",
    "violet": "#7a4fa3",
    "sand": "#d9a441",
    "shade": "#f6d7bd",
    "pale": "#b9cfe3",
}
# The same on a dark page; files of pictures have the light ones.
DARK = {
    "ink": "#e4e9ee",
    "muted": "#a3afba",
    "grid": "#323c46",
    "paper": "#14191e",
    "blue": "#6fb1ec",
    "orange": "#f08a4b",
    "teal": "#57c2af",
    "violet": "#b48add",
    "sand": "#e3b75f",
    "shade": "#58391f",
    "pale": "#35536f",
}
INK, MUTED, GRID, PAPER = (COLOURS[n] for n in ("ink", "muted", "grid", "paper"))
BLUE, ORANGE, TEAL = (COLOURS[n] for n in ("blue", "orange", "teal"))
SHADE, PALE = COLOURS["shade"], COLOURS["pale"]

# Parts of a whole, each with a hatch of its own.
PARTS = (
    (BLUE, ""),
    (COLOURS["sand"], "//"),
    (TEAL, ".."),
    (COLOURS["violet"], "\\\\"),
    (MUTED, "xx"),
    (PALE, "--"),
)

WIDTH = 7.4
NAME_LENGTH = 30

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.7,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "none",
    # Names of columns and sites are text: a dollar sign starts no formula.
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "svg.fonttype": "none",
    "path.simplify_threshold": 0.2,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draws in the style of the report, whatever the user's own settings are.

    Yields:
      Nothing; the settings from before are put back.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        # A name in a script that the font lacks is boxes in a PNG, and no reason to
        # write to a user's terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def to_svg(figure: Figure, *, salt: str) -> str:
    """Returns a figure as SVG, the same bytes for the same figure.

    Args:
      figure: what was drawn.
      salt: goes into the ids.
    """
    with house_style():
        matplotlib.rcParams["svg.hashsalt"] = salt
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()


def to_png(figure: Figure, *, dpi: int = 160) -> bytes:
    """Returns a figure as PNG on white, the same bytes for the same figure.

    Args:
      figure: what was drawn.
      dpi: pixels per inch.
    """
    with house_style():
        buffer = io.BytesIO()
        figure.savefig(
            buffer,
            format="png",
            dpi=dpi,
            facecolor=PAPER,
            metadata={"Software": None},
        )
        return buffer.getvalue()


def new_figure(height: float, *, width: float = WIDTH) -> Figure:
    """Returns an empty figure that no global state knows about.

    Args:
      height: in inches.
      width: in inches.
    """
    return Figure(figsize=(width, height))


def shown(name: str, *, length: int = NAME_LENGTH) -> str:
    """Returns a name of the user's as it goes into a figure: one line, not too long.

    Args:
      name: of a client, column, attack.
      length: characters to show.
    """
    line = " ".join(name.split()) or "(no name)"
    return line if len(line) <= length else line[: length - 1] + "…"


def percent(value: float, _position: Any = None) -> str:
    """Writes a share as a percentage with the digits that it needs.

    Args:
      value: a share.
    """
    return f"{100 * value:.3g} %"


def legend(
    place: Axes | Figure, handles: Sequence[Any], labels: Sequence[str], **options: Any
):
    """Adds a legend; a label may be a user's name.

    Args:
      place: where to.
      handles: what is explained.
      labels: the explanations.
      **options: of matplotlib's legend.
    """
    # matplotlib leaves out labels that begin with an underscore.
    texts = [f" {text}" if text.startswith("_") else text for text in labels]
    place.legend(handles, texts, **options)


def unit_axis(axis: Any, formatter: Callable[..., str] | None = None):
    """Gives an axis the range from 0 to 1.

    Args:
      axis: ``axes.xaxis`` or ``axes.yaxis``.
      formatter: of its ticks.
    """
    axis.set_ticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    if formatter is not None:
        axis.set_major_formatter(FuncFormatter(formatter))
