"""Files of a report: where they lie, that they are the same again, what is refused."""

import hashlib
import os
import subprocess
import sys

import pytest

from fedjax_health.records import RunFolderError
from fedjax_health.report import plots, write_report
from tests.report import folder


def digests(root):
    return {
        path.relative_to(root): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".html", ".png") and path.is_file()
    }


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    frame = folder.predictions(names=folder.NAMES[:2])
    paths = folder.write_run(tmp_path / "ward", predictions=frame)
    result = write_report(paths.root)
    first = digests(paths.root)
    assert {str(paths.root / name) for name in first} == {
        result["report"],
        *result["plots"],
    }
    # Without those of privacy and communication, of which the folder has nothing.
    assert len(result["plots"]) == len(plots.FIGURES) - 3
    for path in result["plots"]:
        with open(path, "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    code = f"import fedjax_health.report as r; r.write_report({str(paths.root)!r})"
    # Another process has another order of sets.
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert digests(paths.root) == first


def test_a_picture_that_is_no_longer_drawn_goes_and_others_stay(tmp_path):
    root = tmp_path / "ward"
    paths = folder.write_run(root)
    with folder.no_pictures():
        write_report(root)
        (paths.plots / "own.png").write_bytes(b"a user's")
        paths.figures.unlink()
        write_report(root)
    names = sorted(path.name for path in paths.plots.iterdir())
    assert names == [
        "alarms.png",
        "modalities.png",
        "own.png",
        "scores.png",
        "training.png",
    ]


def test_out_puts_the_page_elsewhere(tmp_path):
    paths = folder.write_run(tmp_path / "ward", figures=None, predictions=None)
    result = write_report(paths.root, out=tmp_path / "a page.html")
    assert result["report"] == str(tmp_path / "a page.html")
    assert (tmp_path / "a page.html").is_file()
    assert not paths.report.exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("page.pdf", r"page\.pdf: a report is HTML"),
        ("ward/config.toml", r"config\.toml: a report is HTML"),
        ("absent/page.html", r"absent: no such folder"),
        ("folder.html", r"folder\.html: is a folder"),
    ],
)
def test_a_place_for_no_page_is_refused_before_anything_is_written(
    tmp_path, out, message
):
    paths = folder.write_run(tmp_path / "ward", predictions=None)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(RunFolderError, match=message):
        write_report(paths.root, out=tmp_path / out)
    assert digests(tmp_path) == {}
