"""Processes that measure cells, and those that die of it."""

import functools
import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from fedjax_health.sweep.workers import SweepError, Task, run_groups


def make_measure(folder: str):
    """What a worker measures: its payload says what happens to it."""

    def measure(payload):
        kind, value = payload
        mark = os.path.join(folder, f"{value}")
        if kind == "dies" or (kind == "dies once" and not os.path.exists(mark)):
            with open(mark, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "leaves":
            os._exit(3)
        return {"status": "done", "value": value, "pid": os.getpid()}

    return measure


def run(groups, folder, workers):
    found = {}
    run_groups(
        [[Task(f"{kind} {value}", (kind, value)) for kind, value in g] for g in groups],
        functools.partial(make_measure, str(folder)),
        lambda key, record: found.setdefault(key, record),
        workers=workers,
    )
    return found


GROUPS = [[("ok", 1), ("ok", 2)], [("ok", 3)], [], [("ok", 4), ("ok", 5)]]


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_every_task_is_measured_once_and_groups_stay_together(tmp_path, workers):
    found = run(GROUPS, tmp_path, workers)
    assert sorted(r["value"] for r in found.values()) == [1, 2, 3, 4, 5]
    assert found["ok 1"]["pid"] == found["ok 2"]["pid"]
    here = {r["pid"] for r in found.values()} == {os.getpid()}
    assert here == (workers == 1)


def test_a_worker_that_dies_once_costs_nothing(tmp_path):
    found = run([[("ok", 1), ("dies once", 2), ("ok", 3)]], tmp_path, 2)
    assert {k: r["status"] for k, r in found.items()} == {
        "ok 1": "done",
        "dies once 2": "done",
        "ok 3": "done",
    }


def test_a_cell_that_kills_its_worker_is_given_up_and_the_others_go_on(tmp_path):
    groups = [[("ok", 1), ("dies", 2), ("ok", 3)], [("ok", 4)]]
    found = run(groups, tmp_path, 2)
    assert found["dies 2"]["status"] == "failed"
    assert "SIGKILL, of memory" in found["dies 2"]["reason"].replace(")", "")
    assert all(found[f"ok {i}"]["status"] == "done" for i in (1, 3, 4))


def test_memory_is_only_blamed_for_a_kill(tmp_path):
    found = run([[("leaves", 1), ("ok", 2)]], tmp_path, 2)
    assert found["leaves 1"]["reason"] == "its process died 2 times (exit code 3)"
    assert found["ok 2"]["status"] == "done"


def test_a_worker_that_dies_between_two_groups_costs_no_attempt(tmp_path):
    found, killed = {}, []

    def on_record(key, record):
        found[key] = record
        if key in ("ok 1", "ok 2"):
            # Dead for certain before it is given the next group.
            killed.append(record["pid"])
            os.kill(record["pid"], signal.SIGKILL)
            os.waitid(os.P_PID, record["pid"], os.WEXITED | os.WNOWAIT)

    groups = [[Task(f"ok {i}", ("ok", i))] for i in range(1, 5)]
    run_groups(
        groups,
        functools.partial(make_measure, str(tmp_path)),
        on_record,
        workers=2,
    )
    assert {k: r["status"] for k, r in found.items()} == {
        f"ok {i}": "done" for i in range(1, 5)
    }
    assert len(set(killed)) == 2


def unfit(folder: str):
    with open(os.path.join(folder, f"{os.getpid()}"), "w"):
        raise LookupError("no such device")


def test_a_worker_that_cannot_measure_ends_the_sweep_with_its_reason(tmp_path):
    groups = [[Task(f"ok {i}", ("ok", i))] for i in range(5)]
    with pytest.raises(SweepError, match="cannot measure: LookupError: no such device"):
        run_groups(
            groups,
            functools.partial(unfit, str(tmp_path)),
            lambda key, record: pytest.fail(f"{key}: {record}"),
            workers=2,
        )
    assert len(list(tmp_path.iterdir())) <= 2


def killed_at_birth() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_are_killed_before_they_measure_are_not_hired_for_ever():
    with pytest.raises(SweepError, match="all 2 worker processes were killed"):
        run_groups(
            [[Task("a", 1)], [Task("b", 2)], [Task("c", 3)]],
            killed_at_birth,
            lambda key, record: pytest.fail(f"{key}: {record}"),
            workers=2,
        )


def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from fedjax_health.sweep.workers import Task, run_groups\n"
        "def make():\n    return lambda payload: {'status': 'done'}\n"
        "run_groups([[Task('a', 1)]], make, print, workers=2)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "SweepError: a worker process ended before it could measure" in done.stderr
    assert '`if __name__ == "__main__":`' in done.stderr


def test_nothing_to_do_is_done(tmp_path):
    assert run([], tmp_path, 2) == {}
    # Not even a start: it may want devices that this process has not.
    run_groups([], lambda: pytest.fail("made"), print, workers=1)


def test_a_worker_ends_with_its_parent(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(
        "import multiprocessing, os, signal, time\n"
        "from fedjax_health.sweep import workers\n"
        "def measure(payload):\n"
        "    time.sleep(600)\n"
        "def make():\n"
        "    return measure\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    ours, theirs = context.Pipe()\n"
        "    child = context.Process(target=workers._work, args=(theirs, make))\n"
        "    child.start()\n"
        "    ours.recv()\n"
        "    ours.send([workers.Task('cell', 1)])\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # Not captured by a pipe that the orphan would hold open.
    with (tmp_path / "pid").open("w") as out:
        subprocess.run([sys.executable, str(script)], stdout=out, check=False)
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(child)
