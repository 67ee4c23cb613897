"""Detectors of finished runs on files that training never saw."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from fedjax_health import records
from fedjax_health.build.detector import build_model
from fedjax_health.build.sources import build_evaluation_dataset
from fedjax_health.core import trees
from fedjax_health.core.types import ModalityColumns
from fedjax_health.data.preprocess import apply_preprocessing, load_preprocessing
from fedjax_health.data.schema import DataError
from fedjax_health.data.store import from_dataset
from fedjax_health.engine.score import build_scorer
from fedjax_health.evaluate import evaluate
from fedjax_health.evaluate.detector import load_weights, read_detector
from fedjax_health.evaluate.frame import top_features
from fedjax_health.evaluate.scoring import Weights, weights_of_client
from fedjax_health.metrics import host
from fedjax_health.records import RunFolderError
from fedjax_health.report.description import what_was_run
from fedjax_health.report.records import read_folder
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns ``(*overrides) -> finished run``, each trained once."""
    folder = tmp_path_factory.mktemp("trained")
    table = tiny.write_table(folder / "ward.csv")
    done = {}

    def get(*overrides):
        if overrides not in done:
            config = tiny.config(table, *overrides)
            done[overrides] = tiny.Run(config, folder / f"run{len(done)}")
        return done[overrides]

    return get


def fresh(path, change=lambda lines: lines):
    """A file of the same roles and other values; ``change`` edits its lines."""
    return tiny.write_table(path, change(tiny.table_lines(seed=11)))


def rename_site(lines):
    return [line.replace("s3,", "new ward,", 1) for line in lines]


def without_labels(lines):
    return [line.rpartition(",")[0] for line in lines]


def said():
    messages = []
    return messages, records.SILENT._replace(on_message=messages.append)


def test_new_data_is_scored_by_the_thresholds_of_the_run(trained, tmp_path):
    run = trained()
    path = fresh(tmp_path / "june.csv")
    result = evaluate(run.paths.root, path, records.SILENT)
    scores = pd.read_parquet(result["scores"])
    assert len(scores) == result["rows"] == 4 * 2 * tiny.ROWS
    detector = read_detector(run.paths)
    assert detector.threshold == run.result["details"]["threshold"]
    exact = scores.score.to_numpy(np.float64)
    np.testing.assert_array_equal(scores.detected, exact >= detector.threshold)
    np.testing.assert_array_equal(scores.alarm, exact >= detector.alarm_threshold)
    assert (scores.threshold == detector.alarm_threshold).all()
    assert result["alarms"] == scores.alarm.sum()
    # Only what raised an alarm is explained, with names of columns.
    named = scores.top_features != ""
    np.testing.assert_array_equal(named, scores.alarm)
    assert scores.top_features[named].str.contains("features.load").any()
    assert result["metrics"]["auroc"] == pytest.approx(
        host.auroc(scores.score, scores.label)
    )
    low, high = result["intervals"]["auroc"]
    assert low <= result["metrics"]["auroc"] <= high
    assert set(scores.entity) == {"d0", "d1"}
    # As a person counts them: four a stream.
    assert result["details"]["episodes"] == 32
    figures = records.read_json(run.paths.evaluations / "june" / "figures.json")
    assert {c["client"] for c in figures["clients"]} == {"s0", "s1", "s2", "s3"}


def test_records_of_a_run_are_records_of_an_evaluation(trained, tmp_path):
    run = trained(
        *("data.entity=none", "data.time=none", 'data.drop=["device","minute"]'),
        *("model=mlp", "model.hidden=[4]", "window.length=1"),
        *("split=stratified", "split.unit=row"),
    )
    assert not read_detector(run.paths).streams
    path = fresh(tmp_path / "july.csv")
    result = evaluate(run.paths.root, path, records.SILENT)
    assert set(result["metrics"]) == set(run.result["metrics"])
    figures = records.read_json(run.paths.evaluations / "july" / "figures.json")
    assert figures["interval_unit"] == "records"
    assert result["intervals"].keys() == run.result["intervals"].keys()
    scores = pd.read_parquet(result["scores"])
    assert "segment" not in scores
    assert result["alarms"] == scores[scores.alarm].shape[0] > 0
    exact = scores.score.to_numpy(np.float64)
    np.testing.assert_array_equal(scores.alarm, exact >= scores.threshold)


