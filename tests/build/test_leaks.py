"""Every column of a table is looked at, those too that no detector sees."""

import numpy as np
import pytest

from fedjax_health.build import (
    build_dataset,
    build_evaluation_dataset,
    find_leaks,
    split_of,
    warn_of_repeats,
)
from fedjax_health.config import parse
from fedjax_health.data.schema import DataWarning

SETTINGS = """
window.length = 5

[data]
kind = "table"
path = "{path}"
client = "site"
time = "minute"
drop = ["address", "note"]
modalities = {{ flow = ["load", "rate"] }}

[model]
kind = "mlp"
"""


def table(path, *, rows=400, seed=0):
    """A CSV: "address" gives the label away, "note" is text, "spare" has gaps."""
    generator = np.random.default_rng(seed)
    lines = ["site,minute,load,rate,address,note,spare,label"]
    for site in ("b", "a"):
        for minute in generator.permutation(rows):
            label = int(generator.random() < 0.3)
            load, rate = generator.normal(size=2) + 0.5 * label
            spare = "" if generator.random() < 0.5 else f"{generator.normal():.3f}"
            address = f"10.0.{label}.{generator.integers(9)}"
            note = generator.choice(["x, y", "z"])
            lines.append(
                f'{site},{minute},{load:.4f},{rate:.4f},{address},"{note}",{spare},'
                f"{label}"
            )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def report_of(path, *changes):
    settings = parse(SETTINGS.format(path=path), changes)
    dataset = build_dataset(settings)
    return find_leaks(settings, dataset, split_of(settings, dataset))


def test_dropped_and_unused_columns_are_shown_with_their_roles(tmp_path):
    report = report_of(table(tmp_path / "t.csv"))
    roles = {one.column: one.role for one in report.columns}
    assert roles == {
        "load": "flow",
        "rate": "flow",
        "address": "drop",
        "note": "drop",
        "spare": "unused",
        "site": "client",
        "minute": "time",
        "label": "label",
    }
    assert report.passed
    # The rows of the second reading are those of the first, in the same order.
    first = report.columns[0]
    assert (first.column, first.suspicious) == ("address", True)
    assert first.auroc == pytest.approx(1, abs=1e-3)
    assert all((one.auroc or 0) < 0.75 for one in report.columns[1:])


def test_the_same_column_in_use_is_a_warning(tmp_path):
    report = report_of(
        table(tmp_path / "t.csv"),
        'data.drop=["note"]',
        'data.modalities.flow=["load", "rate", "address"]',
        'data.categorical=["address"]',
    )
    assert not report.passed
    assert "address (AUROC 1.000); list them in drop" in report.checks[0].message


@pytest.mark.parametrize("modalities", ['["load", "rate"]', '"rest"'])
def test_columns_that_are_summarised_are_in_use(tmp_path, modalities):
    lines = table(tmp_path / "t.csv").read_text().splitlines()
    head, *rows = [line.rpartition(",")[0] for line in lines]
    # Stays of four rows of one site, every third of them positive.
    stays = [f"{row},{i // 4},{i // 4 % 3 // 2}" for i, row in enumerate(rows)]
    path = tmp_path / "stays.csv"
    path.write_text("\n".join([f"{head},stay,label", *stays]), encoding="utf-8")
    report = report_of(
        path,
        f"data.modalities.flow={modalities}",
        "data.entity=stay",
        "data.target=entity",
        "data.allow_missing=true",
        'data.carried=["flow"]',
        "split=stratified",
        "window.length=1",
        'summarise.statistics=["last", "mean"]',
    )
    roles = {one.column: one.role for one in report.columns}
    assert roles["load last"] == roles["load mean"] == "flow"
    assert "load" not in roles
    assert roles["address"] == "drop"
    assert ("spare" in roles) == (modalities != '"rest"')


