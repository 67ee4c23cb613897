"""Whole runs of a split model, and what a configuration is refused for."""

import json
import typing

import numpy as np
import pytest

from fedjax_health import build, config, training
from fedjax_health.build.split_learning import wire_step
from fedjax_health.config import ConfigError, parse
from fedjax_health.core import trees
from fedjax_health.privacy.wire import wire_epsilon
from fedjax_health.records import SILENT, read_jsonl
from fedjax_health.report import write_report
from tests import tiny

SPLIT = """
rounds = 2
devices = 1

[data]
kind = "table"
client = "site"
entity = "device"
time = "minute"
path = "{path}"

[data.modalities]
iot = ["load", "rate"]
emr = ["noise"]

[split]
scope = "entity"

[window]
length = 5
stride = 5

[model]
kind = "fusion"
joint = 4
aligned = 0

[model.encoders.iot]
kind = "gru"
hidden = 3

[model.encoders.emr]
kind = "gru"
hidden = 4
dense = [3]

[split_learning]
modality = "emr"
cut = 1
"""


def settings(tmp_path, *changes):
    path = tmp_path / "table.csv"
    if not path.exists():
        path.write_text("\n".join(tiny.table_lines()) + "\n")
    return parse(SPLIT.format(path=path.as_posix()), list(changes))


def built(chosen):
    prepared = build.prepare(chosen, build.build_dataset(chosen))
    return build.build(chosen, prepared)


def test_the_servers_half_is_in_no_clients_message(tmp_path):
    made = built(settings(tmp_path))
    assert made.plan.split is not None
    names = trees.path_names(made.abstract_params)
    server = [name for name in names if made.plan.split.server(name)]
    assert server == [
        "modality_emr/encoder/dense/dense_0/bias",
        "modality_emr/encoder/dense/dense_0/kernel",
    ]
    everything = trees.num_params(made.abstract_params)
    assert made.algorithm.message.uplink_bytes() == 4 * (everything - (4 * 3 + 3))
    # Up: the activations and what comes back of the embedding; 5 steps of 4 and 3.
    assert (made.plan.split.up_bytes, made.plan.split.down_bytes) == (140, 140)


def test_shares_of_modalities_weigh_their_encoders(tmp_path):
    made = built(settings(tmp_path, 'modality_average="present"'))
    assert made.plan.parts is not None
    # Nothing is missing in this table.
    np.testing.assert_array_equal(made.part_shares, np.ones((tiny.CLIENTS, 2)))
    of = made.plan.parts.of
    assert of("modality_emr/encoder/recurrent/wi") == 1
    assert of("modality_iot/head/kernel") == 0
    assert of("modality_iot/missing") is None
    assert of("joint/kernel") is None


@pytest.mark.parametrize("mode", ["parallel", "sequential", "relay"])
def test_a_split_run_ends_with_its_bytes(tmp_path, mode):
    chosen = settings(
        tmp_path,
        f'split_learning.mode="{mode}"',
        'split_learning.activations=[{kind="clip"},{kind="noise"}]',
        'split_learning.cotangents=[{kind="marvell"}]',
        "split_learning.nopeek=0.1",
        "split_learning.leakage=false",
    )
    result = training.train(chosen, tmp_path / "run", SILENT)
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert all(0 < line["nopeek"] <= 1 for line in lines)
    told = json.loads((tmp_path / "run" / "result.json").read_text())["communication"]
    assert told["wire_up_bytes_total"] == sum(line["wire_up_bytes"] for line in lines)
    assert told["wire_up_bytes_total"] > 0
    assert result["metrics"]["auroc"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("split_learning.cut=2",), "outside the encoder of 2"),
        (('split_learning.modality="ecg"',), "one of iot, emr"),
        (("model=gru",), "one encoder for all"),
        (("model=wide_deep", "window.length=1", "split_learning.modality=none"), "cut"),
        (('split_learning.client="personal"', 'split_learning.mode="relay"'), "relay"),
        (
            (
                'split_learning.labels="server"',
                'split_learning.cotangents=["max_norm"]',
            ),
            "nothing of a client",
        ),
        (('split_learning.activations=[{kind="noise"}]',), "a clip"),
        (("local.example_privacy={clip_norm=1.0}",), "example_privacy"),
    ],
)
def test_what_cannot_be_split_is_refused_with_its_field(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        built(settings(tmp_path, *changes))


def test_averaging_over_those_present_needs_encoders_by_modality():
    with pytest.raises(ConfigError, match="modality_average"):
        parse('modality_average = "present"\nmodel = "gru"')


def test_every_step_of_a_configuration_becomes_one_of_the_wire():
    for record in typing.get_args(config.Cotangent):
        assert wire_step(record()) == wire_step(record())


def test_the_wire_says_what_it_protects_and_what_not(tmp_path):
    chosen = settings(
        tmp_path,
        'split_learning.activations=[{kind="clip"},{kind="noise",multiplier=20.0}]',
        "local.epochs=3",
    )
    training.train(chosen, tmp_path / "run", SILENT)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    told = result["wire_privacy"]
    assert told["crossings"] == 3 * 2
    expected = wire_epsilon([20.0], 6, 1e-5)
    assert told["epsilon_activations"] == pytest.approx(expected, rel=1e-6)
    # The cotangents go back to the server without noise.
    assert told["epsilon"] is None
    assert any("cotangents" in text for text in told["not_covered"])
    write_report(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "example on the wire" in page
    assert "times that an example crosses" in page
    assert "across the cut to the server" in page
    borders = result["wire_leakage"]["borders"]
    assert [border["up"] for border in borders] == [True, False, True, False]
    # Noise of twenty times the clip leaves nothing to read; the bare wire shows much.
    read = borders[0]["read"]
    assert read["sent"]["decoder_error"] > 0.9 > 0.5 > read["bare"]["decoder_error"]
    labels = borders[2]["read"]
    assert labels["sent"] == labels["bare"]
    assert labels["sent"]["direction"] > 0.8
    text = page.split('<section id="wire">')[1].split("</section>")[0]
    assert "hardly anything of the records" in text
    assert "1: hospital to server" in text
    assert "6: server to hospital" in text
