"""The command line as a user meets it; training itself is replaced."""

import errno
import io
import json
import subprocess
import sys
import types

import pytest

import fedjax_health
from fedjax_health import records
from fedjax_health.cli import main as cli
from fedjax_health.cli import startup
from fedjax_health.config import load
from fedjax_health.core.message import CompositionError
from fedjax_health.data.schema import DataError

RESULT = {
    "metrics": {
        "auroc": 0.91234,
        "f1": 0.5,
        "mean_delay": None,
    },
    "intervals": {"auroc": [0.9, 0.92]},
    "folder": "runs/[bold]demo",
    "rounds": 60,
}


@pytest.fixture
def training(monkeypatch, tmp_path):
    """Stands in for fedjax_health.training, and keeps jax out of it."""
    module = types.ModuleType("fedjax_health.training")
    module.calls = []

    def train(config, folder, progress):
        module.calls.append(("train", config, folder))
        print("a library that talks")
        progress.on_start(total_rounds=2)
        progress.on_round(round=2, loss=0.5, clients_per_s=10.0, validation=0.75)
        return RESULT

    def resume(folder, progress):
        module.calls.append(("resume", folder))
        return RESULT

    def describe(config):
        module.calls.append(("describe", config))
        return {"stages": [{"name": "mean"}], "uplink_bytes": 471859200, "rounds": 3}

    module.train, module.resume, module.describe = train, resume, describe
    monkeypatch.setitem(sys.modules, "fedjax_health.training", module)
    monkeypatch.setattr(fedjax_health, "training", module, raising=False)
    module.prepared = []
    monkeypatch.setattr(
        startup, "prepare_jax", lambda **options: module.prepared.append(options)
    )
    monkeypatch.chdir(tmp_path)
    return module


