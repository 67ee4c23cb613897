"""Reads, overrides, checks, saves and hashes a configuration."""

import functools
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from fedjax_health.config import presets, schema
from fedjax_health.config.attacks import Backdoor, DistributedBackdoor
from fedjax_health.config.common import ConfigError, Custom, Record
from fedjax_health.config.custom import check_target
from fedjax_health.config.data import (
    Eicu,
    Events,
    Heart,
    HospitalSim,
    Link,
    Physionet2012,
    Table,
    TonIot,
    Wustl,
)
from fedjax_health.config.preparation import LeaveOneOut
from fedjax_health.config.simulation import simulation_settings
from fedjax_health.config.top import Config

# How data is named that is given for a configuration by mistake.
_TABLES = (".csv", ".csv.gz", ".parquet", ".pq")


def load(
    config: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    seed: int | None = None,
) -> Config:
    """Reads a configuration and applies overrides to it.

    Args:
      config: a TOML file, or the name of a preset.
      overrides: ``path.to.field=value`` in the order in which they apply. A value is
        a TOML literal, else a plain string; the kind of a record alone replaces it by
        that kind's defaults; ``none`` empties a slot that may be empty.
      seed: takes the place of the configuration's own seed.

    Returns:
      The configuration, complete and checked.

    Raises:
      ConfigError: naming the field and the way out.
    """
    changes = list(overrides) if seed is None else [*overrides, f"seed={seed}"]
    tree = read_toml(read_text(config), source=os.fspath(config))
    if "axes" in tree:
        raise ConfigError(
            f"config: {os.fspath(config)}: this is a sweep: fedjax-health sweep "
            f"--config {os.fspath(config)}"
        )
    return complete(override(tree, changes))