def test_data_that_are_no_table(tmp_path):
    path = table(tmp_path / "t.csv")
    settings = parse(SETTINGS.format(path=path))
    dataset = build_dataset(settings)
    generated = parse('data.kind = "hospital_sim"')
    report = find_leaks(generated, dataset, split_of(settings, dataset))
    assert [one.role for one in report.columns if one.column == "client"] == ["client"]
    assert {one.column for one in report.columns} == {
        "load",
        "rate",
        "client",
        "entity",
        "time",
    }


@pytest.mark.realdata
def test_wustl_addresses_give_the_label_away(data_root):
    path = data_root / "wustl_ehms_2020" / "wustl-ehms-2020_first70.csv"
    if not path.is_file():
        pytest.skip(f"{path} not found")
    from fedjax_health.config import load

    settings = load("wustl", [f'data.path="{path}"'])
    dataset = build_dataset(settings)
    report = find_leaks(settings, dataset, split_of(settings, dataset))
    assert report.passed
    assert report.columns[0] == ("SrcMac", "drop", 1.0, True)
    assert [one.column for one in report.columns if one.suspicious] == ["SrcMac"]
    # Rows dealt at random learn the time of each attack.
    rows = load("wustl", [f'data.path="{path}"', "split=stratified", "split.unit=row"])
    report = find_leaks(rows, dataset, split_of(rows, dataset))
    (check,) = [one for one in report.checks if one.check == "identifiers and time"]
    assert check.value > 0.85
    assert not check.passed


def checked(report, name):
    (check,) = [one for one in report.checks if one.check == name]
    return check


def test_persons_attacks_and_keys_have_a_line_of_their_own(tmp_path):
    lines = table(tmp_path / "t.csv").read_text().splitlines()
    head, *rows = lines
    told = []
    for i, row in enumerate(rows):
        attack = "dos" if row.endswith("1") else "normal"
        told.append(f"{row},p{i % 40},{attack},k{i % 7}")
    path = tmp_path / "all.csv"
    path.write_text("\n".join([f"{head},person,kind,key", *told]), encoding="utf-8")
    (tmp_path / "linked.csv").write_text(
        "key,age\n" + "".join(f"k{i},{i}\n" for i in range(7)), encoding="utf-8"
    )
    link = f'[{{path = "{tmp_path}/linked.csv", modality = "emr", on = ["key"]}}]'
    report = report_of(
        path,
        "data.patient=person",
        "data.attack=kind",
        f"data.links={link}",
        'data.modalities.flow="rest"',
        "data.allow_missing=true",
    )
    roles = {one.column: one.role for one in report.columns}
    assert set(roles) == {*head.split(","), "person", "kind", "key", "age"}
    assert (roles["person"], roles["kind"]) == ("patient", "attack")
    assert roles["label"] == "label"
    assert roles["key"] == "unused"


def test_clients_are_those_of_the_partition(tmp_path):
    path = table(tmp_path / "t.csv")
    changes = ("data.client=none", "data.time=none", 'data.drop=["address"]')
    assert checked(report_of(path, *changes), "single-class clients").value is None
    report = report_of(
        path, *changes, "partition=contiguous", "partition.num_clients=8"
    )
    check = checked(report, "single-class clients")
    assert check.value == 0
    assert check.message.startswith("0 of 8 clients")


def test_rows_that_stand_twice_are_named_by_their_columns(tmp_path):
    lines = table(tmp_path / "t.csv").read_text().splitlines()
    path = tmp_path / "twice.csv"
    path.write_text("\n".join([*lines, *lines[1:21]]), encoding="utf-8")
    check = checked(report_of(path), "repeated rows")
    assert not check.passed
    assert check.message.startswith("20 rows repeat (site, minute), 20 of them")
    settings = parse(SETTINGS.format(path=path))
    with pytest.warns(DataWarning, match=r"20 rows repeat \(site, minute\)"):
        warn_of_repeats(settings, build_dataset(settings))
    with pytest.warns(DataWarning, match="20 rows repeat"):
        build_evaluation_dataset(settings, path)
    check = checked(report_of(path, "data.time=none"), "repeated rows")
    assert check.value == pytest.approx(20 / 820)
    assert check.message.startswith("20 rows repeat another one in every column")
