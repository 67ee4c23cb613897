"""An interrupted run that is resumed ends as the uninterrupted one."""

import functools
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

import fedjax_health
from fedjax_health import records, training
from fedjax_health.config import parse
from fedjax_health.engine.checkpoint import MANIFEST, CheckpointError
from fedjax_health.records import RunFolderError
from fedjax_health.training import setup
from tests import tiny

OVERRIDES = ("rounds=6",)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.write_table(tmp_path_factory.mktemp("table") / "ward.csv")


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory):
    """The uninterrupted run."""
    root = tmp_path_factory.mktemp("whole") / "run"
    return tiny.Run(tiny.config(table, *OVERRIDES), root)


@pytest.fixture
def broken(table, tmp_path):
    """A run that ended after four of its six rounds."""
    paths = tiny.interrupt(tiny.config(table, *OVERRIDES), tmp_path / "run", after=4)
    assert records.read_jsonl(paths.metrics)[-1]["round"] == 4
    assert not paths.result.exists()
    return paths


def resume(paths):
    """Resumes a run; returns what it said."""
    told = []
    training.resume(paths.root, records.SILENT._replace(on_message=told.append))
    return told


def same(paths, whole):
    assert tiny.kept_bytes(paths) == whole.bytes()
    numbers = tiny.saved_numbers(whole.config, paths)
    assert numbers == tiny.saved_numbers(whole.config, whole.paths)
    timed = [line["round"] for line in records.read_jsonl(paths.timings)]
    assert timed == sorted(set(timed))
    left = [p.name for p in paths.checkpoints.iterdir() if not p.name.isdigit()]
    assert left == []
    return True


# Without a process to kill


@pytest.mark.parametrize("after", [1, 2, 3, 6])
def test_a_resumed_run_ends_as_the_whole_one(table, whole, tmp_path, after):
    config = tiny.config(table, *OVERRIDES)
    paths = tiny.interrupt(config, tmp_path / "run", after=after)
    assert resume(paths)
    assert same(paths, whole)


def test_a_run_without_a_checkpoint_starts_again(broken, whole):
    shutil.rmtree(broken.checkpoints)
    told = [text for text in resume(broken) if text.startswith("warning: ")]
    assert len(told) == 1
    assert "the run starts again from its first round" in told[0]
    assert same(broken, whole)


def test_a_run_that_never_had_a_checkpoint_starts_without_a_word(table, tmp_path):
    config = tiny.config(table, "checkpoint.every=6", *OVERRIDES)
    paths = tiny.interrupt(config, tmp_path / "run", after=1)
    paths.metrics.unlink()
    paths.timings.unlink()
    assert not any("warning" in text for text in resume(paths))


@pytest.mark.parametrize("change", ["config", "data"])
def test_another_run_is_refused_without_a_checkpoint_too(tmp_path, change):
    mine = tiny.write_table(tmp_path / "mine.csv")
    paths = tiny.interrupt(tiny.config(mine, *OVERRIDES), tmp_path / "run", after=2)
    shutil.rmtree(paths.checkpoints)
    if change == "config":
        text = paths.config.read_text()
        paths.config.write_text(text.replace("hidden = 4", "hidden = 5"))
    else:
        tiny.write_table(mine, tiny.table_lines(seed=8))
    before = paths.metrics.read_bytes()
    with pytest.raises(CheckpointError, match="has changed since the run was started"):
        resume(paths)
    assert paths.metrics.read_bytes() == before


@pytest.mark.parametrize("keep", [[1, 2, 4], [2, 1, 3, 4], [1, 2, 3], [1, 2, 3, 4, 1]])
def test_lines_that_are_not_those_of_the_rounds_are_refused(broken, keep):
    lines = broken.metrics.read_bytes().split(b"\n")
    broken.metrics.write_bytes(b"".join(lines[n - 1] + b"\n" for n in keep))
    with pytest.raises(RunFolderError, match="each of the rounds 1 to 4, in order"):
        resume(broken)


@pytest.mark.parametrize("left", [b'{"round":5,"loss"', b'{"round":5}\n{"round":6}\n'])
def test_lines_after_the_checkpoint_are_dropped(broken, whole, left):
    for path in (broken.metrics, broken.timings):
        with path.open("ab") as file:
            file.write(left)
    resume(broken)
    assert same(broken, whole)


