"""The server's own data: held out of one site, prepared as its rows are, refused."""

import warnings

import numpy as np
import pytest

from fedjax_health import build, config
from fedjax_health.build.root import check_root
from fedjax_health.config import ConfigError, parse
from fedjax_health.data.schema import DataWarning
from tests import tiny
from tests.build.test_prepared import stays

TRUST = ("aggregator=fltrust", "root.client=s1", "root.share=0.3")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.write_table(tmp_path_factory.mktemp("table") / "ward.csv")


def prepared(table, *overrides):
    settings = tiny.config(table, *overrides)
    return build.prepare(settings, build.build_dataset(settings))


def windows(store, first=0, end=None):
    """The windows of a store, without the rows that fill them up."""
    starts = store.starts[first:end]
    rows = starts[:, None] + np.arange(store.window)
    valid = store.rows["valid"][rows] > 0
    return [store.rows["x"][r[v]] for r, v in zip(rows, valid, strict=True)]


def numbers(rows, *, among):
    """The numbers of the rows that are the nearest ones, which must be near."""
    distance = np.abs(rows[:, None] - among[None]).max(axis=2)
    assert distance.min(axis=1).max() < 1e-3
    return set(distance.argmin(axis=1).tolist())


def test_rows_of_the_server_are_rows_of_the_site_and_nobody_elses(table):
    plain, cut = prepared(table), prepared(table, *TRUST)
    assert plain.root is None
    assert cut.root.client_names == ("s1",)
    assert cut.root.window == cut.store.window == 5
    # 67 training rows of each of two streams.
    held = int(0.3 * 2 * 67)
    before, after = plain.parts.train, cut.parts.train
    assert after.num_rows == before.num_rows - held
    for client in (0, 2, 3):
        for part in (before, after):
            assert (part.client == client).sum() == 2 * 67
    # Told apart by unscaled values: the scaling itself is fitted on what is kept.
    raw = build.build_dataset(tiny.config(table)).features["features"]
    scaler = cut.preprocessing.scaler
    first, end = cut.store.offsets[1:3]
    server, site = (
        numbers(
            rows * scaler.std["features"][1] + scaler.mean["features"][1],
            among=raw,
        )
        for rows in (
            np.concatenate(windows(cut.root)),
            np.concatenate(windows(cut.store, first, end)),
        )
    )
    assert not server & site
    assert server | site <= set(range(240, 480))
    label = cut.root.rows["label"]
    assert 0 < label.sum() < len(label)


def test_validation_and_test_parts_and_other_clients_do_not_change(table):
    plain, cut = prepared(table), prepared(table, *TRUST)
    np.testing.assert_array_equal(plain.split, cut.split)
    for name in ("validation", "test"):
        before, after = getattr(plain.parts, name), getattr(cut.parts, name)
        others = before.client != 1
        np.testing.assert_array_equal(before.label, after.label)
        np.testing.assert_array_equal(
            before.features["features"][others], after.features["features"][others]
        )


def test_stays_and_what_losses_need_are_held_out_too():
    changes = ("balance=client", "alignment.step=last", "model=fusion")
    settings = parse(
        'split = "stratified"\naggregator = "fltrust"\n'
        '[window]\nlength = 4\n[root]\nclient = "south"\nshare = 0.25',
        changes,
    )
    cut = build.prepare(settings, stays())
    assert set(cut.root.rows) == set(cut.store.rows)
    assert {"class_weight", "patient", "position"} <= set(cut.root.rows)
    held = cut.root.rows["label"][cut.root.starts]
    assert 0 < held.sum() < len(held)
    weight = cut.root.rows["class_weight"][cut.root.starts]
    assert weight[held > 0].sum() == pytest.approx(weight[held == 0].sum())


def test_the_plan_trains_on_them(table):
    settings = tiny.config(table, *TRUST)
    ready = build.prepare(settings, build.build_dataset(settings))
    built = build.build(settings, ready)
    batches = built.plan.root_batches
    assert batches.num_examples == ready.root.num_examples > 0
    assert batches.index == 0
    held = ready.root.rows["x"]
    np.testing.assert_array_equal(batches.arrays.rows["x"][: len(held)], held)
    assert build.build(tiny.config(table), prepared(table)).plan.root_batches is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["aggregator=fltrust"], r"aggregator: fltrust .* --set root\.client=NAME"),
        (["root.client=s1"], r"root: aggregator mean makes no use .* root=none"),
        (["aggregator=fltrust", "root.share=0.2"], r"root\.client: names no client"),
        ([*TRUST, "root.share=1.0"], r"root\.share: 1\.0: "),
        ([*TRUST, "root.share=0"], r"root\.share: 0"),
    ],
)
def test_what_does_not_go_together_is_refused(table, changes, message):
    with pytest.raises(ConfigError, match=f"^config: {message}"):
        tiny.config(table, *changes)


def test_a_rule_of_ones_own_may_read_them(table):
    own = 'aggregator={kind="custom", target="a.b:c"}'
    assert tiny.config(table, own, "root.client=s1").root == config.Root("s1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["root.client=s11"], r"root\.client: no client 's11' trains; did you mean s"),
        (["root.client=ward"], "no client 'ward' trains; there are s0, s1, s2, s3$"),
        (["root.share=0.01"], r"root\.share: share 0\.01 .* comes to none .* raise it"),
        (
            ["split=leave_one_out", "split.client=s1", "split.unit=row"],
            "no client 's1' trains",
        ),
    ],
)
def test_what_the_data_cannot_give_is_refused(table, changes, message):
    with pytest.raises(ConfigError, match=message):
        prepared(table, *TRUST, *changes)


def test_a_site_that_is_malicious_by_name_is_refused_and_a_drawn_one_warned_of(table):
    names = ("s0", "s1", "s2", "s3")
    flags = np.array([False, True, False, False])
    with pytest.raises(ConfigError, match=r"root\.client: 's1' is client 1, which mal"):
        check_root(tiny.config(table, *TRUST, "malicious=[1]"), names, flags)
    with pytest.warns(DataWarning, match="drawn as malicious: the rows are clean"):
        check_root(tiny.config(table, *TRUST, "malicious=0.25"), names, flags)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_root(tiny.config(table, *TRUST, "malicious=[2]"), names, ~flags & False)
        check_root(tiny.config(table, "malicious=[1]"), names, flags)


def test_rows_of_one_class_are_warned_of_and_none_may_be_left_out(tmp_path):
    lines = tiny.table_lines()
    calm = [
        line[:-1] + ("0" if line.startswith("s1") else line[-1]) for line in lines[1:]
    ]
    table = tiny.write_table(tmp_path / "calm.csv", [lines[0], *calm])
    with pytest.warns(DataWarning, match=r"takes from 's1' have label 0: .* raise"):
        prepared(table, *TRUST)
