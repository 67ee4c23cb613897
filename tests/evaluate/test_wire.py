"""What a wire shows, of detectors that were not trained."""

import numpy as np
import pytest

from fedjax_health import build
from fedjax_health.audit.words import wire_rows
from fedjax_health.evaluate import wire
from fedjax_health.evaluate.scoring import Weights
from tests import tiny

STREAMS = (
    "model=tcn",
    "model.hidden=4",
    "model.levels=2",
    "model.dense=[3]",
    "local.batch_size=8",
)
RECORDS = ("window.length=1", "window.stride=1", "model=mlp", "model.hidden=[6,4]")
CUT = "split_learning={cut=1}"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.write_table(tmp_path_factory.mktemp("table") / "ward.csv")


def leakage(table, *changes, seed=0):
    config = tiny.config(table, *changes)
    prepared = build.prepare(config, build.build_dataset(config))
    built = build.build(config, prepared)
    weights = Weights(build.initial_params(config, built.model), None)
    return wire.wire_leakage(config, prepared, built, weights, seed=seed)


def test_a_whole_model_has_no_wire(table):
    assert leakage(table, *RECORDS) is None


def test_a_u_shape_inside_a_tcn_and_its_rows(table):
    found = leakage(table, *STREAMS, CUT)
    assert found == leakage(table, *STREAMS, CUT)
    assert found["known"] > found["held_out"] > 0
    carries = [border["carries"] for border in found["borders"]]
    assert carries == [
        "activations",
        "embedding",
        "cotangents of the embedding",
        "cotangents of the activations",
    ]
    inputs, labels = (found["borders"][i]["read"] for i in (0, 2))
    # Without steps the wire is the bare one.
    assert inputs["sent"] == inputs["bare"]
    assert inputs["sent"]["decoder_error"] < 0.5
    # The cotangent of an embedding is p - y along one vector: a label gives it away.
    assert labels["sent"]["direction"] > 0.95
    rows = wire_rows(found)
    assert [row["figure"] for row in rows] == [
        "decoder_error",
        "distance_correlation",
        "auroc",
        "auroc",
    ]
    assert all(row["threat"] and row["meaning"] for row in rows)


@pytest.mark.slow
def test_with_the_labels_at_the_server_they_cross(table):
    split = 'split_learning={cut=1,labels="server",activations=[{kind="clip"}]}'
    found = leakage(table, *RECORDS, split)
    carries = [border["carries"] for border in found["borders"]]
    assert carries == ["activations", "labels", "cotangents of the activations"]
    read = found["borders"][0]["read"]
    assert np.isfinite(read["sent"]["decoder_error"])
    assert "read" not in found["borders"][1]
