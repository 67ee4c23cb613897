"""Figures: the same bytes each time, names as plain text, nothing left behind."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from fedjax_health.report import plots
from fedjax_health.report.figures import Client, read_figures
from fedjax_health.report.plots.style import percent, shown
from fedjax_health.report.records import read_folder
from tests.report import folder


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    root = tmp_path_factory.mktemp("plots") / "ward"
    return read_folder(folder.write_run(root).root)


@pytest.fixture(scope="module")
def figures(view):
    return plots.draw(view)


def texts_of(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text)]


def test_every_figure_is_drawn(figures):
    of_rounds = {"epsilon", "traffic", "messages"}
    assert list(figures) == [name for name in plots.FIGURES if name not in of_rounds]


def test_equal_input_gives_equal_bytes(view, figures):
    again = plots.draw(view)
    for name in ("scores", "alarms"):
        first = plots.to_svg(figures[name], salt=name)
        assert plots.to_svg(again[name], salt=name) == first
        assert "<dc:date>" not in first
    assert plots.to_png(figures["roc"]) == plots.to_png(again["roc"])


def test_a_users_settings_neither_show_nor_change(view):
    with matplotlib.rc_context({"lines.linewidth": 17, "text.usetex": False}):
        before = dict(matplotlib.rcParams)
        figure = plots.draw(view)["roc"]
        plots.to_svg(figure, salt="roc")
        assert dict(matplotlib.rcParams) == before
    assert figure.axes[0].lines[0].get_linewidth() == 1.7


def test_names_are_text_and_no_formula(figures):
    svg = plots.to_svg(figures["clients"], salt="clients")
    assert "$x^{2}$ &amp; $" in svg
    assert "&lt;script&gt;" in svg
    assert "<script" not in svg
    assert "_hidden" in svg


def test_a_modality_with_an_underscore_stands_in_the_legend(view):
    shares = {"_private": np.full(240, 0.5), "open": np.full(240, 0.5)}
    rows = view.predictions._replace(shares=shares)
    figure = plots.FIGURES["modalities"](view._replace(predictions=rows))
    assert [t.strip() for t in texts_of(figure) if "private" in t] == ["_private"]


def test_the_chosen_point_is_that_of_the_predictions(view, figures):
    rows = view.predictions
    attack = rows.label == 1
    recall = rows.detected[attack].mean()
    rate = rows.detected[~attack].mean()
    precision = attack[rows.detected].mean()
    assert _last_point(figures["roc"]) == pytest.approx((rate, recall))
    assert _last_point(figures["pr"]) == pytest.approx((recall, precision))


def _last_point(figure):
    line = figure.axes[0].lines[-1]
    return line.get_xdata()[0], line.get_ydata()[0]


def test_rates_of_zero_are_left_out_of_a_logarithmic_axis(figures):
    top = figures["delay"].axes[0]
    np.testing.assert_allclose(top.lines[0].get_xdata(), [0.0105, 0.06, 0.3])
    np.testing.assert_allclose(top.lines[0].get_ydata(), [2.6, 1.0, 0.0])
    assert top.get_xscale() == "log"


def test_scores_are_shares_of_their_class(view, figures):
    (axes,) = figures["scores"].axes
    for patch in axes.patches:
        # The outline of a histogram runs along its tops and back at zero.
        heights = patch.get_xy()[1:82:2, 1]
        assert heights.sum() == pytest.approx(1.0)
    rows = view.predictions._replace(label=None)
    alone = plots.FIGURES["scores"](view._replace(predictions=rows))
    assert len(alone.axes[0].patches) == 1


def test_many_clients_are_dots_without_names(view):
    many = tuple(Client(f"site {i}", 10, 5, i / 500, i / 600) for i in range(500))
    value = read_figures({"metrics": {}, "clients": []})
    crowd = view._replace(figures=read_figures({**folder.figures(), "clients": []}))
    assert plots.FIGURES["clients"](crowd) is None
    import msgspec

    crowd = view._replace(figures=msgspec.structs.replace(value, clients=many))
    figure = plots.FIGURES["clients"](crowd)
    assert not [text for text in texts_of(figure) if "site" in text]
    assert len(figure.axes[0].lines[0].get_xdata()) == 500


def test_nothing_is_drawn_of_what_is_not_there(view):
    bare = view._replace(figures=None, predictions=None, rounds=())
    assert plots.draw(bare) == {}


def test_one_class_empty_curves_and_a_flat_delay_are_drawn(view):
    empty = {"roc": {"false_alarm_rate": [], "recall": []}, "pr": None}
    flat = {
        "achieved_far": [0.0, 0.0],
        "mean_delay": [3.0, 2.0],
        "median_delay": [3.0, 2.0],
    }
    lone = {"achieved_far": [0.02], "mean_delay": [3.0], "missed_episodes": [None]}
    for delay, drawn in ((flat, False), (lone, True)):
        content = {**folder.figures(), "curves": {**empty, "delay": delay}}
        other = view._replace(figures=read_figures(content))
        assert plots.FIGURES["roc"](other) is None
        assert plots.FIGURES["pr"](other) is None
        figure = plots.FIGURES["delay"](other)
        assert (figure is not None) == drawn
        if figure is not None:
            plots.to_png(figure, dpi=20)


def test_large_times_are_counted_from_the_first_row(view):
    rows = view.predictions._replace(time=view.predictions.time * 60 + 1.6e9)
    figure = plots.draw(view._replace(predictions=rows, figures=None))["alarms"]
    assert figure.axes[0].lines[0].get_xdata()[0] == 0
    assert "1,600,000,000" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ddos", {"attack", "alarm at an attack", "no attack"}),
        ("death in hospital", {"death", "alarm at a death", "no death"}),
    ],
)
def test_the_time_line_says_what_the_data_says(view, name, words):
    names = tuple(
        "normal" if n == "normal" else name for n in view.predictions.attack_names
    )
    rows = view.predictions._replace(attack_names=names)
    figure = plots.draw(view._replace(predictions=rows, figures=None))["alarms"]
    said = {text.get_text() for text in figure.legends[0].get_texts()}
    said |= {axes.get_title(loc="left").rpartition(": ")[2] for axes in figure.axes}
    assert words <= said


def test_dates_are_shown_as_dates_and_hours(view):
    start = 1_777_849_200.0
    time = start + 60 * view.predictions.time
    rows = view.predictions._replace(time=time, dated=True)
    figure = plots.draw(view._replace(predictions=rows, figures=None))["alarms"]
    axes = figure.axes[-1]
    figure.canvas.draw()
    assert "1,777" not in axes.get_title(loc="left")
    assert axes.get_xlabel() == "date and time"
    assert axes.lines[0].get_xdata()[0] == pytest.approx(start / 86_400)
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert any(":" in text for text in shown)
    assert "2026-May-03" in axes.xaxis.get_major_formatter().get_offset()


def test_drawing_needs_neither_pyplot_nor_jax():
    code = (
        "import sys; import fedjax_health.report; "
        "print([m for m in ('matplotlib.pyplot', 'jax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_small_helpers():
    assert percent(0.0072368) == "0.724 %"
    assert percent(1.0) == "100 %"
    assert shown("a\n b") == "a b"
    assert shown("x" * 40) == "x" * 29 + "\N{HORIZONTAL ELLIPSIS}"
    assert shown(" ") == "(no name)"
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    assert plots.COLOURS.keys() == plots.DARK.keys()


def test_the_delay_plot_hides_nothing(view):
    content = folder.figures()
    content["curves"]["delay"]["missed_episodes"] = [0, 0, 0, 0]
    top, below = plots.FIGURES["delay"](
        view._replace(figures=read_figures(content))
    ).axes
    assert below.get_ylim()[1] >= 1
    # The 1 % line is explained with the other signs, beside the axes.
    assert [text.get_text() for text in top.texts] == []
    assert top.get_legend() is None


def test_the_legend_of_precision_stands_beside_the_curve(figures):
    assert figures["pr"].axes[0].get_legend() is None
    (legend,) = figures["pr"].legends
    assert any("detector" in text.get_text() for text in legend.get_texts())


def test_both_sides_of_training_show_the_same_rounds(view):
    rounds = tuple({"round": i, "loss": 1 / i} for i in range(1, 101))
    last = {**rounds[-1], "validation_auroc": 0.7}
    figure = plots.draw(view._replace(rounds=(*rounds[:-1], last)))["training"]
    limits = [axes.get_xlim() for axes in figure.axes]
    assert limits[0] == limits[1]
    assert limits[0][0] < 1
    assert 100 < limits[0][1] < 110


def test_a_tenth_of_few_clients_is_called_the_worst(figures):
    (legend,) = figures["clients"].legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert "worst AUROC 0.500" in labels
