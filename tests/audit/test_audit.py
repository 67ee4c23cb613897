"""An audit of whole runs on a tiny table, from the folder to the page."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fedjax_health import audit, build, records
from fedjax_health.audit import canary
from fedjax_health.audit.bound import epsilon_bound
from fedjax_health.audit.words import Defences, canary_row
from fedjax_health.core.types import Sampling
from fedjax_health.privacy.ledger import epsilon_after
from fedjax_health.records import RunFolderError
from fedjax_health.report import write_audit, write_report
from tests import tiny

RECORDS = (
    "rounds=3",
    "window.length=1",
    "window.stride=1",
    "model=mlp",
    "model.hidden=[8]",
    "leakcheck=false",
)
PRIVATE = (
    *RECORDS,
    'weighting="uniform"',
    'transforms=[{kind="clip_l2",max_norm=0.5}]',
    "mechanism=central_gaussian",
    "mechanism.noise_multiplier=2.0",
)
SMALL = audit.Options(shadows=6, canaries=40, rounds=2)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.write_table(tmp_path_factory.mktemp("table") / "ward.csv")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few and short inversions; how good they are is tested beside this."""
    monkeypatch.setattr("fedjax_health.audit.run.invert", _quick_invert)


def _quick_invert(*arguments, **named):
    from fedjax_health.audit import inversion

    return inversion.invert(*arguments, **named, batches=(1,), victims={1: 2}, steps=3)


@pytest.fixture(scope="module")
def bare(table, tmp_path_factory):
    config = tiny.config(table, *RECORDS, "rounds=12")
    return tiny.Run(config, tmp_path_factory.mktemp("a") / "run")


@pytest.fixture(scope="module")
def private(table, tmp_path_factory):
    return tiny.Run(tiny.config(table, *PRIVATE), tmp_path_factory.mktemp("b") / "run")


@pytest.mark.slow
def test_without_a_mechanism_canaries_are_seen_and_the_page_tells(bare):
    said = []
    progress = records.SILENT._replace(on_message=said.append)
    found = audit.audit(bare.paths.root, progress, SMALL._replace(rounds=12))
    epsilon = found["epsilon"]
    assert epsilon["upper"] is None
    assert epsilon["lower"] > 1
    groups = [row["group"] for row in found["rows"]]
    assert groups.count("membership") == 5
    assert {"canaries", "inversion"} <= set(groups)
    assert all(row["threat"] and row["meaning"] for row in found["rows"])
    assert any("shadow" in text for text in said)
    held = records.read_json(bare.paths.audit)
    assert held["rows"] == json.loads(records.canonical_json(found["rows"]))
    page = write_audit(bare.paths.root)
    assert page["sections"] == ["membership", "canaries", "inversion"]
    text = bare.paths.audit_page.read_text()
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "<script" not in text
    assert "infinite: no mechanism" in text
    # A report of the run has a part on it, and none before.
    assert "audit" in write_report(bare.paths.root)["sections"]


def canaries_of(config, *, size, rounds):
    prepared = build.prepare(config, build.build_dataset(config))
    found = canary.run_canaries(
        config,
        prepared,
        canaries=20,
        size=size,
        rounds=rounds,
        seed=1,
        progress=records.SILENT,
    )
    return found, epsilon_bound(found.scores, found.is_in, 1e-5)


def test_the_lower_bound_stays_below_the_accountants(table):
    config = tiny.config(table, *PRIVATE)
    found, bound = canaries_of(config, size=500.0, rounds=3)
    upper = epsilon_after(
        found.mechanism, found.message, found.sampling, 3, config.privacy
    )
    assert 0 <= bound.epsilon <= upper < 20


def test_without_noise_every_coin_is_guessed(table):
    _, bound = canaries_of(tiny.config(table, *RECORDS), size=5.0, rounds=3)
    assert bound.correct == bound.guesses
    assert bound.epsilon == bound.most > 1


@pytest.mark.slow
def test_a_private_run_is_audited_whole_and_twice_the_same(private):
    first = audit.audit(private.paths.root, records.SILENT, SMALL)
    held = private.paths.audit.read_bytes()
    audit.audit(private.paths.root, records.SILENT, SMALL)
    assert private.paths.audit.read_bytes() == held
    epsilon = first["epsilon"]
    assert 0 <= epsilon["lower"] <= epsilon["upper"] <= epsilon["upper_of_run"]
    assert "3" in str(epsilon["run_rounds"])
    assert {row["message"] for row in first["rows"] if row["group"] == "inversion"} == {
        "bare",
        "sent",
        "released",
    }
    assert any("--rounds" in note for note in first["notes"])


@pytest.mark.slow
def test_windows_with_personal_layers_are_audited_without_canaries(
    table, tmp_path_factory
):
    config = tiny.config(table, "personal=head", 'personal.paths=["head/*"]')
    run = tiny.Run(config, tmp_path_factory.mktemp("c") / "run")
    found = audit.audit(run.paths.root, records.SILENT, SMALL)
    assert found["epsilon"] is None
    assert [part["title"] for part in found["absent"]] == ["Canaries and epsilon"]
    assert {row["group"] for row in found["rows"]} == {"membership", "inversion"}


