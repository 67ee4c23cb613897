"""SVG that can stand beside other SVG in one page."""

import re

import pytest

from fedjax_health.report.svg import inline_svg

FILE = """<?xml version="1.0"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="72pt" height="36pt"
 viewBox="0 0 72 36" xmlns="http://www.w3.org/2000/svg" version="1.1">
 <metadata><title>made by</title></metadata>
 <defs><style type="text/css">*{stroke-linecap: butt}</style>
  <path id="m1" d="M 0 0" style="stroke: #ABCDEF"/>
  <clipPath id="c1"><rect x="0" width="1"/></clipPath></defs>
 <!-- &lt;hostile&gt; -->
 <g id="axes_1" clip-path="url(#c1)">
  <use xlink:href="#m1" style="fill: url(#c1); stroke: #abcdef"/>
  <text style="fill: #123456">id="c1" url(#c1) &lt;script&gt; #abcdef</text>
 </g>
</svg>
"""


@pytest.fixture
def svg():
    return inline_svg(FILE, prefix="roc", label='say "x"<', colours={"blue": "#abcdef"})


def test_ids_and_references_get_the_prefix(svg):
    ids = re.findall(r'\bid="([^"]+)"', svg.split("<text")[0])
    assert ids == ["roc-m1", "roc-c1", "roc-axes_1"]
    assert 'clip-path="url(#roc-c1)"' in svg
    assert 'href="#roc-m1"' in svg
    assert "fill: url(#roc-c1)" in svg


def test_text_is_left_as_it_is_and_escaped(svg):
    assert '>id="c1" url(#c1) &lt;script&gt; #abcdef</text>' in svg
    assert 'aria-label="say &quot;x&quot;&lt;"' in svg


def test_named_colours_become_variables(svg):
    assert "stroke: var(--blue)" in svg
    assert "fill: #123456" in svg


def test_what_is_for_a_whole_file_is_dropped(svg):
    for part in ("<?xml", "DOCTYPE", "metadata", "<style", "hostile", "xlink", "72pt"):
        assert part not in svg
    assert svg.startswith("<svg ")
    assert 'viewBox="0 0 72 36"' in svg
    assert "max-width: 1.00in" in svg
