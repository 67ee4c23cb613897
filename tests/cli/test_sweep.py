"""The command ``sweep``: its options, its workers, its lines and its exit codes."""

import io
import json
import types

import pytest

from fedjax_health import records
from fedjax_health.cli import main as cli
from fedjax_health.cli import sweep as sweeps
from fedjax_health.cli.parser import parse_flags
from fedjax_health.config.sweep import load_sweep
from fedjax_health.engine import devices
from tests.sweep import grid

AXES = """
[cell]
rounds = 1
model = { kind = "mlp", hidden = [4] }
window = { length = 1, stride = 1 }

[axes]
seed = [0, 1, 2]
"""


def invoke(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(["fedjax-health", *map(str, arguments)])
    return caught.value.code or 0


def options(*arguments):
    return parse_flags(["fedjax-health", "sweep", *map(str, arguments)])


@pytest.fixture
def machine(monkeypatch):
    """A machine of 4 cores and room for 3 workers."""
    monkeypatch.setattr(devices, "available_cores", lambda: 4)
    monkeypatch.setattr(devices, "available_memory", lambda: 3 * sweeps.WORKER_BYTES)


def test_options_parse():
    found = options(
        *("--config", "robustness", "--base", "wustl", "--set", "rounds=3"),
        *("--axis", "malicious=[0.1]", "--only", "seed=0", "--only", "attack=ipm"),
        *("--workers", 2, "--out", "here"),
    )
    assert found.config == "robustness"
    assert found.base == "wustl"
    assert found.overrides == ["rounds=3"]
    assert found.axes == ["malicious=[0.1]"]
    assert found.only == ["seed=0", "attack=ipm"]
    assert (found.workers, found.out) == (2, "here")
    assert options("--config", "seeds").workers is None


@pytest.mark.parametrize(
    ("changes", "given", "expected"),
    [
        ((), (), (3, 1)),
        ((), ("--workers", 9), (9, 1)),
        # One worker has the cores to itself.
        ((), ("--workers", 1), (1, 4)),
        (("--only", "seed=0"), (), (1, 4)),
        (("--only", "seed=0,1"), ("--workers", 8), (2, 1)),
        (("--set", "devices=2"), (), (3, 2)),
        (("--set", "devices=6"), ("--workers", 1), (1, 6)),
        (("--set", "devices=2"), ("--device-count", 3), (3, 3)),
    ],
)
def test_workers_and_devices_follow_what_is_left(machine, changes, given, expected):
    del machine
    parsed = options("--config", "seeds", *changes, *given)
    sweep = load_sweep(
        "seeds",
        parsed.overrides,
        axes=["seed=[0,1,2,3,4,5,6,7,8,9]"],
        only=parsed.only,
    )
    assert sweeps.crew(parsed, sweep.cells) == expected


def test_nothing_left_is_one_worker(machine):
    del machine
    workers, _ = sweeps.crew(options("--config", "seeds"), [])
    assert workers == 1


def test_one_line_a_cell_says_what_came_of_it_and_how_long_is_left():
    stream, now = io.StringIO(), [100.0]
    progress = sweeps.lines(stream, clock=lambda: now[0])
    cell = types.SimpleNamespace(
        values={"seed": 0, "defence": "clip"}, tuned={"aggregator.radius": "0.1"}
    )
    progress.on_start(cells=10, done=2)
    now[0] += 100
    done = {"status": "done", "final": {"test": {"auroc": 0.81249}}}
    progress.on_cell(cell=cell, record=done, seconds=1.25, done=4, cells=10)
    failed = {"status": "failed", "reason": "out of order"}
    cell = types.SimpleNamespace(values={"seed": 1}, tuned={})
    progress.on_cell(cell=cell, record=failed, seconds=0, done=10, cells=10)
    progress.on_message("warning: look")
    assert stream.getvalue().splitlines() == [
        "10 different cells, 2 of them done already",
        "4/10  seed=0, defence=clip, aggregator.radius=0.1: AUROC 0.812  (1.2 s)  "
        "5 min left",
        "10/10  seed=1: failed: out of order  (0.0 s)  0 s left",
        "warning: look",
    ]


@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupt_says_how_to_go_on(tmp_path, monkeypatch, capsys, begun):
    out = tmp_path / "out"

    def interrupted(sweep, folder, progress, **_):
        if begun:
            paths = records.create_sweep_folder(folder)
            records.write_text(paths.sweep, sweep.toml)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "run_sweep", interrupted)
    path = grid.write(tmp_path, AXES)
    assert invoke("sweep", "--config", path, "--out", out, "--no-cache") == 130
    way_out = f"go on with: fedjax-health resume {out}"
    expected = way_out if begun else "nothing was measured yet"
    assert f"fedjax-health: interrupted; {expected}" in capsys.readouterr().err


def test_a_whole_sweep_by_the_command(tmp_path, capsys):
    path, out = grid.write(tmp_path, AXES), tmp_path / "out"
    common = ("--no-cache", "--no-report", "--json", "--workers", 2)
    # Every worker has the devices that its cells ask for.
    only = ("--only", "seed=0,1", "--set", "devices=2")
    assert invoke("sweep", "--config", path, "--out", out, *only, *common) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert result["cells"] == {"done": 2}
    assert result["folder"] == str(out)
    assert "2/2  seed=" in told.err
    assert {
        line["cell"] for line in records.read_jsonl(records.sweep_folder(out).cells)
    } == {c.key for c in load_sweep(path, ["devices=2"], only=["seed=0,1"]).cells}
    # Finished: nothing is done again.
    assert invoke("resume", out, *common) == 0
    again = capsys.readouterr()
    assert json.loads(again.out) == result
    assert "2 different cells, 2 of them done already" in again.err
    assert invoke("sweep", "--config", path, "--out", out, *common) == 2
    assert "it holds a finished sweep" in capsys.readouterr().err


def test_a_missing_file_ends_the_command_before_the_grid(tmp_path, capsys):
    out = tmp_path / "out"
    path = grid.write(tmp_path, AXES)
    changes = ("--set", "data.path=/nope.csv", "--no-cache", "--out", out)
    assert invoke("sweep", "--config", path, *changes) == 2
    told = capsys.readouterr().err
    assert "error: /nope.csv" in told
    assert "different cells" not in told
    assert not out.exists()


def test_a_sweep_without_any_figures_is_an_error(tmp_path, monkeypatch, capsys):
    def unable(setup):
        del setup
        return lambda config: {"status": "failed", "reason": "no memory for it"}

    monkeypatch.setattr(sweeps, "measure_cells", unable)
    path, out = grid.write(tmp_path, AXES), tmp_path / "out"
    code = invoke(
        *("sweep", "--config", path, "--out", out),
        *("--no-cache", "--workers", 1, "--no-report"),
    )
    assert code == 2
    told = capsys.readouterr().err
    assert "no cell has figures: 3 cell(s) failed: no memory for it" in told
