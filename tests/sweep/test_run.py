"""A sweep in a folder: its figures are those of runs, and a kill costs one cell."""

import functools
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest

from fedjax_health import config, records, training
from fedjax_health.config.sweep import load_sweep, parse_sweep
from fedjax_health.data.schema import DataError, DataWarning
from fedjax_health.records import RunFolderError
from fedjax_health.sweep.run import (
    Setup,
    groups_of,
    measure_cells,
    read_cells,
    resume_sweep,
    run_sweep,
)
from tests.sweep import grid

MAKE = functools.partial(measure_cells, Setup(None, None))
FILES = ("results.parquet", "results.csv", "curves.parquet", "settings.json")


def run(sweep, folder, heard=None, **options):
    heard = heard or grid.Heard()
    options = {"make_measure": MAKE, **options}
    result = run_sweep(sweep, folder, heard.progress, **options)
    return result, heard


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    sweep = grid.load(root)
    result, heard = run(sweep, root / "out")
    return sweep, records.sweep_folder(root / "out"), result, heard


def test_every_cell_has_its_row_and_every_computation_is_done_once(finished):
    sweep, paths, result, heard = finished
    table = pd.read_parquet(paths.results)
    assert len(table) == len(sweep.cells) == result["cells"]["done"]
    assert list(table.columns[:5]) == [
        "seed",
        "malicious",
        "defence",
        "attack",
        "tuned",
    ]
    assert sorted(heard.cells) == sorted({c.key for c in sweep.cells})
    told = pd.read_csv(paths.results_csv, keep_default_na=False, na_values=[""])
    assert list(told.columns) == list(table.columns)
    for name in table.columns:
        # An empty text and none at all look the same in a CSV.
        first, second = (frame[name].replace("", None) for frame in (told, table))
        assert first.isna().tolist() == second.isna().tolist(), name
        assert first.dropna().tolist() == second.dropna().tolist(), name
    curves = pd.read_parquet(paths.curves)
    assert set(curves["round"]) == {2, 4}
    assert len(curves) == 2 * len(table)


def test_a_cell_gives_the_figures_of_a_run(finished, tmp_path):
    sweep, paths, _, _ = finished
    cell = next(
        c
        for c in sweep.cells
        if c.values["attack"] == "sign flip" and c.values["malicious"] and not c.tuned
    )
    result = training.train(cell.config, tmp_path / "run", records.SILENT)
    record = read_cells(paths)[cell.key]
    assert record["malicious"] == 1
    for name, value in result["metrics"].items():
        assert record["best"]["test"][name] == value
    assert record["best"]["round"] == result["best_round"]
    lines = records.read_jsonl(records.run_folder(tmp_path / "run").metrics)
    for point in record["curve"]:
        line = lines[point["round"] - 1]
        assert point["loss"] == line["loss"]
        assert point["validation_auroc"] == line["validation_auroc"]


def test_attacks_hurt_the_mean(finished):
    _, paths, _, _ = finished
    table = pd.read_parquet(paths.results)
    hit = table[(table.defence == "mean") & (table.malicious == 0.25)]
    means = hit.groupby("attack").final_auroc.mean()
    assert means["sign flip"] < means["no attack"]


def test_one_setting_of_each_tuned_candidate_is_selected(finished):
    _, paths, _, _ = finished
    table = pd.read_parquet(paths.results)
    assert table[table.defence == "mean"].selected.all()
    tuned = table[table.defence == "centred clipping"]
    picked = tuned[tuned.selected].groupby("malicious").tuned.unique()
    assert picked.map(len).eq(1).all()
    # A radius of a thousandth cannot learn.
    assert picked[0.0][0] == "aggregator.radius=10.0"


def test_an_interrupted_sweep_goes_on_to_the_same_tables(finished, tmp_path):
    sweep, paths, _, _ = finished
    with pytest.raises(KeyboardInterrupt):
        run(sweep, tmp_path / "out", grid.Heard(stop_after=5))
    halfway = records.sweep_folder(tmp_path / "out")
    assert len(read_cells(halfway)) == 5
    # As a kill in the middle of a line leaves it.
    for path in (halfway.cells, halfway.timings):
        with open(path, "ab") as file:
            file.write(b'{"cell":"0123","record":{"sta')
    heard = grid.Heard()
    resume_sweep(tmp_path / "out", heard.progress, make_measure=MAKE)
    assert heard.done == 5
    assert len(heard.cells) == heard.total - 5
    # The report reads them.
    timed = [line["cell"] for line in records.read_jsonl(halfway.timings)]
    assert timed == list(read_cells(halfway))
    for name in FILES:
        assert (paths.root / name).read_bytes() == (
            tmp_path / "out" / name
        ).read_bytes()


