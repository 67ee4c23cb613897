"""Run folders, atomic files and JSONL that survive a kill."""

import errno
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_health import records
from fedjax_health.records import RunFolderError


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


# Folders


def test_create_makes_a_folder_and_refuses_it_once_used(tmp_path):
    folder = records.create_folder(tmp_path / "runs" / "demo-0")
    assert folder.checkpoints.is_dir()
    records.write_text(folder.config, "seed = 0\n")
    with pytest.raises(RunFolderError, match=r"in use.*resume.*demo-0.*--out"):
        records.create_folder(folder.root)
    assert records.open_folder(folder.root) == folder


def test_a_foreign_folder_is_refused_without_an_offer_to_resume(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError, match="in use: empty it") as caught:
        records.check_unused(tmp_path)
    assert "resume" not in str(caught.value)
    with pytest.raises(RunFolderError, match="is a file"):
        records.check_unused(tmp_path / "thesis.tex")
    assert names_in(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("name", "kind"), [("result.json", "run"), ("results.parquet", "sweep")]
)
def test_a_finished_folder_is_no_folder_to_go_on_with(tmp_path, name, kind):
    for file in ("config.toml", "sweep.toml", name):
        (tmp_path / file).write_text("")
    with pytest.raises(RunFolderError) as caught:
        records.check_unused(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: output folder in use: it holds a finished {kind}; name another "
        "(--out FOLDER)"
    )