def test_the_test_part_is_scored_as_the_run_scored_it(trained, tmp_path):
    """The whole file once more: rows of the test part keep their scores."""
    run = trained()
    whole = tmp_path / "whole.csv"
    whole.write_bytes((run.paths.root.parent / "ward.csv").read_bytes())
    scores = pd.read_parquet(
        evaluate(run.paths.root, whole, records.SILENT)["scores"]
    ).set_index(["client", "entity", "time"])
    then = pd.read_parquet(run.paths.predictions)
    device = then.groupby("client").entity.transform(
        lambda numbers: pd.factorize(numbers)[0]
    )
    keys = zip(then.client, "d" + device.astype(str), then.time, strict=True)
    again = scores.loc[list(keys)].score.to_numpy()
    # The first rows of a part have no window before them there, and have one here.
    inside = then.time >= then.groupby(["client", "entity"]).time.transform("min") + 4
    np.testing.assert_allclose(again[inside], then.score[inside], atol=1e-6)


def test_labels_may_be_absent_and_clients_new(trained, tmp_path):
    path = fresh(tmp_path / "ward.csv", lambda x: without_labels(rename_site(x)))
    messages, progress = said()
    result = evaluate(trained().paths.root, path, progress)
    assert "metrics" not in result
    assert result["unseen_clients"] == ["new ward"]
    scores = pd.read_parquet(result["scores"])
    assert "label" not in scores
    assert set(scores.client) == {"s0", "s1", "s2", "new ward"}
    assert not scores.score.isna().any()
    assert any("no labels" in message for message in messages)


def test_clients_that_a_split_held_out_were_not_in_training(trained, tmp_path):
    run = trained(
        *("split=by_client", 'split.test_clients=["s3"]'),
        'split.validation_clients=["s1"]',
    )
    assert run.result["training_clients"] == 2
    assert read_detector(run.paths).client_names == ("s0", "s2")
    result = evaluate(run.paths.root, fresh(tmp_path / "all.csv"), records.SILENT)
    assert result["unseen_clients"] == ["s1", "s3"]
    assert result["training_clients"] == 2
    for folder in (run.paths.root, result["folder"]):
        assert "over 2 clients" in what_was_run(read_folder(folder))


def test_labels_of_one_class_leave_out_what_needs_two(trained, tmp_path):
    def calm(lines):
        return [lines[0], *(line.rpartition(",")[0] + ",0" for line in lines[1:])]

    path = fresh(tmp_path / "calm.csv", calm)
    result = evaluate(trained().paths.root, path, records.SILENT)
    assert "auroc" not in result["metrics"]
    assert None not in result["metrics"].values()
    assert 0 <= result["metrics"]["achieved_far"] <= 1
    json.dumps(records.read_json(f"{result['folder']}/result.json"))


def test_a_second_evaluation_takes_a_folder_of_its_own(trained, tmp_path):
    path = fresh(tmp_path / "again.csv")
    first = evaluate(trained().paths.root, path, records.SILENT)
    second = evaluate(trained().paths.root, path, records.SILENT)
    assert second["folder"] == first["folder"] + "-2"
    a, b = (pd.read_parquet(r["scores"]) for r in (first, second))
    pd.testing.assert_frame_equal(a, b)


