"""Best-worst selection against a loop."""

import itertools

import numpy as np
import pandas as pd

from fedjax_health.config.sweep import ReportSettings
from fedjax_health.sweep.select import best_worst

REPORT = ReportSettings()
VALUE = "validation_final_auroc"


def made(seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        (s, m, d, a, t, rng.uniform())
        for s, m, d, a in itertools.product(
            (0, 1, 2), (0.2, 0.4), ("mean", "clip"), ("ipm", "alie")
        )
        for t in (("",) if d == "mean" else ("r=1", "r=2", "r=3"))
    ]
    names = ["seed", "malicious", "defence", "attack", "tuned", VALUE]
    return pd.DataFrame(rows, columns=names)


def chosen_by_a_loop(table, defence, malicious):
    best, best_value = None, -np.inf
    for tuned in dict.fromkeys(table[table.defence == defence].tuned):
        worst = np.inf
        for attack in ("ipm", "alie"):
            part = table[
                (table.defence == defence)
                & (table.malicious == malicious)
                & (table.attack == attack)
                & (table.tuned == tuned)
            ]
            worst = min(worst, part[VALUE].mean())
        if worst > best_value:
            best, best_value = tuned, worst
    return best


def test_the_setting_with_the_best_worst_case_is_taken():
    for seed in range(5):
        table = made(seed)
        got = best_worst(table, REPORT)
        assert len(got) == 2 * 2 * 2 * 3
        for (defence, malicious), part in got.groupby(["defence", "malicious"]):
            assert set(part.tuned) == {chosen_by_a_loop(table, defence, malicious)}


def test_the_test_part_has_no_say():
    table = made().assign(final_auroc=lambda t: 1 - t[VALUE])
    assert set(best_worst(table, REPORT).index) == set(range(24))
    a = best_worst(table, REPORT).drop(columns="final_auroc")
    assert a.equals(best_worst(table.drop(columns="final_auroc"), REPORT))


def test_a_setting_that_failed_somewhere_is_not_taken():
    table = made()
    failed = (table.tuned == "r=1") & (table.attack == "ipm")
    table.loc[~failed & (table.tuned == "r=1"), VALUE] = 1.0
    table.loc[failed, VALUE] = np.nan
    assert "r=1" not in set(best_worst(table, REPORT).tuned)


def test_without_settings_everything_stays():
    table = made()
    table = table[table.defence == "mean"]
    assert best_worst(table, REPORT).equals(table)


def test_the_clean_run_has_no_say():
    table = made()
    clean = table[table.attack == "ipm"].assign(attack="no attack")
    # Without anybody malicious the setting that attacks break is the best one.
    clean[VALUE] = np.where(clean.tuned == "r=1", 0.9, 0.1)
    both = pd.concat([table, clean], ignore_index=True)
    got = best_worst(both, REPORT, ["no attack"])
    for (defence, malicious), part in got.groupby(["defence", "malicious"]):
        assert set(part.tuned) == {chosen_by_a_loop(table, defence, malicious)}
        assert set(part.attack) == {"ipm", "alie", "no attack"}
    clipped = clean[clean.defence == "clip"]
    assert set(best_worst(clipped, REPORT, ["no attack"]).tuned) == {"r=1"}