def test_a_folder_that_cannot_be_made_is_refused_and_nothing_is_left(
    tmp_path, monkeypatch
):
    records.check_unused(tmp_path / "a" / "b")
    assert names_in(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"run: cannot be created: Not a dir"):
        records.check_unused(tmp_path / "file" / "run")

    def forbid(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(os, "mkdir", forbid)
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        with pytest.raises(RunFolderError, match="cannot be created: Permission"):
            records.check_unused(folder)


def test_absent_and_empty_folders_are_unused(tmp_path):
    records.check_unused(tmp_path)
    records.check_unused(tmp_path / "new" / "deeper")
    assert names_in(tmp_path) == []


def test_open_refuses_what_holds_no_run(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        records.open_folder(tmp_path)
    with pytest.raises(RunFolderError, match="no such folder"):
        records.open_folder(tmp_path / "absent")


def test_default_folders_are_numbered(tmp_path):
    first = records.default_folder("demo", 3, base=tmp_path)
    assert first == tmp_path / "demo-3"
    records.write_text(records.create_folder(first).config, "")
    assert records.default_folder("demo", 3, base=tmp_path) == tmp_path / "demo-3-2"
    (tmp_path / "demo-3-2").write_text("a file")
    assert records.default_folder("demo", 3, base=tmp_path) == tmp_path / "demo-3-3"
    assert records.default_folder("demo", 4, base=tmp_path) == tmp_path / "demo-4"


def test_parts_of_a_folder_do_not_collide(tmp_path):
    paths = records.run_folder(tmp_path)
    assert len(set(paths)) == len(paths)
    assert all(path.parent == tmp_path for path in paths[1:])


# Locks


def test_a_folder_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    folder = records.create_folder(tmp_path / "run")
    code = (
        "import sys, time\n"
        "from fedjax_health import records\n"
        "with records.locked(records.run_folder(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.root)], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        refusal = pytest.raises(RunFolderError, match="another process runs")
        with refusal, records.locked(folder):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with records.locked(folder):
        pass
    # The lock alone does not make a folder used.
    folder.checkpoints.rmdir()
    records.check_unused(folder.root)


def test_a_lock_is_freed_at_the_end_of_its_block_and_by_an_error(tmp_path):
    folder = records.create_folder(tmp_path / "run")

    def fail_inside():
        with records.locked(folder):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail_inside()
    with records.locked(folder):
        refusal = pytest.raises(RunFolderError)
        with refusal, records.locked(folder):
            pass


# Atomic files


def test_files_are_replaced_whole_and_leave_nothing_behind(tmp_path):
    path = tmp_path / "result.json"
    records.write_json(path, {"b": 1, "a": float("nan")})
    assert path.read_text() == '{"a":null,"b":1}\n'
    records.write_text(path, "grüße\n")
    assert path.read_bytes() == "grüße\n".encode()
    assert names_in(tmp_path) == ["result.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "config.toml"
    records.write_text(path, "old")

    def fail(*_args, **_kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output"):
        records.write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["config.toml"]


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    def fail(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        RunFolderError, match=r"metrics\.json: the disk is full.*resume"
    ):
        records.write_json(tmp_path / "metrics.json", {})
    with pytest.raises(RunFolderError, match="the disk is full"):
        records.append_jsonl(tmp_path / "metrics.jsonl", [{}], durable=True)


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs the device that is always full"
)
def test_a_really_full_disk_is_one_clear_line():
    with pytest.raises(RunFolderError, match="/dev/full: the disk is full"):
        records.append_jsonl("/dev/full", [{"round": 1}])


def test_killed_writers_leave_an_old_or_a_new_file(tmp_path):
    path = tmp_path / "state.txt"
    records.write_text(path, "0" * 50_000)
    code = (
        "import sys\n"
        "from fedjax_health import records\n"
        "print('go', flush=True)\n"
        "for i in range(10**6):\n"
        "    records.write_text(sys.argv[1], str(i % 10) * 50_000)\n"
    )
    for delay in (0.0, 0.003, 0.011, 0.02):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE
        )
        writer.stdout.readline()
        time.sleep(delay)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        text = path.read_text()
        assert len(text) == 50_000
        assert len(set(text)) == 1
    with records.locked(records.run_folder(tmp_path)):
        assert names_in(tmp_path) == [".lock", "state.txt"]


def test_file_digest_is_sha256(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert records.file_sha256(path).startswith("ba7816bf8f01cfea414140de5dae2223")


# JSON


@given(
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(max_size=8),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.text(max_size=4), inner, max_size=4),
        ),
        max_leaves=12,
    )
)
def test_canonical_json_reads_back_exactly(value):
    line = records.canonical_json(value)
    assert "\n" not in line
    assert json.loads(line) == value
    assert records.canonical_json(json.loads(line)) == line


def test_canonical_json_takes_arrays_and_has_one_rule_for_non_finite_numbers():
    value = {"b": np.float32(0.1), "a": np.arange(2), "c": [math.inf, math.nan]}
    assert (
        records.canonical_json(value)
        == '{"a":[0,1],"b":0.10000000149011612,"c":[null,null]}'
    )
    with pytest.raises(ValueError, match="nan has no place"):
        records.canonical_json({"x": (1, np.float32("nan"))}, non_finite="refuse")


def test_jsonl_appends_and_reads(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert records.read_jsonl(path) == []
    records.append_jsonl(path, [{"round": 1}, {"round": 2}])
    records.append_jsonl(path, [{"round": 3, "loss": 0.1}], durable=True)
    assert [row["round"] for row in records.read_jsonl(path)] == [1, 2, 3]
    assert path.read_text().splitlines()[2] == '{"loss":0.1,"round":3}'


@pytest.mark.parametrize("torn", ["", '{"round":4', '{"round":4}', "\x00\x00"])
def test_truncation_drops_later_rounds_and_a_torn_line_and_keeps_bytes(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"round": {i},  "loss":0.1}}\n' for i in (1, 2, 3)]
    path.write_text("".join(lines) + torn)
    assert [row["round"] for row in records.read_jsonl(path)] == [1, 2, 3]
    assert records.truncate_jsonl(path, lambda row: row["round"] <= 2) == 2
    assert path.read_text() == "".join(lines[:2])
    records.append_jsonl(path, [{"round": 3}])
    assert [row["round"] for row in records.read_jsonl(path)] == [1, 2, 3]


def test_damage_before_the_last_line_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round":1}\n{"rou\n{"round":3}\n')
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl: line 2 is damaged"):
        records.read_jsonl(path)
    before = path.read_bytes()
    with pytest.raises(RunFolderError):
        records.truncate_jsonl(path, lambda row: True)
    assert path.read_bytes() == before


def test_truncating_an_absent_file_does_nothing(tmp_path):
    assert records.truncate_jsonl(tmp_path / "absent.jsonl", bool) == 0
    assert names_in(tmp_path) == []


# Disk and environment


def test_free_space_is_required_before_the_folder_exists(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    asked = []

    def disk_usage(path):
        asked.append(path)
        return usage(10**9, 0, 10**6)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    records.require_free_space(tmp_path / "a" / "b", 10**6)
    assert asked == [tmp_path]
    with pytest.raises(
        RunFolderError, match=r"5\.0 MB are needed and 1\.0 MB are free"
    ):
        records.require_free_space(tmp_path, 5 * 10**6)


def test_environment_names_versions_but_neither_host_nor_user(tmp_path):
    found = records.environment(devices=4)
    assert found["devices"] == 4
    assert found["python"] == platform.python_version()
    assert found["packages"]["numpy"] == np.__version__
    assert found["usable_cpus"] >= 1
    text = records.canonical_json(found)
    for secret in (platform.node(), os.path.expanduser("~"), os.getcwd()):
        assert len(secret) < 4 or secret not in text


def test_silent_progress_takes_every_call():
    progress = records.SILENT
    progress.on_start(total_rounds=2, first_round=0)
    progress.on_round(round=1, loss=0.1, clients_per_s=3.0, validation=None)
    progress.on_message("note")
    assert progress.on_end() is None


def test_records_import_neither_jax_nor_numpy():
    code = (
        "import sys, fedjax_health.records, fedjax_health.config\n"
        "print([m for m in ('jax', 'numpy', 'pandas', 'flax') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


# Warnings


def test_warnings_of_a_kind_become_messages_and_others_stay():
    told = []
    progress = records.SILENT._replace(on_message=told.append)
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with records.tell_warnings(progress, UserWarning):
            for text in ("odd", "odd", "strange"):
                warnings.warn(text, UserWarning, stacklevel=1)
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            assert told == []
    assert told == ["warning: odd", "warning: strange"]
    assert [str(other.message) for other in others] == ["old"]