@pytest.mark.parametrize("stop", [(), ("evaluation.patience=1", "evaluation.every=1")])
def test_a_run_that_only_lacks_its_result_is_not_trained_again(table, tmp_path, stop):
    rate = ("local.optimizer.learning_rate=1e-12",) if stop else ()
    run = tiny.Run(tiny.config(table, *OVERRIDES, *stop, *rate), tmp_path / "run")
    assert (run.result["rounds"] < 6) == bool(stop)
    before = run.bytes()
    timings = run.paths.timings.read_bytes()
    run.paths.result.unlink()
    run.paths.predictions.unlink()
    resume(run.paths)
    assert run.bytes() == before
    assert run.paths.timings.read_bytes() == timings


# What belongs to another run is refused


@pytest.mark.parametrize(
    ("old", "new"),
    [("learning_rate = 0.5", "learning_rate = 0.4"), ("hidden = 4", "hidden = 5")],
)
def test_an_edited_configuration_is_refused(broken, old, new):
    text = broken.config.read_text()
    assert old in text
    broken.config.write_text(text.replace(old, new))
    before = broken.metrics.read_bytes()
    with pytest.raises(CheckpointError, match="the configuration has changed since"):
        resume(broken)
    assert broken.metrics.read_bytes() == before


def test_changed_data_is_refused(table, whole, tmp_path):
    mine = tmp_path / "mine.csv"
    shutil.copy(table, mine)
    config = tiny.config(mine, *OVERRIDES)
    paths = tiny.interrupt(config, tmp_path / "run", after=4)
    lines = mine.read_text().splitlines()
    cells = lines[10].split(",")
    cells[3] = f"{float(cells[3]) + 0.0001:.4f}"
    tiny.write_table(mine, [*lines[:10], ",".join(cells), *lines[11:]])
    with pytest.raises(CheckpointError, match="the data has changed since"):
        resume(paths)
    shutil.copy(table, mine)
    resume(paths)
    assert tiny.kept_bytes(paths) == whole.bytes()


def test_a_folder_that_another_process_holds_is_refused(broken, whole):
    with (
        records.locked(broken),
        pytest.raises(RunFolderError, match="another process runs in this folder"),
    ):
        resume(broken)
    resume(broken)
    assert same(broken, whole)


# Damage


