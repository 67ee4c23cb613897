"""What shows where: visible attacks, synergy, the negative control, shortcuts."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeClassifier

from fedjax_health.data.hospital_sim import constants as c
from fedjax_health.data.hospital_sim import oracle_report


def _column_auroc(values, truth):
    seen = np.isfinite(values)
    return roc_auc_score(truth[seen], values[seen])


def _rows(dataset, kind):
    keep = (dataset.label == 0) | (dataset.attack == kind)
    return keep, dataset.attack == kind


@pytest.mark.parametrize(
    ("attack", "modality", "column", "least"),
    [
        ("ddos", "iot", "log_packets_in", 0.85),
        ("recon", "iot", "fan_out", 0.85),
        ("spoofing", "iot", "duplicates", 0.85),
        ("ransomware", "iot", "log_bytes_out", 0.85),
        ("snooping", "emr", "off_shift", 0.85),
        ("bulk_export", "emr", "exports", 0.85),
        ("backdated_note", "emr", "notes", 0.85),
    ],
)
def test_visible_attacks_move_their_column(
    demo, scaled, attack, modality, column, least
):
    keep, truth = _rows(demo, c.ATTACK_NAMES.index(attack))
    number = demo.feature_names[modality].index(column)
    assert _column_auroc(scaled[modality][keep, number], truth[keep]) > least


@pytest.mark.parametrize("attack", ["replay", "tampering"])
def test_synergy_attacks_leave_each_column_alone(demo, scaled, attack):
    # Sparse counts tell the client, and attack types differ between clients, so
    # normal rows of clients without this attack are left out.
    keep, truth = _rows(demo, c.ATTACK_NAMES.index(attack))
    weight = np.bincount(demo.client, truth, demo.num_clients)
    for name, values in scaled.items():
        for number, column in enumerate(demo.feature_names[name]):
            if column.startswith("code_"):
                continue
            total = shared = 0.0
            for client in np.flatnonzero(weight):
                rows = keep & (demo.client == client)
                rows &= np.isfinite(values[:, number])
                if truth[rows].sum() < 50:
                    continue
                score = roc_auc_score(truth[rows], np.abs(values[rows, number]))
                total += weight[client] * score
                shared += weight[client]
            if shared:
                assert 0.37 < total / shared < 0.63, column
    difference = np.abs(scaled["iot"][:, c.PAYLOAD] - scaled["emr"][:, :4])
    seen = np.isfinite(difference)
    total = np.where(seen, difference, 0.0).sum(1)
    joint = np.where(seen.any(1), total / np.maximum(seen.sum(1), 1), np.nan)
    assert _column_auroc(joint[keep], truth[keep]) > 0.9


def test_negative_control_severs_the_modalities(demo, control, scaled):
    np.testing.assert_array_equal(control.attack, demo.attack)
    np.testing.assert_array_equal(control.features["emr"], demo.features["emr"])
    normal = control.label == 0
    for dataset, low, high in ((demo, 0.8, 1.0), (control, -0.05, 0.05)):
        iot, emr = dataset.features["iot"], dataset.features["emr"]
        for client in range(dataset.num_clients):
            rows = normal & (dataset.client == client)
            for number in range(4):
                payload, vital = iot[rows, 10 + number], emr[rows, number]
                seen = np.isfinite(payload) & np.isfinite(vital)
                if seen.sum() > 5_000:
                    value = np.corrcoef(payload[seen], vital[seen])[0, 1]
                    assert low <= value <= high
    figures = {row.name: row for row in oracle_report(control)}
    linked = {row.name: row for row in oracle_report(demo)}
    for name in ("replay", "tampering"):
        # No evidence at all: what remains is chance over some fifty episodes.
        assert abs(figures[name].auroc - 0.5) < 0.2
        assert figures[name].f1 < 0.02
        assert linked[name].auroc > 0.93
    assert figures["snooping"].auroc > 0.95


def test_oracle_reaches_its_figures(demo):
    rows = {row.name: row for row in oracle_report(demo)}
    assert 0.965 <= rows["all"].auroc <= 0.985
    assert rows["all"].mean_delay < 5.9
    positive = demo.label > 0
    quiet = np.quantile(demo.oracle[~positive], 0.95)
    # Dormant attacks, first steps and losses: positives that look normal.
    assert 0.03 < (demo.oracle[positive] < quiet).mean() < 0.09


def test_ids_and_time_alone_say_nothing(demo):
    unit = demo.entity // c.PATIENT_STRIDE
    slot = demo.entity % c.PATIENT_STRIDE
    columns = np.stack([demo.client, unit, slot, demo.time, demo.time % 60], axis=1)
    patient = np.unique(demo.client * 10_000 + unit, return_inverse=True)[1]
    rng = np.random.default_rng(0)
    fold = rng.integers(0, 5, patient.max() + 1)[patient]
    centre = 96 * np.arange(5) + 48
    models = (
        HistGradientBoostingClassifier(max_iter=30),
        DecisionTreeClassifier(min_samples_leaf=200, max_depth=12),
    )
    for model in models:
        by_patient, by_time = [], []
        for number in range(5):
            distance = np.abs(demo.time - centre[number])
            splits = (
                (by_patient, fold != number, fold == number),
                (by_time, distance > 148, distance <= 47),
            )
            for scores, train, test in splits:
                model.fit(columns[train], demo.label[train])
                guess = model.predict_proba(columns[test])[:, 1]
                scores.append(roc_auc_score(demo.label[test], guess))
        assert np.mean(by_patient) < 0.55
        assert np.mean(by_time) < 0.55
