"""Runs in which the devices of a hospital are averaged before it speaks."""

import numpy as np
import pytest

from fedjax_health import build
from fedjax_health.config import ConfigError, parse
from fedjax_health.data.schema import DataError
from fedjax_health.training import account
from fedjax_health.training.describe import describe
from fedjax_health.training.setup import prepare_run
from tests import tiny


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.write_table(tmp_path_factory.mktemp("table") / "ward.csv")


def test_a_run_averages_the_devices_of_each_site(table, tmp_path):
    run = tiny.Run(tiny.config(table, "local.device_steps=1"), tmp_path / "run")
    flat = prepare_run(tiny.config(table), run.progress)
    sizes = np.diff(flat.prepared.store.devices)
    assert len(sizes) == tiny.CLIENTS * tiny.ENTITIES
    # A pass over the larger device's examples, taken by a model of each device.
    per_client = sizes.reshape(tiny.CLIENTS, tiny.ENTITIES).max(axis=1)
    steps = int(np.sum(-(-per_client // 16)))
    assert [line["num_steps"] for line in run.lines] == [steps] * 4
    assert run.result["metrics"]["auroc"] > 0.6


def test_an_example_crosses_a_wire_as_often_as_its_device_visits_it(table):
    base = tiny.config(table)
    store = prepare_run(base, tiny.records.SILENT).prepared.store._replace(
        offsets=np.array([0, 40, 50]), devices=np.array([0, 33, 40, 50])
    )

    def crossings(*changes):
        config = tiny.config(table, "model.dense=[4]", "split_learning.cut=1", *changes)
        return account.wire_privacy(config, store, 10)["crossings"]

    assert crossings("local.epochs=2") == 2 * 10
    # The 7 examples of the second device: 2 * ceil(33 / 16) steps of all of them.
    assert crossings("local.epochs=2", "local.device_steps=3") == 6 * 10
    # Without devices, 4 steps go four times through the 10 of the second client.
    assert crossings("local.steps=4") == 4 * 10


def test_the_plan_says_so(table):
    told = describe(tiny.config(table, "local.device_steps=3"))
    told = told["stages"]["1 train locally"]
    assert told.endswith("devices averaged every 3 steps")


def test_what_devices_cannot_do_is_refused(table):
    with pytest.raises(ConfigError, match=r"alignment: .* one device alone"):
        parse('model = "fusion"\nalignment = "infonce"\nlocal.device_steps = 2')
    with pytest.raises(ConfigError, match="exclude each other"):
        parse("[local]\ndevice_steps = 2\nexample_privacy = {clip_norm = 1.0}")
    config = tiny.config(table, "local.device_steps=2")
    prepared = prepare_run(config, tiny.records.SILENT).prepared
    # As of stays, whose rows have one label together.
    stays = prepared._replace(store=prepared.store._replace(devices=None))
    with pytest.raises(DataError, match="belong to no devices"):
        build.build(config, stays)