def invoke(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(["fedjax-health", *arguments])
    return caught.value.code or 0


def one_line(text):
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


# Results


def test_run_prints_one_json_object_on_stdout_and_the_rest_on_stderr(training, capsys):
    assert invoke("run", "--set", "rounds=2", "--seed", "5", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == RESULT
    assert out.count("\n") == 1
    assert "a library that talks" in err
    assert "round 2/2" in err
    assert "validation AUROC 0.7500" in err
    ((_, config, folder),) = training.calls
    assert (config.rounds, config.seed) == (2, 5)
    assert str(folder) == "runs/demo-5"


def test_run_prints_a_table_for_a_person(training, capsys):
    assert invoke("run") == 0
    out, _ = capsys.readouterr()
    assert "AUROC" in out
    assert "0.9123" in out
    assert "0.9000 to 0.9200" in out
    assert "mean delay (steps)" in out
    assert "[bold]demo" in out


def test_plan_describes_in_both_forms(training, capsys):
    assert invoke("plan", "--config", "many_clients", "--json") == 0
    assert json.loads(capsys.readouterr().out)["uplink_bytes"] == 471859200
    assert invoke("plan") == 0
    assert "uplink bytes: 472 MB" in capsys.readouterr().out
    assert training.calls[0][1] == load("many_clients")


def test_resume_reads_the_folder(training, tmp_path, capsys):
    folder = records.create_folder(tmp_path / "old")
    records.write_text(folder.config, "devices = 3\n")
    assert invoke("resume", str(folder.root), "--json", "--no-cache") == 0
    assert training.calls == [("resume", folder.root)]
    assert training.prepared == [{"devices": 3, "cache_dir": None, "no_cache": True}]
    assert json.loads(capsys.readouterr().out) == RESULT


@pytest.mark.parametrize(
    ("platform", "arguments", "expected"),
    [("cpu", (), 5), ("gpu", (), None), ("cpu", ("--device-count", "2"), 2)],
)
def test_resume_asks_for_the_devices_of_the_first_run(
    training, tmp_path, platform, arguments, expected
):
    folder = records.create_folder(tmp_path / "old")
    records.write_text(folder.config, "rounds = 3\n")
    records.write_json(folder.environment, {"devices": 5, "platform": platform})
    assert invoke("resume", str(folder.root), *arguments) == 0
    assert training.prepared[0]["devices"] == expected


def test_device_and_cache_options_reach_jax_before_training(training):
    assert (
        invoke("run", "--device-count", "2", "--cache-dir", "/c", "--set", "devices=4")
        == 0
    )
    assert training.prepared == [{"devices": 2, "cache_dir": "/c", "no_cache": False}]


def test_presets_are_listed_and_printed(capsys):
    assert invoke("presets", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["presets"]
    assert {"demo", "wustl"} <= {row["name"] for row in listed}
    assert invoke("presets") == 0
    assert "WUSTL" in capsys.readouterr().out
    assert invoke("presets", "paper") == 0
    assert 'preset = "paper"' in capsys.readouterr().out


# Errors


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("run", "--config", "demoo"), "did you mean demo"),
        (("run", "--config", "absent.toml"), "No such file"),
        (("run", "--config", "ward.csv"), "ward.csv: is a table, not a configuration"),
        (("run", "--config", "heart", "--set", "data.path=no.csv"), "no.csv does not"),
        (("plan", "--config", "heart", "--set", "data.path=no.csv"), "no.csv does not"),
        (("run", "--config", "wustl"), "--set data.path=FILE"),
        (("run", "--set", "model=grux"), "valid: gru, mlp, "),
        (("run", "--set", "dropout=nan"), "dropout: nan is not a finite number"),
        (("run", "--seed", "-1"), "seed: -1"),
        (("plan", "--set", "round=2"), "did you mean rounds"),
        (("resume", "absent"), "no such folder"),
        (("presets", "demoo"), "did you mean demo"),
        (("generate", "--out", "x.txt"), "must end in .csv or .parquet"),
        (("generate", "--out", "absent/x.csv"), "does not exist"),
        (("generate", "--config", "wustl", "--set", "data.path=x"), "embedded data"),
    ],
)
def test_input_errors_are_one_line_and_exit_2(training, capsys, arguments, part):
    assert invoke(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert one_line(err).startswith("fedjax-health: error: ")
    assert part in err
    assert training.calls == []
    assert training.prepared == []


def test_an_output_folder_in_use_is_refused_before_jax_starts(
    training, tmp_path, capsys
):
    records.write_text(records.create_folder(tmp_path / "old").config, "")
    assert invoke("run", "--out", "old") == 2
    assert "fedjax-health resume old" in one_line(capsys.readouterr().err)
    assert training.prepared == []


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (DataError("flows.csv: no column 'label'"), "no column 'label'"),
        (CompositionError("mean cannot follow\nthis"), "mean cannot follow this"),
        (records.RunFolderError("x: locked"), "x: locked"),
        (OSError(errno.ENOSPC, "No space left", "ckpt"), "ckpt: the disk is full"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.csv"), "a.csv: No such"),
    ],
)
def test_errors_of_training_are_one_line(training, monkeypatch, capsys, error, part):
    def fail(*_args):
        raise error

    monkeypatch.setattr(training, "train", fail)
    assert invoke("run") == 2
    assert part in one_line(capsys.readouterr().err)
    assert invoke("run", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def in_package(source):
    """A function that stands in a module of the package."""
    namespace = {"__name__": "fedjax_health.elsewhere"}
    exec(source, namespace)
    return namespace["train"]


def test_a_plain_value_error_is_the_users_where_the_package_raises_it(
    training, monkeypatch, capsys
):
    raised = in_package("def train(*_):\n    raise ValueError('cohort too large')\n")
    monkeypatch.setattr(training, "train", raised)
    assert invoke("run") == 2
    assert "cohort too large" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    "function",
    [
        in_package("def train(*_):\n    return int('x')\n"),
        in_package("import json\ndef train(*_):\n    return json.loads('{')\n"),
        lambda *_: int("x"),
    ],
    ids=["a C function", "a library", "outside"],
)
def test_a_value_error_of_a_library_is_a_fault(training, monkeypatch, capsys, function):
    monkeypatch.setattr(training, "train", function)
    assert invoke("run") == 1
    assert "Traceback" in capsys.readouterr().err


