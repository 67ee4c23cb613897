"""The reference models on a made stream: one script from the file to its tables."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments import reference_models
from experiments.reference_models import FEDERATED, GRUS, Part, Scores
from fedjax_health.data.loaders.wustl import BIOMETRICS, FLOW, IDENTIFIERS

SMALL = [
    "rounds=2",
    "partition.num_clients=2",
    "window.length=5",
    "evaluation.every=1",
    "leakcheck=false",
    'model.encoders={flow={kind="gru",hidden=4},biometrics={kind="gru",hidden=4}}',
    "model.joint=4",
]


@pytest.fixture
def stream(tmp_path):
    """A file of the test bed's columns: 40 episodes of 6 rows in 800."""
    rng = np.random.default_rng(0)
    label = (np.arange(800) % 20 >= 14).astype(int)
    table = pd.DataFrame(
        rng.normal(size=(800, len(FLOW) + len(BIOMETRICS))),
        columns=[*FLOW, *BIOMETRICS],
    )
    table["SrcBytes"] += 2 * label
    table = table.assign(**dict.fromkeys(IDENTIFIERS, "x"))
    table["Attack Category"] = np.where(label, "Spoofing", "normal")
    table["Label"] = label
    table.to_csv(tmp_path / "w.csv", index=False)
    return tmp_path / "w.csv"


def test_from_the_file_to_the_figures(stream, tmp_path, monkeypatch, capsys):
    kept = {name: GRUS[name] for name in ("GRU-48, flow", FEDERATED)}
    monkeypatch.setattr(reference_models, "GRUS", kept)
    fusion = tmp_path / "fusion.toml"
    fusion.write_text(
        '[data]\nkind = "wustl"\nmodalities = ["flow", "biometrics"]\n'
        '[partition]\nkind = "contiguous"\n[split]\nkind = "chronological"\n'
        'scope = "global"\n[model]\nkind = "fusion"\n'
    )
    command = [str(stream), "--config", str(fusion), "--seeds", "1", "--json"]
    command += ["--out", str(tmp_path / "runs")]
    command += [part for change in SMALL for part in ("--set", change)]
    # `model=gru` of a reference model puts its own record in the place of the fusion.
    assert reference_models.main(command) == 0
    first = capsys.readouterr().out
    figures = json.loads(first)
    assert set(figures["models"]) == {*reference_models.TREES, *kept}
    for rows in figures["models"].values():
        assert 0 <= rows[0]["auroc"] <= 1
        assert 0 <= rows[0]["delay_5"] <= 6
    assert figures["models"]["trees, one row, flow"][0]["auroc"] > 0.8
    assert figures["differences"]["auroc"]["reference"] != FEDERATED

    # Finished runs are read back, and give the same.
    monkeypatch.setattr("fedjax_health.training.train", None)
    assert reference_models.main(command) == 0
    assert capsys.readouterr().out == first


def test_rolling_statistics_equal_a_slow_loop():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(9, 2)).astype(np.float32)
    segment = np.array([0] * 5 + [1] * 4)
    found = reference_models.rolled(Part(x, np.zeros(9), segment), 3).x
    for row in range(9):
        start = max(row - 2, 0 if row < 5 else 5)
        seen = x[start : row + 1]
        deviation = seen.std(axis=0, ddof=1) if len(seen) > 1 else np.zeros(2)
        slow = [x[row], seen.mean(0), deviation, seen.min(0), seen.max(0)]
        np.testing.assert_allclose(found[row], np.concatenate(slow), atol=1e-6)


def test_best_reference_is_named_for_each_metric():
    rng = np.random.default_rng(2)
    label = (np.arange(400) % 20 >= 14).astype(float)
    test = Part(np.zeros((400, 1)), label, np.zeros(400, int))
    noise = rng.normal(size=400)
    scores = {
        "good": [Scores(label + noise, 0.5)],
        "bad": [Scores(label + 5 * noise, 0.5)],
        FEDERATED: [Scores(label + 2 * noise, 0.5)],
    }
    figures = reference_models.compare(scores, test, 5)
    for found in figures["differences"].values():
        assert found["reference"] == "good"
        assert found["seeds"][0]["difference"] < 0
    printed = reference_models.tables(figures)
    assert printed.count("\n| good |") == 1
    assert "| AUPRC | good | 0 | -" in printed


def test_predictions_on_other_rows_are_refused(tmp_path):
    frame = {"time": [1.0, 0.0], "label": [1, 0], "score": [0.9, 0.1]}
    pd.DataFrame(frame).to_parquet(tmp_path / "predictions.parquet")
    found = reference_models.predictions_in_time(tmp_path, np.array([0, 1]))
    np.testing.assert_array_equal(found, [0.1, 0.9])
    with pytest.raises(ValueError, match="other rows"):
        reference_models.predictions_in_time(tmp_path, np.array([1, 0]))
