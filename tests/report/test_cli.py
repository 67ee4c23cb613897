"""``fedjax-health report`` as a user meets it."""

import json

import pytest

from fedjax_health.cli import main as cli
from tests.report import folder


def invoke(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(["fedjax-health", *map(str, arguments)])
    return caught.value.code or 0


def test_json_names_the_files_and_the_sections(tmp_path, capsys):
    paths = folder.write_run(tmp_path / "ward", leakcheck=None, predictions=None)
    assert invoke("report", paths.root, "--json") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert err == ""
    assert result["report"] == str(paths.report)
    assert "clients" in result["sections"]
    assert "Leak check" in result["left_out"]
    assert str(paths.plots / "roc.png") in result["plots"]


def test_a_person_reads_where_the_page_is(tmp_path, capsys):
    paths = folder.write_run(tmp_path / "ward", predictions=None)
    out = tmp_path / "x.html"
    assert invoke("report", paths.root, "--out", out) == 0
    assert str(out) in capsys.readouterr().out
    assert out.is_file()


def test_tensorboard_without_a_folder_goes_beside_the_report(tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    paths = folder.write_run(tmp_path / "ward", predictions=None)
    assert invoke("report", paths.root, "--tensorboard", "--json") == 0
    event_file = json.loads(capsys.readouterr().out)["tensorboard"]
    assert event_file.startswith(str(paths.root / "tensorboard"))


def test_an_unfinished_run_is_one_clear_line(tmp_path, capsys):
    paths = folder.write_run(tmp_path / "ward")
    paths.result.unlink()
    assert invoke("report", paths.root) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"resume {paths.root}" in err
    assert not paths.report.exists()