def test_several_processes_give_the_same_bytes(finished, tmp_path):
    sweep, paths, _, _ = finished
    few = parse_sweep(sweep.toml)
    make = functools.partial(measure_cells, Setup(1, None))
    only = [c for c in few.cells if c.values["malicious"] and not c.values["seed"]]
    only = [c for c in only if c.values["attack"] == "ipm"][:2]
    few = few._replace(cells=tuple(only))
    run(few, tmp_path / "out", workers=2, make_measure=make)
    mine = read_cells(records.sweep_folder(tmp_path / "out"))
    theirs = read_cells(paths)
    assert mine == {key: theirs[key] for key in mine}
    assert len(mine) == len({c.key for c in only})


def test_cells_that_fail_are_told_and_stop_nothing(finished, tmp_path):
    del finished
    axes = (
        "[axes.defence.mean]\naggregator = 'mean'\n"
        "[axes.defence.krum]\naggregator = { kind = 'krum', num_malicious = 2 }\n"
        "[axes.defence.broken]\n"
        "aggregator = { kind = 'custom', target = 'tests.sweep.test_run:broken' }\n"
    )
    sweep = grid.load(tmp_path, "malicious=0.25", "attack=ipm", axes=axes)
    result, heard = run(sweep, tmp_path / "out")
    assert result["cells"] == {"done": 1, "failed": 1, "refused": 1}
    table = pd.read_parquet(records.sweep_folder(tmp_path / "out").results)
    by_name = table.set_index("defence")
    assert "2 num_malicious" in by_name.reason["krum"]
    assert by_name.reason["broken"] == "RuntimeError: out of order"
    assert np.isnan(by_name.final_auroc["broken"])
    assert by_name.final_auroc["mean"] > 0
    assert sum("warning" in text for text in heard.messages) == 2
    # What failed is tried again, what was refused is known.
    again = grid.Heard()
    resume_sweep(tmp_path / "out", again.progress, make_measure=MAKE)
    (broken,) = (c for c in sweep.cells if c.values["defence"] == "broken")
    assert again.cells == [broken.key]


def broken():
    raise RuntimeError("out of order")


def test_a_model_that_diverges_counts_as_one_that_says_the_same_of_all(tmp_path):
    axes = "[axes]\nseed = [0]\n"
    changes = (
        "malicious=0.25",
        "attack=ipm",
        "model=mlp",
        "window.length=1",
        "local.optimizer.learning_rate=1e25",
    )
    sweep = grid.load(tmp_path, *changes, axes=axes)
    run(sweep, tmp_path / "out")
    ((_, record),) = read_cells(records.sweep_folder(tmp_path / "out")).items()
    assert record["status"] == "diverged"
    # Sweeps save no checkpoint.
    assert record["reason"].endswith("or clip the updates")
    assert record["final"]["test"]["auroc"] == 0.5
    prevalence = record["final"]["test"]["prevalence"]
    assert record["final"]["test"]["auprc"] == pytest.approx(prevalence)


SMALL = """
[cell]
rounds = 1
model = { kind = 'mlp', hidden = [4] }
window = { length = 1, stride = 1 }
[axes]
seed = [0, 1, 2]
"""


def test_a_resume_refuses_changed_data_and_tells_other_versions(tmp_path):
    sweep = grid.load(tmp_path, axes=SMALL)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(sweep, out, grid.Heard(stop_after=1))
    paths = records.sweep_folder(out)
    environment = records.read_json(paths.environment)
    (version,) = environment["context"]["data"].values()
    table = tmp_path / "ward.csv"
    assert version == records.file_sha256(table)
    before = table.read_bytes()
    table.write_bytes(before + before.splitlines(keepends=True)[-1])
    with pytest.raises(RunFolderError, match=r"the data has changed since .*ward\.csv"):
        resume_sweep(out, grid.Heard().progress, make_measure=MAKE)
    assert len(read_cells(paths)) == 1
    table.write_bytes(before)
    environment["context"]["jax"] = "0.0.1"
    records.write_json(paths.environment, environment)
    heard = grid.Heard()
    resume_sweep(out, heard.progress, make_measure=MAKE)
    assert len(heard.cells) == 2
    assert any("jax 0.0.1 -> " in text for text in heard.messages)
    # With nothing left to measure the data is not needed.
    table.unlink()
    resume_sweep(out, heard.progress, make_measure=MAKE)
    assert len(heard.cells) == 2


