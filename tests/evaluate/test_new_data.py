"""What new data may lack or bring, from the file to the scores of a finished run."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedjax_health import records
from fedjax_health.config import parse
from fedjax_health.evaluate import evaluate
from fedjax_health.evaluate.detector import read_detector
from fedjax_health.metrics import host
from fedjax_health.report.findings import cautions
from fedjax_health.report.records import read_folder
from tests import tiny

RECORDS = """
rounds = 2
devices = 1
leakcheck = false

[data]
kind = "table"
path = "{path}"
allow_missing = true
modalities = {{ own = ["load", "rate"], kinds = ["colour"] }}
categorical = ["colour"]
{data}

[split]
kind = "stratified"
unit = "{unit}"

[window]
length = 1

[model]
kind = "mlp"
hidden = [8]

[local]
batch_size = 16
{more}
"""

LINK = """
[[data.links]]
path = "{path}"
modality = "lab"
on = ["person"]
{time}
"""


def write(path: Path, frame: pd.DataFrame) -> Path:
    frame.to_csv(path, index=False)
    return path


def rows_of(seed, *, rows=240):
    """Records whose label shows in everything that a file holds of them."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    return pd.DataFrame(
        {
            "person": [f"p{n}" for n in range(rows)],
            "load": rng.normal(size=rows) + 2 * label,
            "rate": rng.normal(size=rows) - label,
            "colour": np.where(rng.random(rows) < 0.2 + 0.6 * label, "red", "blue"),
            "label": label,
        }
    )


def labs_of(frame, seed=5):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "person": frame["person"],
            "sodium": rng.normal(140, 3, len(frame)) + 5 * frame["label"],
            "lactate": rng.normal(2, 1, len(frame)),
        }
    )


