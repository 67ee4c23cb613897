"""The page in a real browser, where one is installed."""

import io
import shutil
import subprocess

import pytest
from PIL import Image

from fedjax_health.report import write_report
from tests.report import folder

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Runs headless Chromium on a file; skipped where there is none that works."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed: its test of the report was left out")

    def run(path, *options):
        profile = tmp_path_factory.mktemp("profile")
        done = subprocess.run(
            [program, *OPTIONS, f"--user-data-dir={profile}", *options, path.as_uri()],
            capture_output=True,
            timeout=120,
            check=False,
        )
        return done.stdout.decode()

    page = tmp_path_factory.mktemp("works") / "page.html"
    page.write_text(f"<title>quiet</title>{folder.SCRIPT}")
    # It must run a script that may run, or its silence on a report says nothing.
    if "<title>owned</title>" not in run(page, "--dump-dom"):
        pytest.skip("the installed Chromium does not run here")
    return run


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    paths = folder.write_run(tmp_path_factory.mktemp("browser") / "ward")
    with folder.no_pictures():
        write_report(paths.root)
    return paths.report


def test_a_site_named_script_is_shown_and_does_not_run(browse, report):
    page = browse(report, "--dump-dom")
    assert "owned" not in page.split("</title>")[0]
    assert "<title>ward" in page
    assert '<section id="versions">' in page
    assert "<th scope=\"row\">&lt;script&gt;document.title='owned'" in page
    assert "<script" not in page


def test_the_policy_stops_what_would_get_through(browse, report, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        report.read_text().replace(
            "<h1>", f"{folder.SCRIPT}<img src=x onerror=\"document.title='owned'\"><h1>"
        )
    )
    page = browse(broken, "--dump-dom")
    assert "<script>" in page
    assert "<title>ward" in page


def test_the_page_is_drawn(browse, report, tmp_path):
    picture = tmp_path / "page.png"
    browse(report, f"--screenshot={picture}", "--window-size=1200,3000")
    image = Image.open(io.BytesIO(picture.read_bytes())).convert("RGB")
    colours = {c: n for n, c in image.getcolors(maxcolors=1 << 20)}
    assert len(colours) > 100
    # The blue of the curves, in the light or the dark form.
    assert colours.get((0x1F, 0x6F, 0xB4), 0) + colours.get((0x6F, 0xB1, 0xEC), 0) > 200
