"""Figures by the modalities that rows have, of a run, an evaluation and a plan."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from fedjax_health import records, training
from fedjax_health.evaluate import evaluate
from fedjax_health.report.description import what_was_run
from fedjax_health.report.records import read_folder
from tests import tiny

SETTINGS = (
    "rounds=2",
    "data.allow_missing=true",
    'data.modalities={traffic=["load","rate"],vitals=["noise"]}',
    "model=fusion",
    "model.fuse=late",
    "model.encoders={traffic={kind='mlp',hidden=[4]},vitals={kind='mlp',hidden=[4]}}",
)


def gaps(lines):
    """Takes the vitals of one site away, and the traffic of some minutes of others."""
    out = lines[:1]
    for line in lines[1:]:
        site, device, minute, load, rate, noise, label = line.split(",")
        if site == "s1":
            noise = ""
        if site == "s2" and int(minute) > 95:
            load = rate = ""
        out.append(",".join((site, device, minute, load, rate, noise, label)))
    return out


def expected(frame, table, window):
    """The pattern of each scored row, by a loop over the table."""
    rows = pd.read_csv(table).set_index(["site", "device", "minute"]).sort_index()
    found = []
    for one in frame.itertuples():
        stream = rows.loc[one.client, one.entity]
        # A window does not reach back into another part.
        first = frame.time[(frame.client == one.client) & (frame.entity == one.entity)]
        oldest = max(first.min(), one.time - window + 1)
        seen = stream.loc[oldest : one.time]
        traffic = seen[["load", "rate"]].notna().any().any()
        vitals = seen.noise.notna().any()
        found.append(
            {(True, True): "traffic + vitals", (True, False): "traffic only"}.get(
                (traffic, vitals), "vitals only" if vitals else "none"
            )
        )
    return pd.Series(found, index=frame.index)


def check(listed, frame, table):
    kinds = expected(frame, table, 5)
    assert [one["pattern"] for one in listed] == [
        *("traffic + vitals", "traffic only", "vitals only"),
    ]
    for one in listed:
        here = frame[kinds == one["pattern"]]
        assert (one["rows"], one["positives"]) == (len(here), here.label.sum())
        assert one["auroc"] == pytest.approx(roc_auc_score(here.label, here.score))
        assert one["f1"] == pytest.approx(f1_score(here.label, here.detected))


def test_figures_by_pattern_are_those_of_the_predictions(tmp_path):
    table = tiny.write_table(tmp_path / "ward.csv", gaps(tiny.table_lines()))
    config = tiny.config(table, *SETTINGS)
    run = tiny.Run(config, tmp_path / "run")
    figures = records.read_json(run.paths.figures)
    frame = pd.read_parquet(run.paths.predictions)
    check(figures["patterns"], frame, table)
    # What is absent has no share of the answer.
    shares = frame[["share_traffic", "share_vitals"]].to_numpy()
    kinds = expected(frame, table, 5)
    want = [
        {"traffic + vitals": (0.5, 0.5), "traffic only": (1, 0), "vitals only": (0, 1)}[
            kind
        ]
        for kind in kinds
    ]
    np.testing.assert_allclose(shares, want)
    assert "mean of detectors of one modality" in what_was_run(
        read_folder(run.paths.root)
    )

    fresh = tiny.write_table(tmp_path / "may.csv", gaps(tiny.table_lines(seed=11)))
    result = evaluate(run.paths.root, fresh, records.SILENT, out=tmp_path / "out")
    measured = records.read_json(tmp_path / "out" / "figures.json")
    check(measured["patterns"], pd.read_parquet(result["scores"]), fresh)

    parts = training.describe(config)["data"]
    assert parts["test"]["modalities"] == pytest.approx(
        {one["pattern"]: one["rows"] / len(frame) for one in figures["patterns"]}
    )
    # Traffic is lacking in the last minutes alone.
    assert parts["train"]["modalities"] == {
        "traffic + vitals": 0.75,
        "traffic only": 0.25,
    }