def stays_of(seed, *, stays=60, length=6):
    """Stays of several rows and one label each, and a history of labs beside them."""
    first = rows_of(seed, rows=stays)
    frame = first.loc[first.index.repeat(length)].reset_index(drop=True)
    rng = np.random.default_rng(seed + 1)
    frame["load"] += rng.normal(size=len(frame))
    frame["t"] = np.tile(np.arange(length), stays)
    labs = pd.concat([labs_of(first, seed + n).assign(t=2 * n) for n in range(3)])
    return frame, labs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns ``(name) -> finished run``, each trained once."""
    folder = tmp_path_factory.mktemp("finished")
    done = {}

    def wards():
        path = folder / "wards"
        path.mkdir()
        for number, name in enumerate(("ward_a", "ward_b")):
            frame = rows_of(number).drop(columns="person")
            # What is usual at one ward is far out at the other.
            frame["load"] += 500 * number
            write(path / f"{name}.csv", frame)
        return RECORDS.format(path=path, data="", unit="row", more="")

    def linked():
        path = folder / "linked"
        path.mkdir()
        frame = rows_of(3)
        write(path / "labs.csv", labs_of(frame))
        link = LINK.format(path=path / "labs.csv", time="")
        main = write(path / "main.csv", frame)
        return RECORDS.format(path=main, data="", unit="row", more=link)

    def summarised(extra=""):
        path = folder / f"stays{len(extra)}"
        path.mkdir()
        frame, labs = stays_of(4)
        write(path / "labs.csv", labs)
        link = LINK.format(path=path / "labs.csv", time='time = "t"')
        roles = 'entity = "person"\ntime = "t"\ntarget = "entity"\ncarried = ["lab"]'
        main = write(path / "main.csv", frame)
        return RECORDS.format(
            path=main,
            data=roles,
            unit="patient",
            more=f'{link}\n[summarise]\nstatistics = ["last", "count"]\n{extra}',
        )

    made = {
        "wards": wards,
        "linked": linked,
        "summarised": summarised,
        "summarised, named": lambda: summarised(
            'log = ["sodium"]\nmodalities = ["lab", "own"]'
        ),
    }

    def get(name):
        if name not in done:
            config = parse(made[name]())
            done[name] = tiny.Run(config, folder / f"run {len(done)}")
        return done[name]

    return get


def scored(run, path, out):
    """Returns (result, scores, what was said) of an evaluation."""
    said = []
    progress = records.SILENT._replace(on_message=said.append)
    result = evaluate(run.paths.root, path, progress, out=out)
    return result, pd.read_parquet(result["scores"]), "\n".join(said)


def new_category(folder):
    frame = rows_of(20)
    frame.loc[:4, "colour"] = "green"
    return write(folder / "new.csv", frame)


def new_modality_absent(folder):
    return write(folder / "new.csv", rows_of(20).drop(columns="colour"))


def new_column_absent(folder):
    return write(folder / "new.csv", rows_of(20).drop(columns="rate"))


def new_files(folder):
    for number in range(2):
        write(folder / f"ward_{'bc'[number]}.csv", rows_of(30 + number))
    return folder


def new_file_alone(folder):
    frame = rows_of(1).drop(columns="person")
    frame["load"] += 500
    return write(folder / "ward_b.csv", frame)


def new_client(folder):
    return write(folder / "ward_z.csv", rows_of(20))


def new_stays(folder):
    frame, labs = stays_of(20)
    write(folder / "labs.csv", labs)
    return write(folder / "new.csv", frame)


@pytest.mark.parametrize(
    ("name", "make", "facts"),
    [
        ("wards", new_category, {"unseen_categories": {"kinds.colour": {"green": 5}}}),
        (
            "wards",
            new_modality_absent,
            {"unseen_categories": {}, "absent_modalities": ["kinds"]},
        ),
        (
            "wards",
            new_column_absent,
            {"absent_modalities": [], "absent_columns": ["own.rate"], "warnings": []},
        ),
        ("wards", new_files, {"unseen_clients": ["ward_c"], "clients": 2}),
        ("wards", new_file_alone, {"unseen_clients": []}),
        ("wards", new_client, {"unseen_clients": ["ward_z"]}),
        ("linked", new_category, {"absent_modalities": []}),
        ("summarised", new_stays, {"absent_modalities": [], "rows": 60}),
        ("summarised, named", new_stays, {"rows": 60}),
    ],
)
def test_new_data_is_scored_whatever_it_lacks_or_brings(
    finished, tmp_path, name, make, facts
):
    (tmp_path / "new").mkdir()
    path = make(tmp_path / "new")
    result, scores, _ = scored(finished(name), path, tmp_path / "out")
    assert {key: result[key] for key in facts} == facts
    assert len(scores) == result["rows"]
    assert scores["score"].between(0, 1).all()
    assert result["labels"]
    assert result["metrics"]["auroc"] == pytest.approx(
        host.auroc(scores["score"], scores["label"])
    )
    assert result["metrics"]["auroc"] > 0.6


@pytest.mark.parametrize("name", ["linked", "summarised", "summarised, named"])
def test_a_linked_table_may_be_nowhere(finished, tmp_path, name):
    run = finished(name)
    hidden = Path(run.config.data.links[0].path)
    aside = hidden.with_name("aside.csv")
    hidden.rename(aside)
    try:
        make = new_category if name == "linked" else new_stays
        path = make(tmp_path)
        (tmp_path / "labs.csv").unlink(missing_ok=True)
        result, scores, said = scored(run, path, tmp_path / "out")
    finally:
        aside.rename(hidden)
    assert result["absent_modalities"] == ["lab"]
    assert "modality lab: not in the data, taken as not observed" in said
    assert scores["score"].between(0, 1).all()
    assert scores["score"].nunique() > 1


def test_an_absent_history_counts_as_one_without_observations(finished, tmp_path):
    run = finished("summarised")
    hidden = Path(run.config.data.links[0].path)
    frame, labs = stays_of(20)
    empty = labs.assign(person="nobody")
    found = []
    for folder, table in (("absent", None), ("empty", empty)):
        (tmp_path / folder).mkdir()
        path = write(tmp_path / folder / "new.csv", frame)
        if table is not None:
            write(tmp_path / folder / "labs.csv", table)
        aside = hidden.rename(hidden.with_name("aside.csv"))
        try:
            found.append(scored(run, path, tmp_path / folder / "out")[1])
        finally:
            aside.rename(hidden)
    np.testing.assert_array_equal(found[0]["score"], found[1]["score"])


def test_a_file_alone_is_scored_as_among_the_others(finished, tmp_path):
    run = finished("wards")
    for folder in ("alone", "both"):
        (tmp_path / folder).mkdir()
        new_file_alone(tmp_path / folder)
    write(tmp_path / "both" / "ward_a.csv", rows_of(7))
    _, alone, _ = scored(run, tmp_path / "alone" / "ward_b.csv", tmp_path / "1")
    _, both, _ = scored(run, tmp_path / "both", tmp_path / "2")
    both = both[both["client"] == "ward_b"]
    assert set(alone["client"]) == {"ward_b"}
    np.testing.assert_array_equal(alone["score"], both["score"])


def test_all_rows_are_scored_and_those_with_labels_measured(finished, tmp_path):
    run = finished("wards")
    frame = rows_of(20)
    whole = write(tmp_path / "whole.csv", frame)
    cut = frame.assign(label=frame["label"].astype(str))
    cut.loc[::3, "label"] = ""
    part = write(tmp_path / "part.csv", cut)
    known = np.arange(len(frame)) % 3 > 0
    _, all_scores, _ = scored(run, whole, tmp_path / "1")
    result, scores, said = scored(run, part, tmp_path / "2")
    np.testing.assert_array_equal(scores["score"], all_scores["score"])
    np.testing.assert_array_equal(scores["label"].notna(), known)
    np.testing.assert_array_equal(scores["label"][known], frame["label"][known])
    np.testing.assert_array_equal(scores["attack"].notna(), known)
    assert result["rows"] == len(frame)
    assert result["labelled"] == known.sum()
    assert f"labels of {known.sum()} examples" in said
    figures = records.read_json(tmp_path / "2" / "figures.json")
    assert figures["rows"] == known.sum()
    # A report of the folder tells the two apart, and finds the configuration.
    view = read_folder(tmp_path / "2")
    assert view.predictions is not None
    np.testing.assert_array_equal(view.predictions.label >= 0, known)
    assert view.config["model"]["kind"] == "mlp"
    assert result["metrics"]["auroc"] == pytest.approx(
        host.auroc(scores["score"][known], frame["label"][known])
    )


def test_a_row_without_a_label_cuts_an_episode(tmp_path):
    """Delays count from what is known: the same rows, given as two streams."""
    run = tiny.Run(
        tiny.config(tiny.write_table(tmp_path / "ward.csv")), tmp_path / "run"
    )
    lines = tiny.table_lines(seed=11)
    unknown = {line for line in lines[1:] if int(line.split(",")[2]) in (60, 61)}
    whole = tiny.write_table(tmp_path / "whole.csv", lines)
    cut = tiny.write_table(
        tmp_path / "cut.csv",
        [ln.rpartition(",")[0] + "," if ln in unknown else ln for ln in lines],
    )
    _, before, _ = scored(run, whole, tmp_path / "1")
    result, scores, _ = scored(run, cut, tmp_path / "2")
    known = scores["label"].notna().to_numpy()
    assert (~known).sum() == len(unknown) == 16
    alarm = (scores["score"] >= read_detector(run.paths).alarm_threshold).to_numpy()
    label = before["label"].to_numpy()
    stream = (before["client"] + before["entity"].astype(str)).to_numpy()
    missed = total = 0
    position = np.arange(len(label))
    pieces = itertools.groupby(
        position[known], key=lambda row: (stream[row], (~known[: row + 1]).sum())
    )
    for _, rows in pieces:
        rows = list(rows)
        for attacked, episode in itertools.groupby(rows, key=lambda row: label[row]):
            if attacked:
                total += 1
                missed += not any(alarm[row] for row in episode)
    assert total > 0
    assert result["metrics"]["missed_episodes"] == pytest.approx(missed / total)


def test_what_was_warned_of_is_kept_and_shown(finished, tmp_path):
    run = finished("wards")
    frame = rows_of(20)
    frame["load"] = 50 + frame["load"]
    frame.loc[len(frame) // 2 :, "load"] *= 1000
    path = write(tmp_path / "ward_z.csv", frame.drop(columns="colour"))
    result, _, said = scored(run, path, tmp_path / "out")
    (text,) = result["warnings"]
    assert "'load' of modality 'own' looks as if its unit changed" in text
    assert f"warning: {text}" in said
    found = {one.about: one.text for one in cautions(read_folder(tmp_path / "out"))}
    assert found["While the data was read"] == f"{text}."
    assert found["Not in the data"].startswith("Modality kinds: training had")
    assert found["Clients that training never saw"].startswith("ward_z (240 rows)")


def test_a_run_keeps_what_was_warned_of(finished):
    """One of the wards measures in another unit."""
    run = finished("wards")
    (said,) = run.result["warnings"]
    assert "'load' of modality 'own' looks as if its unit changed at client" in said
    found = [one.text for one in cautions(read_folder(run.paths.root))]
    assert f"{said}." in found


def test_scores_lead_back_to_the_rows_and_dates_of_the_file(tmp_path):
    """Rows stand in any order in the file, and by client and time in the scores."""
    lines = tiny.table_lines()
    first = pd.Timestamp("2026-05-04 00:00")
    frame = pd.DataFrame(
        [line.split(",") for line in lines[1:]], columns=lines[0].split(",")
    )
    minutes = pd.to_timedelta(frame["minute"].astype(int), unit="min")
    frame["minute"] = (first + minutes).dt.strftime("%Y-%m-%dT%H:%M:%S")
    frame = frame.sample(frac=1, random_state=0)
    path = write(tmp_path / "ward.csv", frame)
    run = tiny.Run(tiny.config(path, "rounds=1"), tmp_path / "run")
    _, scores, _ = scored(run, path, tmp_path / "out")
    for found in (scores, pd.read_parquet(run.paths.predictions)):
        source = pd.read_csv(path).iloc[found["row"]].reset_index(drop=True)
        np.testing.assert_array_equal(source["site"], found["client"])
        np.testing.assert_array_equal(source["label"], found["label"])
        written = pd.to_datetime(source["minute"])
        np.testing.assert_array_equal(written.to_numpy(), found["timestamp"].to_numpy())
    assert sorted(scores["row"]) == list(range(len(frame)))
    view = read_folder(tmp_path / "out")
    assert view.predictions is not None
    assert view.predictions.dated