@pytest.mark.parametrize(
    "overrides", [("algorithm=ditto",), ("personal=head", "model.norm=false")]
)
def test_clients_of_the_training_use_their_own_model(trained, tmp_path, overrides):
    run = trained(*overrides)
    path = fresh(tmp_path / "ward.csv", rename_site)
    scores = pd.read_parquet(evaluate(run.paths.root, path, records.SILENT)["scores"])
    plain = read_detector(run.paths)
    saved = tiny.saved(run.config, run.paths).best.view
    abstract = jax.eval_shape(lambda: weights_of_client(saved, 0))
    weights = load_weights(run.paths, abstract)
    for ours, theirs in zip(
        jax.tree.leaves(weights), jax.tree.leaves(saved), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert plain.client_names == ("s0", "s1", "s2", "s3")
    # One client after the other, by the whole model that it uses.
    preprocessing = load_preprocessing(run.paths.preprocessing)
    new = build_evaluation_dataset(run.config, path).dataset
    store = from_dataset(
        apply_preprocessing(preprocessing, new), window=plain.window, pad=True
    )
    model = build_model(run.config, plain)
    scorer = build_scorer(model, store)
    wanted = {"new ward": -1, "s0": 0, "s1": 1, "s2": 2}
    assert store.client_names == tuple(wanted)
    for place, (client, own) in enumerate(wanted.items()):
        first, end = store.offsets[place : place + 2]
        found = scores.score[scores.client == client].to_numpy()
        each = {
            k: scorer(weights_of_client(saved, k), int(first), int(end - first))
            for k in range(-1, 4)
        }
        np.testing.assert_allclose(found, each[own], atol=1e-6)
        others = [np.abs(each[k] - found).max() for k in each if k != own]
        assert min(others) > 1e-4


def test_an_unknown_client_takes_the_global_model_and_the_mean_of_what_is_personal():
    params = {"body": jnp.ones(2), "head": None}
    own = {"body": None, "head": jnp.array([[1.0], [3.0]])}
    weights = Weights(params, own)
    assert weights_of_client(weights, 1)["head"] == 3.0
    assert weights_of_client(weights, -1)["head"] == 2.0
    assert weights_of_client(weights, -1, took_part=(False, True))["head"] == 3.0
    # Where the global model keeps the leaf's initial value, that is not used.
    initial = weights._replace(params=params | {"head": jnp.array([9.0])})
    assert weights_of_client(initial, 1)["head"] == 3.0
    assert weights_of_client(initial, -1)["head"] == 2.0
    whole = Weights({"w": jnp.float32(5)}, {"w": jnp.array([1.0, 3.0])})
    assert weights_of_client(whole, 0)["w"] == 1.0
    assert weights_of_client(whole, -1)["w"] == 5.0
    assert trees.num_params(weights_of_client(weights, -1)) == 3


def test_clients_that_were_never_drawn_are_no_part_of_the_mean(trained, tmp_path):
    run = trained(
        *("personal=head", "model.norm=false", "sampling.cohort_size=1"),
        *("rounds=2", "evaluation.every=2"),
    )
    about = read_detector(run.paths)
    saved = tiny.saved(run.config, run.paths)
    weights, drawn = saved.best.view, np.array(about.took_part)
    bias = np.asarray(jax.tree.leaves(weights.own)[0]).reshape(4, -1)
    assert 1 <= drawn.sum() <= 2
    assert len(np.unique(bias[~drawn], axis=0)) == 1
    assert all((row != bias[~drawn][0]).any() for row in bias[drawn])
    mean = weights_of_client(weights, -1, took_part=about.took_part)
    whole = dict(zip(trees.path_names(mean), jax.tree.leaves(mean), strict=True))
    for name, own in zip(
        trees.path_names(weights.own), jax.tree.leaves(weights.own), strict=True
    ):
        want = np.asarray(own)[drawn].mean(axis=0)
        np.testing.assert_allclose(whole[name], want, rtol=1e-6)
    path = fresh(tmp_path / "new.csv", rename_site)
    scores = pd.read_parquet(evaluate(run.paths.root, path, records.SILENT)["scores"])
    loaded = build_evaluation_dataset(run.config, path).dataset
    prepared = apply_preprocessing(load_preprocessing(run.paths.preprocessing), loaded)
    store = from_dataset(prepared, window=about.window, pad=True)
    model = build_model(run.config, about)
    place = store.client_names.index("new ward")
    first, end = (int(n) for n in store.offsets[place : place + 2])
    want = build_scorer(model, store)(mean, first, end - first)
    found = scores.score[scores.client == "new ward"]
    np.testing.assert_allclose(found, want, atol=1e-6)


# What is refused


def test_a_run_that_is_not_finished_holds_no_detector(tmp_path):
    table = tiny.write_table(tmp_path / "ward.csv")
    paths = tiny.interrupt(tiny.config(table), tmp_path / "run", after=2)
    with pytest.raises(RunFolderError, match="fedjax-health resume"):
        evaluate(paths.root, table, records.SILENT)


def test_data_of_other_columns_is_refused(trained, tmp_path):
    path = fresh(
        tmp_path / "x.csv", lambda lines: [lines[0].replace("load", "lad"), *lines[1:]]
    )
    with pytest.raises(DataError, match="load"):
        evaluate(trained().paths.root, path, records.SILENT)
    assert not (trained().paths.evaluations / "x").exists()


def test_a_file_that_is_not_there_is_refused_before_jax_starts(trained):
    folder = trained().paths.root
    program = (
        "import sys; from fedjax_health.cli.main import execute; "
        "from fedjax_health.cli.parser import parse_flags; "
        f"line = ['x', 'evaluate', {str(folder)!r}, '--data', 'none.csv']; "
        "code = execute(parse_flags(line)); "
        "print(code, 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "False"]
    (line,) = done.stderr.splitlines()
    assert "none.csv does not exist" in line


def test_an_output_folder_in_use_is_refused(trained, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    path = fresh(tmp_path / "ward.csv")
    with pytest.raises(RunFolderError, match="output folder in use"):
        evaluate(trained().paths.root, path, records.SILENT, out=tmp_path / "out")


def test_a_folder_of_a_killed_evaluation_is_used_again(trained, tmp_path):
    run, out = trained(), tmp_path / "out"
    path = fresh(tmp_path / "may.csv")
    first = evaluate(run.paths.root, path, records.SILENT, out=out)
    # What a report of the folder reads.
    assert (out / "config.toml").read_bytes() == run.paths.config.read_bytes()
    with pytest.raises(RunFolderError, match="it holds an evaluation: empty it"):
        evaluate(run.paths.root, path, records.SILENT, out=out)
    (out / "result.json").unlink()
    (out / ".figures.json.17.tmp").write_text("{")
    bare = fresh(tmp_path / "bare.csv", without_labels)
    second = evaluate(run.paths.root, bare, records.SILENT, out=out)
    assert second["rows"] == first["rows"]
    names = {entry.name for entry in out.iterdir()}
    assert names == {"scores.parquet", "config.toml", "result.json"}
    (out / "result.json").unlink()
    (out / "notes.txt").write_text("kept")
    with pytest.raises(RunFolderError, match="output folder in use"):
        evaluate(run.paths.root, path, records.SILENT, out=out)
    assert (out / "notes.txt").read_text() == "kept"


def test_a_configuration_alone_is_nothing_that_an_evaluation_left(trained, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.toml").write_text("seed = 3")
    path = fresh(tmp_path / "ward.csv")
    with pytest.raises(RunFolderError, match="output folder in use"):
        evaluate(trained().paths.root, path, records.SILENT, out=tmp_path / "out")
    assert (tmp_path / "out" / "config.toml").read_text() == "seed = 3"


def test_a_damaged_model_is_refused(trained, tmp_path):
    run = trained("seed=4")
    content = bytearray(run.paths.model.read_bytes())
    content[len(content) // 2] ^= 1
    run.paths.model.write_bytes(bytes(content))
    path = fresh(tmp_path / "ward.csv")
    with pytest.raises(RunFolderError, match="damaged"):
        evaluate(run.paths.root, path, records.SILENT)


# Modalities


FUSION = (
    'data.modalities={flow=["load","rate"],vitals=["noise"]}',
    *("data.allow_missing=true", "model=fusion", "model.joint=4", "model.aligned=0"),
    'model.encoders={flow={kind="gru",hidden=3},vitals={kind="gru",hidden=3}}',
)


def holes(lines):
    """A device of s0 never has vital signs, s1 nothing at all."""
    rows = [line.split(",") for line in lines]
    for row in rows[1:]:
        if row[0] == "s0" and row[1] == "d0":
            row[5] = ""
        if row[0] == "s1":
            row[3:6] = "", "", ""
    return [",".join(row) for row in rows]


def test_shares_sum_to_one_and_an_absent_modality_has_none(trained, tmp_path):
    run = trained(*FUSION)
    path = fresh(tmp_path / "holes.csv", holes)
    scores = pd.read_parquet(evaluate(run.paths.root, path, records.SILENT)["scores"])
    shares = scores[["share_flow", "share_vitals"]].to_numpy()
    blind = (scores.client == "s0") & (scores.entity == "d0")
    nothing = scores.client == "s1"
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares[~nothing].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(shares[blind], [[1, 0]] * blind.sum())
    assert not shares[nothing].any()
    assert scores.score[nothing].nunique() == 1
    seen = shares[~blind & ~nothing]
    assert ((seen > 0) & (seen < 1)).all()
    # In a run's own predictions as well.
    own = pd.read_parquet(run.paths.predictions)
    both = own[["share_flow", "share_vitals"]].sum(axis=1)
    np.testing.assert_allclose(both, 1, atol=1e-6)


def test_a_modality_that_a_file_does_not_have_has_no_share(trained, tmp_path):
    def without_noise(lines):
        rows = [line.split(",") for line in lines]
        return [",".join((*row[:5], *row[6:])) for row in rows]

    path = fresh(tmp_path / "flow.csv", without_noise)
    result = evaluate(trained(*FUSION).paths.root, path, records.SILENT)
    scores = pd.read_parquet(result["scores"])
    assert (scores.share_flow == 1).all()
    assert (scores.share_vitals == 0).all()


# What weighs most


def test_columns_of_one_feature_count_together():
    layout = (
        ModalityColumns("a", (0, 2), (2, 4)),
        ModalityColumns("b", (4, 7)),
    )
    names = {"a": ("x", "y"), "b": ("colour=red", "colour=blue", "size")}
    found = top_features(
        np.array([[1.0, 0.5, 0.25, -2.0, 0.75, 0.5, -0.1]], np.float32),
        layout,
        names,
        vocabulary={"b": {"colour": ("red", "blue")}},
        count=3,
    )
    assert found == ["a.y -1.50; a.x +1.25; b.colour +1.25"]


def test_columns_that_are_no_categories_stand_alone():
    """An equals sign in the name of a number makes no category of it."""
    layout = (ModalityColumns("labs", (0, 4)),)
    names = {"labs": ("pH=raw", "pH=adj", "unit=a=b", "unit=c")}
    found = top_features(
        np.array([[1.0, -2.0, 0.25, 0.5]], np.float32),
        layout,
        names,
        vocabulary={"labs": {"unit": ("a=b", "c")}},
    )
    assert found == ["labs.pH=adj -2.00; labs.pH=raw +1.00; labs.unit +0.75"]
    nothing = np.array([[1.0, -2.0, 0.0, 0.0]], np.float32)
    found = top_features(nothing, layout, names, vocabulary={})
    assert found == ["labs.pH=adj -2.00; labs.pH=raw +1.00"]