def test_generated_data_has_the_version_of_its_generator(tmp_path):
    path = tmp_path / "simulated.toml"
    path.write_text("base = 'demo'\n[axes]\nseed = [0, 1]\n")
    sweep = load_sweep(path)
    make = functools.partial(dict, status="failed", reason="not measured")
    run(sweep, tmp_path / "out", make_measure=lambda: lambda _: make())
    paths = records.sweep_folder(tmp_path / "out")
    (version,) = records.read_json(paths.environment)["context"]["data"].values()
    assert version.startswith("hospital_sim ")


def test_a_missing_file_is_found_before_the_grid(tmp_path):
    sweep = grid.load(tmp_path, "data.path=nope.csv", axes=SMALL)
    with pytest.raises(DataError, match=r"nope\.csv"):
        run(sweep, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cells_of_one_structure_are_one_group(tmp_path):
    sweep = grid.load(tmp_path)
    groups = groups_of(sweep.cells)
    keys = [task.key for group in groups for task in group]
    assert sorted(keys) == sorted({c.key for c in sweep.cells})
    by_key = {c.key: c for c in sweep.cells}
    for group in groups:
        kinds = {
            (
                type(by_key[t.key].config.aggregator),
                type(by_key[t.key].config.attack),
                by_key[t.key].config.malicious,
            )
            for t in group
        }
        assert len(kinds) == 1
    # Seeds and radii are numbers of one program.
    assert max(len(group) for group in groups) == 4


def test_warnings_of_data_are_kept_with_every_cell_and_told_once(tmp_path, monkeypatch):
    from fedjax_health.sweep.measure import build

    real = build.build_dataset

    def warns(settings):
        warnings.warn(f"odd rows of seed {settings.seed}", DataWarning, stacklevel=2)
        warnings.warn("odd rows", DataWarning, stacklevel=2)
        return real(settings)

    monkeypatch.setattr(build, "build_dataset", warns)
    axes = SMALL.replace("2]", "2]\naggregator = ['mean', 'median']")
    sweep = grid.load(tmp_path, axes=axes, only=["seed=0,1"])
    with pytest.raises(KeyboardInterrupt):
        run(sweep, tmp_path / "out", grid.Heard(stop_after=1))
    heard = grid.Heard()
    resume_sweep(tmp_path / "out", heard.progress, make_measure=MAKE)
    found = read_cells(records.sweep_folder(tmp_path / "out"))
    for cell in sweep.cells:
        seed = cell.values["seed"]
        said = [f"odd rows of seed {seed}", "odd rows"]
        assert found[cell.key]["warnings"] == said
    # The others were told before the interrupt.
    told = [text for text in heard.messages if "odd rows" in text]
    assert told == ["warning: odd rows of seed 1"]


def test_large_groups_are_halved_while_workers_would_be_idle(tmp_path):
    sweep = grid.load(tmp_path, axes=SMALL)
    keys = [cell.key for cell in sweep.cells]
    for wanted, lengths in ((1, [3]), (2, [2, 1]), (3, [1, 1, 1]), (9, [1, 1, 1])):
        groups = groups_of(sweep.cells, at_least=wanted)
        assert [len(group) for group in groups] == lengths
        assert [task.key for group in groups for task in group] == keys
    assert groups_of([], at_least=2) == []


def test_a_folder_in_use_and_one_without_a_sweep_are_refused(finished, tmp_path):
    sweep, paths, _, _ = finished
    with pytest.raises(RunFolderError, match="it holds a finished sweep; name"):
        run(sweep, paths.root)
    with pytest.raises(RunFolderError, match=r"sweep\.toml is missing"):
        resume_sweep(tmp_path, grid.Heard().progress, make_measure=MAKE)
    shutil.copytree(paths.root, tmp_path / "copy")
    with (
        records.locked(records.sweep_folder(tmp_path / "copy")),
        pytest.raises(RunFolderError, match="another process"),
    ):
        resume_sweep(tmp_path / "copy", grid.Heard().progress, make_measure=MAKE)


def test_the_same_data_is_prepared_once(tmp_path, monkeypatch):
    from fedjax_health.sweep.measure import Bench, build

    calls = []
    real = build.build_dataset
    monkeypatch.setattr(
        build, "build_dataset", lambda c: calls.append(c.seed) or real(c)
    )
    bench = Bench()
    base = str(grid.write(tmp_path).parent / "base.toml")
    for changes in (["seed=0"], ["seed=0", "aggregator=median"], ["seed=1"]):
        record = bench.measure(config.load(base, [*changes, "rounds=1"]))
        assert record["status"] == "done"
    assert calls == [0, 1]
