"""The report of a sweep: its numbers against loops, and names that bite."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedjax_health import records
from fedjax_health.records import RunFolderError
from fedjax_health.report import write_report
from fedjax_health.report.plots.sweep import draw
from fedjax_health.report.sweep import sections, summary, tables
from fedjax_health.report.sweep.read import label, read_sweep
from fedjax_health.report.words import DASH
from tests.report.folder import SCRIPT

DEFENCES = ("mean", f"median {SCRIPT}")
SHARES = (0.0, 0.2)
ATTACKS = ("no attack", "ipm", f"alie {SCRIPT}")
SEEDS = (0, 1, 2)


def table(seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for s, m, d, a in itertools.product(SEEDS, SHARES, DEFENCES, ATTACKS):
        for tuned in ("",) if d == "mean" else ("r=1", "r=2"):
            rows.append(
                {
                    "seed": s,
                    "malicious": m,
                    "defence": d,
                    "attack": a,
                    "tuned": tuned,
                    "status": "done",
                    "reason": None,
                    "final_auroc": rng.uniform(0.5, 1),
                    "best_auroc": rng.uniform(0.5, 1),
                    "final_attack_success": rng.uniform() if a == "ipm" else np.nan,
                    "mean_detection_precision": rng.uniform(),
                    "mean_detection_recall": rng.uniform(),
                    "attack_strength": 1.5 if a.startswith("alie") else np.nan,
                    "selected": tuned in ("", "r=2"),
                }
            )
    return pd.DataFrame(rows)


def write(root, frame, shares=SHARES):
    paths = records.create_sweep_folder(root)
    paths.sweep.write_text(f"[axes]\nseed = [0]\n# {SCRIPT}\n")
    frame.to_parquet(paths.results, index=False)
    curves = pd.concat(
        [
            frame[["seed", "malicious", "defence", "attack", "tuned"]].assign(
                round=r, loss=1.0 / r, test_auroc=0.5 + r / 100
            )
            for r in (5, 10)
        ]
    )
    curves.to_parquet(paths.curves, index=False)
    axes = [
        {"name": "seed", "values": SEEDS},
        {"name": "malicious", "values": shares},
        {"name": "defence", "values": DEFENCES},
        {"name": "attack", "values": ATTACKS, "clean": ["no attack"]},
    ]
    records.write_json(paths.settings, {"axes": axes, "report": {"tolerance": 0.03}})
    records.write_json(paths.environment, records.environment())
    records.append_jsonl(paths.timings, [{"cell": "0", "seconds": 90.0}])
    return root


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "out", table())


def test_cases_are_those_of_a_loop(folder):
    frame = table()
    found = {(c.row, c.column): c for c in summary.cases(read_sweep(folder))}
    assert len(found) == len(DEFENCES) * len(SHARES)
    for defence, share in itertools.product(DEFENCES, SHARES):
        part = frame[
            (frame.defence == defence) & (frame.malicious == share) & frame.selected
        ]
        finals, bests = {}, {}
        for attack in ATTACKS:
            here = part[part.attack == attack]
            assert len(here) == 3
            finals[attack] = here.final_auroc.mean()
            bests[attack] = here.best_auroc.mean()
        case = found[defence, f"{share:g}"]
        worst = min(ATTACKS[1:], key=lambda a: finals[a])
        assert case.worst == worst
        assert case.final.value == pytest.approx(finals[worst])
        assert case.best.value == pytest.approx(min(bests[a] for a in ATTACKS[1:]))
        assert case.clean.value == pytest.approx(finals["no attack"])
        assert case.loss == pytest.approx(finals["no attack"] - finals[worst])
        assert case.missing == ()


def test_where_attacks_make_no_difference_none_is_the_worst(tmp_path):
    frame = table()
    nobody = frame.malicious == 0
    frame.loc[nobody, "final_auroc"] = frame[nobody].seed * 0.1 + 0.5
    found = summary.cases(read_sweep(write(tmp_path / "out", frame)))
    assert {c.column for c in found if not c.worst} == {"0"}
    write_report(tmp_path / "out")
    text = records.sweep_folder(tmp_path / "out").report.read_text(encoding="utf-8")
    assert "whatever the attack" in text


def test_the_verdict_is_the_best_worst_case(folder):
    view = read_sweep(folder)
    found = summary.cases(view)
    for verdict in summary.verdicts(view, found):
        here = [c for c in found if c.column == verdict.column]
        assert verdict.best.final.value == max(c.final.value for c in here)
        assert verdict.holds == (verdict.best.loss <= 0.03)
        best_clean = max(c.clean.value for c in here)
        assert verdict.cost == pytest.approx(best_clean - verdict.best.clean.value)


def test_a_mean_has_the_interval_of_students_t():
    values = [0.7, 0.75, 0.9, math.nan]
    mean = summary.mean_of(values)
    low, high = stats.t.interval(
        0.95, 2, loc=np.mean(values[:3]), scale=stats.sem(values[:3])
    )
    assert mean.count == 3
    assert (mean.low, mean.high) == pytest.approx((low, high))
    assert math.isnan(summary.mean_of([0.5]).low)
    assert math.isnan(summary.mean_of([math.nan]).value)


def test_a_candidate_that_was_not_measured_everywhere_is_not_chosen(tmp_path):
    frame = table()
    missing = (
        (frame.defence == "mean") & (frame.malicious == 0.2) & (frame.attack == "ipm")
    )
    frame.loc[missing, ["final_auroc", "best_auroc"]] = np.nan
    frame.loc[missing, ["status", "reason"]] = ["refused", f"too few {SCRIPT}"]
    frame.loc[frame.defence == "mean", "final_auroc"] += 1
    view = read_sweep(write(tmp_path / "out", frame))
    found = summary.cases(view)
    case = next(c for c in found if (c.row, c.column) == ("mean", "0.2"))
    assert case.missing == ("ipm",)
    verdict = next(v for v in summary.verdicts(view, found) if v.column == "0.2")
    assert verdict.best.row == DEFENCES[1]


def test_the_page_says_what_to_choose_and_runs_nothing(folder):
    result = write_report(folder)
    text = records.sweep_folder(folder).report.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "default-src &#39;none&#39;" in text
    assert "Which one to choose" in text
    assert result["sections"] == [
        "choice",
        "worst",
        "attacks",
        "curves",
        "success",
        "detection",
        "settings",
        "grid",
        "versions",
    ]
    assert set(result["left_out"]) == {
        "Every metric",
        "Bytes and privacy",
        "Warnings of the data",
        "What failed",
    }
    assert "r=2" in text
    assert "1.500" in text
    for picture in result["plots"]:
        with open(picture, "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_equal_folders_give_equal_pages(tmp_path):
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        folder = write(tmp_path / name / "out", table())
        write_report(folder)
        pages.append(records.sweep_folder(folder).report.read_bytes())
    assert pages[0] == pages[1]


def test_what_failed_is_told(tmp_path):
    frame = table()
    frame.loc[frame.defence == "mean", ["status", "reason"]] = [
        "failed",
        f"MemoryError: {SCRIPT}",
    ]
    frame.loc[frame.defence == "mean", "final_auroc"] = np.nan
    folder = write(tmp_path / "out", frame)
    assert "failures" in write_report(folder)["sections"]
    text = records.sweep_folder(folder).report.read_text(encoding="utf-8")
    assert "MemoryError: &lt;script&gt;" in text
    assert "Cells are missing" in text


def test_bytes_epsilon_and_warnings_are_told(tmp_path):
    frame = table()
    private = frame.defence == "mean"
    frame["total_uplink_bytes"] = 1e6 * (1 + frame.seed)
    frame["total_downlink_bytes"] = 3e6
    frame["total_epsilon"] = np.where(private, 1.0 + frame.seed, np.nan)
    folder = write(tmp_path / "out", frame)
    lines = [
        ("a", ["old"]),
        ("a", [f"column {SCRIPT} changes its unit"]),
        ("b", [f"column {SCRIPT} changes its unit", "rows repeat"]),
        ("c", []),
    ]
    records.append_jsonl(
        records.sweep_folder(folder).cells,
        [{"cell": key, "record": {"warnings": said}} for key, said in lines],
    )
    assert {"costs", "warnings"} <= set(write_report(folder)["sections"])
    view = read_sweep(folder)
    rows = {row[:2]: row[2:] for row in tables.costs(view).rows}
    assert rows["0.2", "mean"] == ("2.0 MB", "3.0 MB", "3.000")
    assert rows["0", DEFENCES[1]] == ("2.0 MB", "3.0 MB", DASH)
    found = tables.data_warnings(view).rows
    assert [count for _, count in found] == ["2", "1"]
    text = records.sweep_folder(folder).report.read_text(encoding="utf-8")
    assert "column &lt;script&gt;" in text
    assert "<script" not in text


def test_bytes_without_a_mechanism_have_no_epsilon(tmp_path):
    frame = table().assign(total_uplink_bytes=10.0, total_downlink_bytes=20.0)
    view = read_sweep(without_axis(frame, tmp_path / "out", "malicious"))
    found = tables.costs(view)
    assert found.columns == ("defence", "to the server", "from the server")
    assert found.rows[0] == ("mean", "10 B", "20 B")


def test_a_sweep_without_attacks_or_repetitions_has_a_report_too(tmp_path):
    frame = table()
    frame = frame[(frame.seed == 0) & (frame.attack == "ipm") & (frame.malicious == 0)]
    paths = records.create_sweep_folder(tmp_path / "out")
    frame = frame[["defence", "tuned", "status", "reason", "final_auroc", "selected"]]
    frame.to_parquet(paths.results, index=False)
    frame[["defence", "tuned"]].assign(round=1).to_parquet(paths.curves, index=False)
    paths.sweep.write_text("")
    records.write_json(
        paths.settings, {"axes": [{"name": "defence", "values": DEFENCES}]}
    )
    records.write_json(paths.environment, {})
    result = write_report(tmp_path / "out")
    assert result["sections"] == ["choice", "worst", "settings", "grid", "versions"]


def test_repetitions_alone_give_every_metric_with_its_interval(tmp_path):
    frame = table()
    frame = frame[
        (frame.defence == "mean") & (frame.attack == "ipm") & (frame.malicious == 0)
    ].assign(best_mean_delay=[4.0, 5.0, 9.0])
    frame = frame.drop(columns=["defence", "attack", "malicious"])
    paths = records.create_sweep_folder(tmp_path / "out")
    frame.to_parquet(paths.results, index=False)
    frame[["seed", "tuned"]].assign(round=1).to_parquet(paths.curves, index=False)
    paths.sweep.write_text("")
    records.write_json(paths.settings, {"axes": [{"name": "seed", "values": SEEDS}]})
    records.write_json(paths.environment, {})
    assert "metrics" in write_report(tmp_path / "out")["sections"]
    (found,) = [
        row
        for row in tables.metrics(read_sweep(tmp_path / "out")).rows
        if row[0] == "Mean delay (steps)"
    ]
    low, high = stats.t.interval(0.95, 2, loc=6, scale=stats.sem([4, 5, 9]))
    assert found[1:] == ("6.0", f"{low:.1f} to {high:.1f}", "3")


def test_an_unfinished_or_damaged_sweep_is_told(tmp_path, folder):
    paths = records.create_sweep_folder(tmp_path / "new")
    paths.sweep.write_text("")
    with pytest.raises(RunFolderError, match="not finished"):
        write_report(tmp_path / "new")
    records.sweep_folder(folder).results.write_bytes(b"PAR1")
    with pytest.raises(RunFolderError, match="a file is damaged"):
        write_report(folder)
    with pytest.raises(RunFolderError, match="no event files"):
        write_report(folder, tensorboard=tmp_path / "events")


def fail(frame, where):
    """Takes the figures of cells away."""
    figures = [c for c in frame if c.startswith(("final_", "best_", "validation_"))]
    frame.loc[where, figures] = np.nan
    frame.loc[where, ["status", "reason"]] = ["failed", "MemoryError: too large"]
    return frame


def test_a_candidate_that_lacks_repetitions_is_not_chosen(tmp_path):
    frame = table()
    frame.loc[frame.defence == "mean", "final_auroc"] += 1
    gone = (frame.defence == "mean") & (frame.malicious == 0.2)
    gone &= (frame.attack == "ipm") & (frame.seed > 0)
    view = read_sweep(write(tmp_path / "out", fail(frame, gone)))
    found = summary.cases(view)
    case = next(c for c in found if (c.row, c.column) == ("mean", "0.2"))
    assert case.missing == ("ipm (1 of 3)",)
    assert case.expected == 3
    verdicts = {v.column: v.best.row for v in summary.verdicts(view, found)}
    assert verdicts == {"0": "mean", "0.2": DEFENCES[1]}
    (row,) = [
        r for r in tables.candidates(view, found).rows if r[:2] == ("0.2", "mean")
    ]
    assert row[-1] == "ipm (1 of 3)"


def test_the_loss_compares_repetitions_with_and_without_attack(tmp_path):
    frame = table()
    frame = frame[frame.defence == "mean"].assign(final_auroc=0.9)
    attacked = frame.attack != "no attack"
    frame.loc[attacked, "final_auroc"] = 0.6 + 0.1 * frame.seed
    frame.loc[~attacked, "final_auroc"] = 0.9 + 0.01 * frame.seed
    frame = fail(frame, ~attacked & (frame.seed == 0))
    folder = write(tmp_path / "out", frame)
    view = read_sweep(folder)
    case = next(c for c in summary.cases(view) if c.row == "mean")
    assert case.loss == pytest.approx(np.mean([0.91 - 0.7, 0.92 - 0.8]))
    assert case.missing == ("no attack (2 of 3)",)
    write_report(folder)
    text = records.sweep_folder(folder).report.read_text(encoding="utf-8")
    assert "The choice is not measured in full" in text
    assert "not measured in full: no attack (2 of 3)" in text


def test_validation_data_choose_and_test_data_are_shown(tmp_path):
    frame = table()
    mean = frame.defence == "mean"
    # The test part would choose the other one.
    frame["validation_final_auroc"] = np.where(mean, 0.9, 0.4)
    frame["final_auroc"] = np.where(mean, 0.7, 0.8) + frame.seed / 100
    frame.loc[mean & (frame.attack == "no attack"), "final_auroc"] = 0.75
    folder = write(tmp_path / "out", frame)
    view = read_sweep(folder)
    for verdict in summary.verdicts(view, summary.cases(view)):
        assert verdict.validated
        assert verdict.best.row == "mean"
        assert verdict.best.final.value == pytest.approx(0.71)
        assert verdict.best.loss == pytest.approx(0.04)
        assert verdict.cost == pytest.approx(0.81 - 0.75)
        assert verdict.holds is False
    write_report(folder)
    text = records.sweep_folder(folder).report.read_text(encoding="utf-8")
    assert "It is chosen on validation data; figures are of the test part." in text
    assert "saw the test part" not in text


def test_the_worst_case_on_validation_data_counts(tmp_path):
    frame = table()
    rng = np.random.default_rng(1)
    frame["validation_final_auroc"] = rng.uniform(size=len(frame))
    view = read_sweep(write(tmp_path / "out", frame))
    for verdict in summary.verdicts(view, summary.cases(view)):
        worst = {}
        for defence in DEFENCES:
            part = frame[frame.selected & (frame.defence == defence)]
            part = part[part.malicious.map("{:g}".format) == verdict.column]
            worst[defence] = min(
                part[part.attack == attack].validation_final_auroc.mean()
                for attack in ATTACKS[1:]
            )
        assert verdict.best.row == max(worst, key=lambda name: worst[name])
        assert verdict.best.validation.value == pytest.approx(max(worst.values()))


def test_without_validation_figures_the_page_says_what_chose(folder):
    view = read_sweep(folder)
    answers = summary.verdicts(view, summary.cases(view))
    assert not any(verdict.validated for verdict in answers)
    write_report(folder)
    text = records.sweep_folder(folder).report.read_text(encoding="utf-8")
    assert "the choice saw the test part" in text
    assert "chosen on validation data; figures" not in text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((0.1234567, 0.12345671), ["0.1234567", "0.12345671"]),
        ((1000000, 0.5), ["1000000", "0.5"]),
        ((0.0, 1e-7), ["0", "1e-07"]),
        ((1, 2**60), ["1", f"{2**60}"]),
    ],
)
def test_numbers_of_an_axis_keep_their_digits(tmp_path, values, texts):
    frame = table()
    frame["malicious"] = frame.malicious.map(dict(zip(SHARES, values, strict=True)))
    view = read_sweep(write(tmp_path / "out", frame, values))
    assert list(view.results.malicious.cat.categories) == texts
    assert not view.results.malicious.isna().any()
    assert len(view.curves) == 2 * len(view.chosen)
    write_report(tmp_path / "out")


def test_values_of_an_axis_that_are_no_numbers_stay():
    assert [label(v) for v in (True, "0.50", -0.0)] == ["True", "0.50", "0"]


def without_axis(frame, root, name):
    """Writes the folder of a sweep that lacks an axis."""
    folder = write(root, frame)
    paths = records.sweep_folder(folder)
    settings = records.read_json(paths.settings)
    settings["axes"] = [axis for axis in settings["axes"] if axis["name"] != name]
    records.write_json(paths.settings, settings)
    frame.drop(columns=name).to_parquet(paths.results, index=False)
    curves = pd.read_parquet(paths.curves)
    curves.drop(columns=name).to_parquet(paths.curves, index=False)
    return folder


def test_who_was_dropped_is_told_without_an_axis_of_attacks(tmp_path):
    frame = table()
    frame = frame[frame.attack == "ipm"]
    view = read_sweep(without_axis(frame, tmp_path / "out", "attack"))
    rows = {row[:2]: row[2:] for row in tables.detection(view).rows}
    part = frame[(frame.defence == "mean") & (frame.malicious == 0.2)]
    assert rows["0.2", "mean"] == (
        f"{part.mean_detection_precision.mean():.3f}",
        f"{part.mean_detection_recall.mean():.3f}",
    )


def left_out(folder):
    """Returns why parts are left out, from the sections themselves."""
    view = read_sweep(folder)
    found = summary.cases(view)
    answers = summary.verdicts(view, found)
    _, absent = sections.sections(view, found, answers, draw(view))
    return {part.title: part.reason for part in absent}


def test_what_is_left_out_says_why(tmp_path):
    alike = table().assign(final_auroc=0.7, attack_strength=np.nan)
    reasons = left_out(write(tmp_path / "alike", alike))
    assert "alike" in reasons["Attack by attack"]

    frame = table()
    none = ["final_attack_success", "mean_detection_precision"]
    frame = frame.drop(columns=[*none, "mean_detection_recall", "attack_strength"])
    reasons = left_out(write(tmp_path / "failed", fail(frame, frame.seed >= 0)))
    assert "no cell has a figure" in reasons["Attack by attack"]
    lost = f"{len(frame)} cells failed"
    for title in ("Attack by attack", "Success of backdoors", "Who was dropped"):
        assert lost in reasons[title], title

    folder = without_axis(table(), tmp_path / "none", "attack")
    assert "no axis attack" in left_out(folder)["Attack by attack"]


def test_why_there_are_no_curves(tmp_path):
    folder = write(tmp_path / "out", table())
    paths = records.sweep_folder(folder)
    curves = pd.read_parquet(paths.curves)
    curves.drop(columns="test_auroc").to_parquet(paths.curves, index=False)
    title = "Training under attack"
    assert "not evaluated by AUROC" in left_out(folder)[title]
    curves[:0].to_parquet(paths.curves, index=False)
    assert left_out(folder)[title] == "no round was evaluated."

    clean = table()
    clean = fail(clean, (clean.malicious == 0.2) & (clean.attack != "no attack"))
    assert left_out(write(tmp_path / "clean", clean))[title] == (
        "nothing was measured under an attack at malicious 0.2, which would be drawn; "
        f"{(clean.status == 'failed').sum()} cells failed, were refused or diverged."
    )


def test_the_strength_that_an_attack_found_is_told_without_figures(tmp_path):
    folder = write(tmp_path / "out", table().assign(final_auroc=0.7))
    write_report(folder)
    text = records.sweep_folder(folder).report.read_text(encoding="utf-8")
    assert "Strength that an optimised attack found" in text
    assert "No figures: all values of attack are alike" in text


def test_runs_that_diverged_are_one_line_and_means_say_that_they_lack_them(tmp_path):
    frame = table()
    gone = (frame.defence == "mean") & (frame.attack == "ipm")
    gone &= (frame.malicious == 0.2) & (frame.seed > 0)
    assert gone.sum() == 2
    frame.loc[gone, "status"] = "diverged"
    frame.loc[gone, "reason"] = [
        "the training loss of round 4 is not finite (clients a, b): lower the rate",
        "the training loss of round 17 is not finite (clients c (d)): lower the rate",
    ]
    frame.loc[gone, "final_attack_success"] = np.nan
    folder = write(tmp_path / "out", frame)
    assert tables.failures(read_sweep(folder)).rows == (
        (
            "diverged",
            "mean",
            "0.2",
            "2",
            "the training loss of round 4 to 17 is not finite (some clients): lower "
            "the rate",
        ),
    )
    write_report(folder)
    text = records.sweep_folder(folder).report.read_text(encoding="utf-8")
    said = "over repetitions of the runs that did not diverge"
    assert f"{said}, with the range" in text
    assert f"{said}: dark is bad" in text
    write_report(write(tmp_path / "whole", table()))
    paths = records.sweep_folder(tmp_path / "whole")
    assert "did not diverge" not in paths.report.read_text(encoding="utf-8")
