"""docs/configuration.md against the records: every kind, field, default and preset."""

import re
import types
import typing
from pathlib import Path

import msgspec
import pytest

from fedjax_health import config as cfg

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def meanings(record):
    """Field -> its entry in the record's docstring, in one line."""
    _, _, attributes = record.__doc__.partition("Attributes:\n")
    found = {}
    for line in attributes.splitlines():
        if match := re.match(r" {6}(\w+): (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif line.startswith(" " * 8):
            found[name] += f" {line.strip()}"
    return found


def shown(value):
    """A default as the page writes it: in TOML, a kind for a record."""
    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        return f"`{tag}`" if tag else "its defaults"
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`[{', '.join(shown(item).strip('`') for item in value)}]`"
    if isinstance(value, dict):
        inner = ", ".join(f"{k} = {shown(v).strip('`')}" for k, v in value.items())
        return f"`{{{inner}}}`" if inner else "`{}`"
    return f"`{value}`"


def table(record):
    """The table of one record."""
    built = record()
    rows = [
        f"| `{name}` | {shown(default(record, name, built))} | {meaning} |"
        for name, meaning in meanings(record).items()
    ]
    return "\n".join(["| field | default | meaning |", "|---|---|---|", *rows])


def default(record, name, built):
    # local.epochs fills itself in; the page shows what may be left out.
    if (record, name) == (cfg.Local, "epochs"):
        return None
    return getattr(built, name)


def alternatives(slot):
    """The records that a slot may hold, lists of them included."""
    hint = typing.get_type_hints(cfg.Config)[slot]
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    options = typing.get_args(hint) if is_union(hint) else (hint,)
    return [o for o in options if isinstance(o, type) and issubclass(o, cfg.Record)]


def is_union(hint):
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def section(slot):
    """The page's section on one slot."""
    parts = [f"## `{slot}`"]
    for record in alternatives(slot):
        tag = record.__struct_config__.tag
        if tag == "custom":
            parts.append("or [`custom`](#a-function-of-your-own).")
            continue
        if tag:
            parts.append(f"### `{slot} = {tag}`")
        parts.append(record.__doc__.partition("\n")[0])
        if meanings(record):
            parts.append(table(record))
    return "\n\n".join(parts)


SLOTS = [slot for slot in cfg.Config.__struct_fields__ if alternatives(slot)]


@pytest.mark.parametrize("slot", SLOTS)
def test_the_page_has_a_true_section_for_every_slot(slot):
    assert section(slot) in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "record",
    [
        *(cfg.Config, cfg.Custom, cfg.Link, cfg.DpSgd),
        *(cfg.Sgd, cfg.Adam, cfg.Cosine, cfg.WarmupCosine),
    ],
)
def test_the_page_has_a_true_table(record):
    assert table(record) in PAGE.read_text(encoding="utf-8")


def test_the_page_names_every_preset():
    text = PAGE.read_text(encoding="utf-8")
    for name in cfg.preset_names():
        assert f"| `{name}` | {cfg.preset_summary(name)} |" in text


def test_every_example_on_the_page_works():
    commands = re.findall(r"^fedjax-health run (.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        name = re.search(r"--config (\w+)", command)
        changes = [a or b for a, b in re.findall(r"--set (?:'([^']+)'|(\S+))", command)]
        assert cfg.load(name[1] if name else "demo", changes)
    for text in re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL):
        assert cfg.parse(text)
