"""Every TOML block of the pages can be loaded as a configuration or a sweep."""

import re
import tomllib
from pathlib import Path

import pytest

from fedjax_health.config import parse
from fedjax_health.config.sweep import parse_sweep

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    for number, block in enumerate(
        re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S), 1
    )
]


@pytest.mark.parametrize("text", BLOCKS)
def test_a_block_is_a_configuration_or_a_sweep(text):
    if "axes" in tomllib.loads(text):
        assert parse_sweep(text).cells
        return
    config = parse(text)
    for name, value in tomllib.loads(text).items():
        found = getattr(config, name)
        for field, given in value.items() if isinstance(value, dict) else ():
            if field != "kind" and not isinstance(given, dict | list):
                assert getattr(found, field) == given


def test_there_are_blocks():
    assert len(BLOCKS) >= 4