def parse(text: str, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration from TOML text; see ``load``.

    Args:
      text: TOML.
      overrides: ``path.to.field=value`` in the order in which they apply.

    Returns:
      The configuration, complete and checked.

    Raises:
      ConfigError: naming the field and the way out.
    """
    return complete(override(read_toml(text), overrides))


def read_toml(text: str, *, source: str = "") -> dict[str, Any]:
    """Returns the tree of a TOML text.

    Args:
      text: TOML.
      source: the file that it comes from, for the message.

    Raises:
      ConfigError: where it is none.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = f"config: {source}" if source else "config"
        raise ConfigError(f"{where}: not valid TOML: {error}") from error


def validate(config: Config) -> Config:
    """Checks a configuration that was built in Python.

    Args:
      config: records made by hand, which msgspec does not check.

    Returns:
      The same configuration, with lists in ``Custom.args`` as TOML gives them.

    Raises:
      ConfigError: naming the field and the way out.
    """
    return complete(_builtins(config))


def to_toml(config: Config) -> str:
    """Writes a configuration; ``parse(to_toml(config)) == config``.

    Args:
      config: a checked configuration.

    Returns:
      TOML text with every field; empty slots are left out, as TOML has no null.
    """
    return tomli_w.dumps(_builtins(config))


def config_hash(config: Config) -> str:
    """Returns the SHA-256 of a configuration in hexadecimal digits.

    Args:
      config: a checked configuration.
    """
    text = json.dumps(_builtins(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _schema() -> Any:
    return msgspec.inspect.type_info(Config)


def read_text(config: str | os.PathLike[str]) -> str:
    """Returns the text of a configuration.

    Args:
      config: a TOML file, or the name of a preset.

    Raises:
      ConfigError: where there is none.
    """
    name = os.fspath(config)
    if name in presets.preset_names():
        return presets.preset_text(name)
    if name.lower().endswith(_TABLES):
        raise ConfigError(
            f"config: {name}: is a table, not a configuration, which names it as path "
            f"in [data]; for a first look at it: fedjax-health leakcheck {name} --set "
            "data.label=COLUMN"
        )
    path = Path(name)
    if not path.exists() and "/" not in name and not name.endswith(".toml"):
        raise ConfigError(presets.unknown_preset(name))
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config: {name}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config: {name}: not UTF-8 text: {error}") from error


def override(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns a tree with overrides applied to it; see ``load``.

    Args:
      raw: as TOML gives it; it stays as it is.
      overrides: ``path.to.field=value`` in the order in which they apply.

    Raises:
      ConfigError: for a path that does not exist.
    """
    for one in overrides:
        path, separator, text = one.partition("=")
        if not separator:
            raise ConfigError(f"config: --set {one!r}: write it as path.to.field=value")
        keys = schema.parse_path(path.strip())
        raw = schema.assign(raw, keys, text, _schema(), "", None)
    return raw


def change(
    raw: dict[str, Any], changes: Sequence[tuple[tuple[str, ...], Any]]
) -> dict[str, Any]:
    """Returns a tree with values set in it.

    Args:
      raw: as TOML gives it; it stays as it is.
      changes: path and value, as TOML gives it, in the order in which they apply;
        "none" empties a slot that may be empty.

    Raises:
      ConfigError: for a path that does not exist.
    """
    for keys, value in changes:
        raw = schema.assign(raw, list(keys), schema.Given(value), _schema(), "", None)
    return raw


def complete(raw: dict[str, Any]) -> Config:
    """Returns the configuration of a tree, complete and checked.

    Args:
      raw: as TOML gives it.

    Raises:
      ConfigError: naming the field and the way out.
    """
    raw = schema.normalise(raw, _schema(), "")
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(_explain(str(error), raw)) from None
    _check_complete(config, "")
    return config


def _explain(text: str, raw: Any) -> str:
    """Turns a message of msgspec into ``config: path: value: what is wrong``."""
    text, _, place = text.partition(" - at `$")
    keys = re.findall(r"[^.\[\]`]+", place.replace("[...]", ""))
    for key in keys:
        if isinstance(raw, list) and key.isdigit():
            raw = raw[int(key)]
        else:
            raw = raw.get(key) if isinstance(raw, dict) else None
    where = "".join(f"{key}." for key in keys).rstrip(".")
    text = text.replace("`", "").replace(" | null", " or none")
    text = text.replace("object", "table").replace("array", "list")
    if not text.startswith(("Expected", "Invalid")):
        return f"config: {where}: {text}" if where else f"config: {text}"
    value = repr(raw)
    shown = value if len(value) <= 60 else f"{value[:57]}..."
    return f"config: {where}: {shown}: {text[0].lower()}{text[1:]}"


def _check_complete(record: Any, path: str):
    """Refuses what has a default only so that a record can be named by its kind."""
    match record:
        case Custom():
            check_target(record.target, path)
        case HospitalSim():
            simulation_settings(record, path=path)
        case Link(path=""):
            raise ConfigError(f"config: {path}.path: names no file: give one")
        case Events(entities=""):
            raise ConfigError(
                f"config: {path}.entities: names no file: add --set "
                f"{path}.entities=FILE"
            )
    match record:
        case (
            Table(path="")
            | Events(path="")
            | Wustl(path="")
            | Physionet2012(path="")
            | Eicu(path="")
            | TonIot(path="")
            | Heart(path="")
        ):
            raise ConfigError(
                f"config: {path}.path: names no file: add --set {path}.path=FILE"
            )
        case Backdoor(columns=()) | DistributedBackdoor(columns=()):
            raise ConfigError(
                f"config: {path}.columns: names no column of the input: add --set "
                f"'{path}.columns=[\"NAME\"]' --set '{path}.values=[VALUE]'"
            )
        case LeaveOneOut(client=""):
            raise ConfigError(
                f"config: {path}.client: names no client: add --set {path}.client=NAME"
            )
    if isinstance(record, Record):
        for name in record.__struct_fields__:
            _check_complete(getattr(record, name), f"{path}.{name}".lstrip("."))
    elif isinstance(record, tuple):
        for index, item in enumerate(record):
            _check_complete(item, f"{path}.{index}")


def _builtins(config: Config) -> dict[str, Any]:
    return _without_none(msgspec.to_builtins(config))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_none(item) for key, item in value.items() if item is not None
        }
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
