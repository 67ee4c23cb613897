"""Processes that measure cells, and those that die of it."""

import functools
import os
import signal

import pytest

from fedjax_health.sweep.workers import Task, run_groups


def make_measure(folder: str):
    """What a worker measures: its payload says what happens to it."""

    def measure(payload):
        kind, value = payload
        mark = os.path.join(folder, f"{value}")
        if kind == "dies" or (kind == "dies once" and not os.path.exists(mark)):
            with open(mark, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
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
    assert "SIGKILL" in found["dies 2"]["reason"]
    assert all(found[f"ok {i}"]["status"] == "done" for i in (1, 3, 4))


def test_nothing_to_do_is_done(tmp_path):
    assert run([], tmp_path, 2) == {}