@pytest.mark.parametrize("how", ["flipped", "missing", "cut"])
def test_a_damaged_checkpoint_is_set_aside(broken, whole, how):
    files = [p for p in (broken.checkpoints / "4").rglob("*") if p.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    told = [text for text in resume(broken) if text.startswith("warning: ")]
    assert len(told) == 1
    assert "checkpoint 4 is damaged" in told[0]
    assert "the one before it is used" in told[0]
    assert same(broken, whole)


def test_with_every_checkpoint_damaged_nothing_is_trained(broken, whole):
    for step in broken.checkpoints.iterdir():
        (step / MANIFEST).write_text("{}")
    before = broken.metrics.read_bytes()
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        resume(broken)
    assert broken.metrics.read_bytes() == before
    # The next one does what was announced, and says so.
    assert any("no whole checkpoint is left" in text for text in resume(broken))
    assert same(broken, whole)


# Another machine


def test_another_release_is_a_warning(broken, whole, monkeypatch):
    before = fedjax_health.__version__
    monkeypatch.setattr(fedjax_health, "__version__", "99.0")
    (told,) = [text for text in resume(broken) if text.startswith("warning: ")]
    assert told.endswith(f"fedjax_health {before} -> 99.0")
    assert same(broken, whole)


def test_another_thread_pool_is_a_warning_and_is_recorded(broken, whole, monkeypatch):
    cores = setup.available_cores()
    monkeypatch.setattr(setup, "available_cores", lambda: cores + 3)
    (told,) = [text for text in resume(broken) if text.startswith("warning: ")]
    assert told == (
        f"warning: bits may differ from the first run: threads {cores} -> {cores + 3}"
    )
    environment = records.read_json(broken.environment)
    assert environment["resumed"] == [{"threads": cores + 3}]
    assert same(broken, whole)


@pytest.mark.slow
def test_another_device_count_is_a_warning(table, whole, tmp_path, monkeypatch):
    config = tiny.config(table, *OVERRIDES, "devices=none")
    paths = tiny.interrupt(config, tmp_path / "run", after=4)
    two = jax.local_devices()[:2]
    monkeypatch.setattr(jax, "local_devices", lambda: two)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    (told,) = [text for text in resume(paths) if text.startswith("warning: ")]
    assert "devices 4 -> 2" in told
    assert records.read_json(paths.environment)["resumed"][0]["devices"] == 2
    # This engine's bits are those of any device count all the same.
    assert tiny.kept_bytes(paths) == whole.bytes()


# Processes that are killed


class Killing:
    """Runs the command in processes of its own, and kills some."""

    def __init__(self, table: Path, base: Path, *overrides: str):
        self.base = base
        self.config_file = base / "tiny.toml"
        self.config_file.write_text(tiny.settings(table))
        self.overrides = overrides
        self.config = parse(tiny.settings(table), overrides)
        self.environment = {
            **os.environ,
            # Compiled once for all processes.
            "JAX_COMPILATION_CACHE_DIR": str(base / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        self.environment.pop("FEDJAX_HEALTH_CACHE", None)
        # Trained here: a process of its own must not make a difference either.
        self.whole = tiny.Run(self.config, base / "whole")

    @functools.cached_property
    def seconds(self) -> float:
        """What a whole run takes, with its programs compiled before."""
        self.finish(self.paths("warm-up"))
        start = time.monotonic()
        self.finish(self.paths("measured"))
        return time.monotonic() - start

    def paths(self, name: str) -> records.RunFolder:
        return records.run_folder(self.base / name)

    def start(self, paths: records.RunFolder) -> subprocess.Popen:
        """Starts the run, or goes on with what is left of it."""
        if paths.config.is_file():
            words = ["resume", str(paths.root)]
        else:
            # Killed before there was anything to resume.
            shutil.rmtree(paths.root, ignore_errors=True)
            words = ["run", "--config", str(self.config_file)]
            words += ["--out", str(paths.root)]
            for override in self.overrides:
                words += ["--set", override]
        return subprocess.Popen(
            [sys.executable, "-m", "fedjax_health", *words],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, paths: records.RunFolder) -> records.RunFolder:
        process = self.start(paths)
        _, said = process.communicate()
        assert process.returncode == 0, said
        return paths

    def kill_when(self, paths: records.RunFolder, condition) -> bool:
        """Kills the process once the condition holds; False where it ended before."""
        process = self.start(paths)
        try:
            while process.poll() is None:
                if condition():
                    process.kill()
                    break
                time.sleep(0.0005)
        finally:
            process.kill()
            process.communicate()
        return process.returncode == -9

    def check(self, paths: records.RunFolder):
        self.finish(paths)
        assert tiny.kept_bytes(paths) == self.whole.bytes()
        numbers = tiny.saved_numbers(self.config, paths)
        assert numbers == tiny.saved_numbers(self.config, self.whole.paths)


def unfinished(paths: records.RunFolder, *, after: int = 0) -> bool:
    """Whether the step after ``after`` finished ones is being written."""
    try:
        steps = list(paths.checkpoints.iterdir())
    except FileNotFoundError:
        return False
    whole = [step for step in steps if (step / MANIFEST).exists()]
    return len(steps) > len(whole) >= after


@pytest.fixture(scope="module")
def killing(table, tmp_path_factory):
    return Killing(
        table,
        tmp_path_factory.mktemp("killing"),
        "rounds=8",
        "evaluation.every=1",
        "checkpoint.every=1",
    )


def test_a_run_killed_twice_ends_as_the_whole_one(killing):
    paths = killing.paths("twice")
    for _ in range(3):
        killing.kill_when(paths, lambda: unfinished(paths, after=1))
        if unfinished(paths):
            break
    # The kill came while a checkpoint was being written.
    assert unfinished(paths)
    done = len(records.read_jsonl(paths.metrics))
    assert 0 < done < 8
    assert killing.kill_when(
        paths, lambda: len(records.read_jsonl(paths.metrics)) > done
    )
    assert not paths.result.exists()
    killing.check(paths)


@pytest.mark.slow
def test_a_run_killed_at_random_instants_ends_as_the_whole_one(killing):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed of the instants: {seed}")  # pytest shows it where the test fails
    paths = killing.paths("random")
    seconds = killing.seconds
    for fraction in random.Random(seed).choices(range(100), k=2):
        end = fraction / 100 * seconds + time.monotonic()
        killing.kill_when(paths, lambda end=end: time.monotonic() > end)
        if paths.result.exists():
            break
    killing.check(paths)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fraction",
    [0.2, 0.45, 0.52, 0.58, 0.63, 0.67, 0.71, 0.75, 0.79, 0.83, 0.88, 0.94],
)
def test_a_run_killed_at_any_time_ends_as_the_whole_one(killing, fraction):
    paths = killing.paths(f"at-{fraction}")
    seconds = killing.seconds
    end = seconds * fraction + time.monotonic()
    killing.kill_when(paths, lambda: time.monotonic() > end)
    killing.check(paths)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_killed_inside_several_checkpoint_writes(killing, after):
    paths = killing.paths(f"inside-{after}")
    kills = 0
    for _ in range(3):
        kills += killing.kill_when(paths, lambda: unfinished(paths, after=after))
    assert kills > 0
    killing.check(paths)