def test_faults_of_the_program_show_their_traceback(training, monkeypatch, capsys):
    monkeypatch.setattr(training, "describe", lambda _: 1 / 0)
    assert invoke("plan") == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(training, monkeypatch, capsys):
    def interrupt(config, folder, progress):
        records.write_text(records.create_folder(folder).config, "")
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupt)
    assert invoke("run", "--out", "here") == 130
    assert "fedjax-health resume here" in one_line(capsys.readouterr().err)

    def interrupt_early(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupt_early)
    assert invoke("run", "--out", "there") == 130
    assert "nothing was trained" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("run", "ward.toml"), "ward.toml; a configuration is given as --config ward."),
        (("plan", "demo", "--seed", "3"), "given as --config demo"),
        (("run", "--sede", "3"), "unrecognized arguments: --sede 3\n"),
        (("resume", "a", "b"), "unrecognized arguments: b\n"),
    ],
)
def test_a_configuration_in_the_wrong_place_is_a_hint(arguments, hint, capsys):
    assert invoke(*arguments) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("ruin",),
        ("run", "--sede", "3"),
        ("run", "--seed", "x"),
        ("resume",),
        ("run", "--device-count", "0"),
        ("run", "--conf", "demo"),
    ],
)
def test_wrong_usage_exits_2(arguments, capsys):
    assert invoke(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage" in err


# Help and start-up


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_exits_0_and_imports_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from fedjax_health.cli.main import main\n"
        "try:\n"
        f"    main(['fedjax-health', *{arguments!r}])\n"
        "finally:\n"
        "    heavy = ('jax', 'numpy', 'pandas', 'rich', 'flax', 'msgspec')\n"
        "    print([m for m in heavy if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage: fedjax-health" in done.stdout
    assert done.stderr.strip() == "[]"


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "fedjax_health", "presets", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["presets"]


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m fedjax_health presets | true",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr


def test_cache_folder_follows_option_then_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for name in ("FEDJAX_HEALTH_CACHE", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert startup.cache_folder() == tmp_path / "xdg" / "fedjax-health" / "xla"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/jax/own")
    assert startup.cache_folder() is None
    monkeypatch.setenv("FEDJAX_HEALTH_CACHE", str(tmp_path / "mine"))
    assert startup.cache_folder() == tmp_path / "mine"
    assert startup.cache_folder(str(tmp_path / "option")) == tmp_path / "option"


def test_jax_starts_with_the_devices_and_the_cache_that_were_asked_for(tmp_path):
    code = (
        "import sys\n"
        "from fedjax_health.cli.startup import prepare_jax\n"
        "prepare_jax(devices=3, cache_dir=sys.argv[1])\n"
        "import jax\n"
        "print(len(jax.devices('cpu')), jax.config.jax_compilation_cache_dir)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["3", str(tmp_path / "cache")]
    assert (tmp_path / "cache").is_dir()


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file" / "cache")
    assert startup.prepare_cache(folder, no_cache=False) is None
    assert "no compilation cache" in one_line(capsys.readouterr().err)


def test_results_go_to_a_stream_without_a_terminal(training):
    from fedjax_health.cli import show

    stream = io.StringIO()
    show.result(RESULT, stream)
    assert "\x1b" not in stream.getvalue()


def test_a_result_is_shown_in_the_units_of_its_figures():
    from fedjax_health.cli import show

    stream = io.StringIO()
    values = {
        "metrics": {
            "achieved_far": 0.01239,
            "missed_episodes": 40.0,
            "mean_delay": 7.78,
        },
        "intervals": {
            "achieved_far": [0.0098, 0.0156],
            "missed_episodes": [25.0, 58.0],
        },
        "details": {"episodes": 158.0, "prevalence": 0.05361, "threshold": 0.1657},
        "oracle": {"auroc": 0.99},
        "memory": {"data (bytes)": 1234},
    }
    show.result(values, stream)
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert "achieved false-alarm rate 1.2 % 1.0 % to 1.6 %" in lines
    assert "missed episodes 40 of 158 25 to 58" in lines
    assert "mean delay (steps) 7.8" in lines
    assert "├── episodes: 158" in lines
    assert "├── prevalence: 5.4 %" in lines
    assert "└── threshold: 0.1657" in lines
    assert "└── AUROC: 0.9900" in lines
    assert "└── data: 1.2 kB" in lines


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("achieved_far", 0.000123, "0.012 %"),
        ("achieved_far", 1.0, "100.0 %"),
        ("achieved_far", 0.0, "0 %"),
        ("missed_episodes", None, "-"),
        ("missed_episodes", float("nan"), "-"),
        ("disk_bytes", 0, "0 B"),
        ("disk_bytes", 999, "999 B"),
        ("disk_bytes", 999_600, "1.0 MB"),
        ("disk_bytes", 471_859_200, "472 MB"),
        ("disk_bytes", None, "-"),
        ("rounds", 1200, "1,200"),
    ],
)
def test_figures_by_their_names(name, value, text):
    from fedjax_health.cli import show

    assert show.figure(name, value) == text
