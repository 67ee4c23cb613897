"""A configuration's split and partition are those of the functions that it names."""

import numpy as np
import pytest

from fedjax_health.build.split import deal_out, records_apart, split_of
from fedjax_health.config import parse
from fedjax_health.data import partition, splits
from fedjax_health.data.schema import Dataset, check_dataset, segment_starts

WARDS = ("north", "east", "south")


def streams(*, entities=2, rows=120):
    """Three wards of two devices with attacks of ten rows."""
    total = len(WARDS) * entities * rows
    step = np.tile(np.arange(rows), len(WARDS) * entities)
    label = (step % 40 < 10).astype(np.float32)
    data = Dataset(
        features={"flow": np.arange(total, dtype=np.float32)[:, None]},
        feature_names={"flow": ("load",)},
        label=label,
        attack=label.astype(np.int32),
        attack_names=("normal", "attack"),
        client=np.repeat(np.arange(len(WARDS)), entities * rows).astype(np.int32),
        client_names=WARDS,
        entity=np.tile(np.repeat(np.arange(entities), rows), len(WARDS)).astype(
            np.int64
        ),
        time=step.astype(np.float64),
        entity_names=("d0", "d1"),
    )
    check_dataset(data)
    return data


def settings(*changes, window=5):
    return parse(f"seed = 3\n[window]\nlength = {window}", changes)


BY_ROW = {"train": 0.5, "validation": 0.2, "test": 0.3}
SHARES = [f"split.{name}={share}" for name, share in BY_ROW.items()]


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        # The embargo is as long as the window, the seed that of the run.
        (
            [*SHARES, "split.scope=entity"],
            lambda d: splits.chronological(d, **BY_ROW, embargo=5, scope="entity"),
        ),
        (
            [*SHARES, "split.embargo=2"],
            lambda d: splits.chronological(d, **BY_ROW, embargo=2),
        ),
        (
            ["split=episode_blocks", "split.block=30", "split.fractions=[0.5,0.2,0.3]"],
            lambda d: splits.episode_blocks(
                d, block=30, fractions=(0.5, 0.2, 0.3), embargo=5, seed=3
            ),
        ),
        (
            ["split=stratified", *SHARES, "split.unit=row", "split.seed=8"],
            lambda d: splits.stratified(d, **BY_ROW, unit="row", seed=8),
        ),
        (
            ["split=by_client", *SHARES, 'split.test_clients=["east"]'],
            lambda d: splits.by_client(d, **BY_ROW, test_clients=("east",), seed=3),
        ),
        (
            [
                *("split=leave_one_out", "split.client=south"),
                *("split.validation=0.4", "split.unit=row"),
            ],
            lambda d: splits.leave_one_out(
                d, client="south", validation=0.4, unit="row", seed=3
            ),
        ),
    ],
)
def test_each_kind_of_split_is_its_function(changes, want):
    data = streams()
    found = split_of(settings(*changes), data)
    np.testing.assert_array_equal(found, want(data))


def test_single_rows_have_no_embargo():
    data = streams()
    alone = settings("split.scope=entity", "model=mlp", window=1)
    part = split_of(alone, data)
    assert not (part == splits.Part.EMBARGO).any()
    assert (split_of(settings("split.scope=entity"), data) == -1).any()


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ([], lambda p: partition.natural(p)),
        (
            ["partition=contiguous", "partition.num_clients=4"],
            lambda p: partition.contiguous(p, num_clients=4),
        ),
        (
            ["partition=iid", "partition.num_clients=4", "partition.unit=10"],
            lambda p: partition.iid(p, num_clients=4, seed=3, unit=10),
        ),
        (
            [
                *("partition=dirichlet_labels", "partition.num_clients=3"),
                *("partition.alpha=0.5", "partition.unit=10", "partition.by=attack"),
            ],
            lambda p: partition.dirichlet_labels(
                p, num_clients=3, alpha=0.5, seed=3, unit=10, by="attack"
            ),
        ),
        (
            [
                *("partition=quantity_skew", "partition.num_clients=3"),
                *("partition.exponent=0.5", "partition.unit=10"),
            ],
            lambda p: partition.quantity_skew(
                p, num_clients=3, exponent=0.5, seed=3, unit=10
            ),
        ),
    ],
)
def test_each_kind_of_partition_is_its_function(changes, want):
    config, data = settings("split.scope=entity", *changes), streams()
    parts = splits.split_dataset(data, split_of(config, data))
    for found, part in zip(deal_out(config, parts), want(parts), strict=True):
        assert found.client_names == part.client_names
        for name in ("client", "entity", "time", "label"):
            np.testing.assert_array_equal(getattr(found, name), getattr(part, name))


def test_rows_that_are_dealt_one_by_one_follow_no_other():
    data = streams()
    config = settings("split=stratified", "split.unit=row")
    parts = deal_out(config, splits.split_dataset(data, split_of(config, data)))
    whole = records_apart(config, data)
    for part in (*parts, whole):
        assert len(segment_starts(part)) == part.num_rows
        names = np.array(part.entity_names)[part.entity]
        # Whatever became of the number, a row keeps its name.
        before = data.features["flow"][:, 0].searchsorted(part.features["flow"][:, 0])
        np.testing.assert_array_equal(
            names, np.array(["d0", "d1"])[data.entity[before]]
        )
    assert records_apart(settings(), data) is data
    patients = settings("split=stratified")
    assert records_apart(patients, data) is data