@pytest.mark.slow
def test_the_command_prints_a_table_and_one_json_object(bare):
    # A process of its own: jax must not have started with other devices.
    small = ["--shadows", "6", "--canaries", "20", "--rounds", "1", "--no-cache"]
    line = ["audit", str(bare.paths.root), *small]

    def run(*more):
        return subprocess.run(
            [sys.executable, "-m", "fedjax_health", *line, *more],
            capture_output=True,
            text=True,
            check=True,
        )

    told = run("--json")
    assert json.loads(told.stdout)["page"].endswith("audit.html")
    assert "shadow models" in told.stderr
    assert "epsilon at delta" in run().stdout


@pytest.mark.slow
def test_noise_by_the_clients_under_a_secure_sum_is_audited(table, tmp_path_factory):
    config = tiny.config(
        table,
        *PRIVATE[:-2],
        "mechanism=distributed_skellam",
        "mechanism.noise_multiplier=2.0",
        'aggregator={kind="secure_mean",threshold=2}',
    )
    run = tiny.Run(config, tmp_path_factory.mktemp("d") / "run")
    found = audit.audit(run.paths.root, records.SILENT, SMALL)
    assert not found["absent"]
    assert 0 <= found["epsilon"]["lower"] <= found["epsilon"]["upper"]
    sent = [row for row in found["rows"] if row.get("message") == "sent"]
    assert sent
    assert all("Hidden from the server" in row["threat"] for row in sent)


SPLIT = (
    *("rounds=3", "leakcheck=false", 'modality_average="present"'),
    *("model=fusion", "model.joint=4", "model.aligned=0"),
    'model.encoders={emr={kind="gru",hidden=4,dense=[3]}}',
    'data.modalities={iot=["load","rate"],emr=["noise"]}',
    'split_learning={modality="emr",cut=1,leakage=false}',
)


@pytest.mark.slow
def test_a_split_run_is_audited_with_its_wire_and_its_parts(table, tmp_path_factory):
    run = tiny.Run(tiny.config(table, *SPLIT), tmp_path_factory.mktemp("e") / "run")
    assert "wire_leakage" not in records.read_json(run.paths.result)
    found = audit.audit(run.paths.root, records.SILENT, SMALL)
    rows = [row for row in found["rows"] if row["group"] == "wire"]
    assert len(rows) == 4
    assert found["epsilon"] is not None
    assert write_audit(run.paths.root)["sections"][-1] == "wire"
    page = run.paths.audit_page.read_text()
    assert "The wire of split learning" in page
    assert "distance correlation" in page


# What cannot be audited


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (audit.Options(shadows=2), "--shadows 2"),
        (audit.Options(canaries=3), "--canaries 3"),
        (audit.Options(rounds=0), "--rounds 0"),
        (audit.Options(seed=-1), "--seed -1"),
    ],
)
def test_options_out_of_range_are_refused(bare, options, words):
    with pytest.raises(ValueError, match=words):
        audit.audit(bare.paths.root, records.SILENT, options)


def test_a_folder_without_a_finished_run_is_refused(bare, tmp_path):
    with pytest.raises(RunFolderError, match="no such folder"):
        audit.audit(tmp_path / "none", records.SILENT)
    with pytest.raises(RunFolderError, match="holds no run"):
        audit.audit(tmp_path, records.SILENT)
    shutil.copytree(bare.paths.root, tmp_path / "half")
    (tmp_path / "half" / "detector.json").unlink()
    with pytest.raises(RunFolderError, match="finish the run first"):
        audit.audit(tmp_path / "half", records.SILENT)


def test_changed_or_missing_data_is_refused(bare, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(bare.paths.root, folder)
    config = (folder / "config.toml").read_text()
    changed = tiny.write_table(tmp_path / "ward.csv", tiny.table_lines(seed=8))
    old = bare.config.data.path
    (folder / "config.toml").write_text(config.replace(str(old), str(changed)))
    with pytest.raises(RunFolderError, match="the data has changed"):
        audit.audit(folder, records.SILENT)
    changed.unlink()
    with pytest.raises(ValueError, match=r"ward\.csv"):
        audit.audit(folder, records.SILENT)


# Parts


def test_a_canary_speaks_in_every_part_and_a_client_in_its_own():
    shares = np.array([[1.0, 0.25], [0.5, 0.0]])
    # Two clients, a canary, an empty slot.
    ids, mask = np.array([1, 0, 2, 9]), np.array([True, True, True, False])
    found = canary._shares(shares, ids, 2, mask)
    assert found.tolist() == [[0.5, 0.0], [1.0, 0.25], [1.0, 1.0], [0.0, 0.0]]


def test_canaries_are_drawn_at_the_rate_of_clients():
    poisson = Sampling("poisson", population=200, expected=20)
    assert canary.sampling_with(poisson, 100).rate == pytest.approx(0.1)
    everybody = Sampling("fixed", population=4, expected=4)
    assert canary.sampling_with(everybody, 100).rate == 1
    cyclic = Sampling("cyclic", population=100, expected=5, cycle=4)
    assert canary.sampling_with(cyclic, 100).rate == pytest.approx(0.2)


def test_a_lower_bound_above_the_accountants_is_called_a_fault():
    epsilon = {
        "lower": 3.0,
        "upper": 1.0,
        "clipped": True,
        "size": None,
        "correct": 99,
        "guesses": 100,
        "canaries": 100,
        "confidence": 0.95,
        "delta": 1e-5,
        "most": 3.2,
    }
    row = canary_row(epsilon, Defences("clip_l2", "central_gaussian", "none"))
    assert row["failed"]
    assert "do not rely on the guarantee" in row["meaning"]
    assert not canary_row({**epsilon, "upper": 4.0}, Defences("", "", ""))["failed"]
