"""A sweep: one configuration, varied along axes.

```toml
base = "demo"                       # a preset, a file, or a table of fields

[cell]                              # fields of every cell, over those of the base
rounds = 30

[axes]
seed = [0, 1, 2]                    # a field and its values
malicious = [0.0, 0.2, 0.4]

[axes.defence.mean]                 # a named value: any fields together
aggregator = "mean"

[axes.defence."centred clipping"]
aggregator = "centered_clip"
tune = { "aggregator.radius" = [0.1, 1.0, 10.0] }   # chosen on validation

[axes.attack."no attack"]           # what rules cost where nobody attacks
clean = true

[axes.attack.ipm]
attack = { kind = "ipm", scale = 0.5 }

[report]
metric = "auroc"
```
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import tomli_w

from fedjax_health.config import presets, schema
from fedjax_health.config.attacks import Attackers
from fedjax_health.config.common import AboveZero, ConfigError, Record
from fedjax_health.config.parse import (
    change,
    complete,
    config_hash,
    override,
    read_text,
    read_toml,
)
from fedjax_health.config.top import Config

Change = tuple[tuple[str, ...], Any]


class ReportSettings(Record, frozen=True):
    """What the report of a sweep compares.

    Attributes:
      metric: by which cells are ranked, on validation and on the test part.
      rows: axis of the candidates, of which one is to be chosen.
      columns: axis of the circumstances in which they are compared.
      worst: axis over which the worst case counts.
      repeats: axis of the repetitions, over which means and intervals are taken.
      tolerance: loss against a candidate's own clean run up to which it holds.
    """

    metric: Literal["auroc", "auprc", "accuracy", "f1", "mcc"] = "auroc"
    rows: str = "defence"
    columns: str = "malicious"
    worst: str = "attack"
    repeats: str = "seed"
    tolerance: AboveZero = 0.03


class Choice(NamedTuple):
    """One value of an axis.

    Attributes:
      value: a number, or the name.
      changes: what it sets in the configuration.
      tune: path -> values that are tried, of which validation chooses one.
      clean: whether it is the absence of attacks: nobody is malicious, while rules
        assume what they would where somebody is.
    """

    value: str | int | float | bool
    changes: tuple[Change, ...]
    tune: tuple[tuple[tuple[str, ...], tuple[Any, ...]], ...] = ()
    clean: bool = False


class Axis(NamedTuple):
    """What a sweep varies.

    Attributes:
      name: the field, or a name.
      choices: its values.
    """

    name: str
    choices: tuple[Choice, ...]


class Cell(NamedTuple):
    """One configuration of a sweep.

    Attributes:
      values: axis -> value.
      tuned: path -> value that validation is to choose among, as text.
      config: the configuration; where nobody is malicious, without attacks, so that
        cells which compute the same are the same.
      key: of the configuration; equal for cells that compute the same.
    """

    values: dict[str, str | int | float | bool]
    tuned: dict[str, str]
    config: Config
    key: str


class Sweep(NamedTuple):
    """A grid of configurations.

    Attributes:
      axes: what varies, the outermost first.
      cells: in the order of the axes.
      report: what the report compares.
      toml: text from which ``parse_sweep`` makes the same sweep.
    """

    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    report: ReportSettings
    toml: str


def load_sweep(
    sweep: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    base: str | os.PathLike[str] | None = None,
    axes: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Sweep:
    """Reads a sweep and makes its cells.

    Args:
      sweep: a TOML file, or the name of a preset.
      overrides: ``path.to.field=value``, of every cell.
      base: a configuration that takes the place of the sweep's own base.
      axes: ``field=[value, value]``: an axis of values, new or in the place of the
        sweep's own.
      only: ``axis=value`` or ``axis=value,value``: values that are kept.

    Raises:
      ConfigError: naming the axis, the value and the way out.
    """
    raw = read_toml(_sweep_text(sweep), source=os.fspath(sweep))
    if axes and isinstance(raw.setdefault("axes", {}), dict):
        raw["axes"] |= map(_listed, axes)
    _check_names(raw)
    if base is not None:
        raw["base"] = os.fspath(base)
    raw["base"] = _base(raw, overrides)
    raw.pop("cell", None)
    raw["axes"] = _kept(raw, only)
    _check_overrides(raw["axes"], overrides)
    return parse_sweep(tomli_w.dumps(raw))


def parse_sweep(text: str) -> Sweep:
    """Reads a sweep from TOML text.

    Args:
      text: TOML, as ``Sweep.toml`` is.

    Raises:
      ConfigError: naming the axis, the value and the way out.
    """
    raw = read_toml(text)
    _check_names(raw)
    base = _base(raw, ())
    axes = tuple(_axis(name, value) for name, value in raw["axes"].items())
    _check_axes(axes)
    report = _report(raw.get("report", {}), axes)
    _check_values(base, axes)
    cells = tuple(_cells(base, axes))
    return Sweep(axes, cells, report, text)


def _sweep_text(sweep: str | os.PathLike[str]) -> str:
    name = os.fspath(sweep)
    if name in presets.sweep_names():
        return presets.preset_text(name)
    if "/" not in name and not name.endswith(".toml") and not os.path.exists(name):
        raise ConfigError(presets.unknown_sweep(name))
    return read_text(sweep)


def _check_names(raw: Mapping[str, Any]):
    known = ("base", "cell", "axes", "report")
    for name in raw:
        if name not in known:
            raise ConfigError(
                f"sweep: {name}: no such field; valid: {', '.join(known)}. Fields of "
                "the configuration go under [cell]"
            )
    if not raw.get("axes") or not isinstance(raw["axes"], dict):
        raise ConfigError(
            "sweep: axes: there is nothing to vary: add such as [axes] seed = [0, 1]"
        )


def _base(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the tree that every cell starts from."""
    base = raw.get("base", "demo")
    if not isinstance(base, dict | str):
        raise ConfigError(
            f"sweep: base: {base!r}: name a preset or a file, or give a table of fields"
        )
    tree = base if isinstance(base, dict) else read_toml(read_text(base), source=base)
    tree = dict(tree)
    if "axes" in tree:
        raise ConfigError(
            "sweep: base: this is a sweep itself, and a base is one configuration"
        )
    cell = raw.get("cell", {})
    if not isinstance(cell, dict):
        raise ConfigError(f"sweep: cell: {cell!r}: a table of fields is needed")
    return override(change(tree, tuple(_flat(cell))), overrides)


def _check_overrides(axes: Mapping[str, Any], overrides: Sequence[str]):
    """Refuses what an axis would undo."""
    for text in overrides:
        keys = tuple(schema.parse_path(text.partition("=")[0].strip()))
        for name, value in axes.items():
            for choice in _axis(name, value).choices:
                for path in (
                    *(p for p, _ in choice.changes),
                    *(p for p, _ in choice.tune),
                ):
                    # An axis may change a part of a record that is set as a whole.
                    if keys[: len(path)] == path:
                        raise ConfigError(
                            f"sweep: --set {text!r}: axis {name} sets "
                            f"{'.'.join(path)} in every cell: use --axis or --only"
                        )


def _listed(text: str) -> tuple[str, Any]:
    """Returns the name and values of an axis that was given as text."""
    name, separator, listed = text.partition("=")
    values, literal = schema.parse_value(listed)
    if not separator or not literal or not isinstance(values, list):
        raise ConfigError(f"sweep: --axis {text!r}: write it as field=[value, value]")
    return name.strip(), values


def _kept(raw: Mapping[str, Any], only: Sequence[str]) -> dict[str, Any]:
    """Returns the axes with the values that were asked for."""
    axes = dict(raw["axes"])
    for text in only:
        name, separator, listed = text.partition("=")
        if not separator or not listed:
            raise ConfigError(f"sweep: --only {text!r}: write it as axis=value,value")
        if name not in axes:
            raise ConfigError(
                f"sweep: --only {text!r}: there is no axis {name!r}; axes: "
                + ", ".join(axes)
            )
        known = [choice.value for choice in _axis(name, axes[name]).choices]
        wanted = _wanted(listed, known)
        if isinstance(wanted, str):
            raise ConfigError(
                f"sweep: --only {text!r}: axis {name} has no value {wanted!r}; "
                f"values: {', '.join(map(str, known))}"
            )
        if isinstance(axes[name], dict):
            axes[name] = {n: v for n, v in axes[name].items() if n in wanted}
        else:
            axes[name] = [v for v in axes[name] if v in wanted]
    return axes


def _wanted(listed: str, known: Sequence[Any]) -> list[Any] | str:
    """Returns the values that a list names, or what of it names none.

    Values may hold commas themselves: the longest name that fits is taken.
    """
    parts, wanted = [part.strip() for part in listed.split(",")], []
    while parts:
        for count in range(len(parts), 0, -1):
            text = ", ".join(parts[:count])
            number = schema.parse_value(text)[0]
            found = [
                value
                for value in known
                if str(value) == text
                or (not isinstance(number, str) and value == number)
            ]
            if found:
                wanted.append(found[0])
                parts = parts[count:]
                break
        else:
            return parts[0]
    return wanted


def _axis(name: str, value: Any) -> Axis:
    match value:
        case list() if value:
            keys = tuple(schema.parse_path(name))
            for one in value:
                if isinstance(one, dict | list):
                    raise ConfigError(
                        f"sweep: axes.{name}: {one!r}: give it a name: "
                        f"[axes.{name}.NAME] with the fields that it sets"
                    )
            kinds = {str if isinstance(one, str) else type(one) for one in value}
            if len(kinds - {int, float}) + bool(kinds & {int, float}) > 1:
                raise ConfigError(
                    f"sweep: axes.{name}: {value}: numbers and words in one list: give "
                    f"the values names, [axes.NAME.VALUE] with {name} in each"
                )
            choices = tuple(Choice(one, ((keys, one),)) for one in value)
        case dict() if value:
            choices = tuple(_named(name, n, fields) for n, fields in value.items())
        case _:
            raise ConfigError(
                f"sweep: axes.{name}: {value!r}: a list of values, or a table of named "
                "values, is needed"
            )
    seen = [str(choice.value) for choice in choices]
    for one in seen:
        if seen.count(one) > 1:
            raise ConfigError(f"sweep: axes.{name}: {one} occurs twice")
    return Axis(name, choices)


def _named(axis: str, name: str, fields: Any) -> Choice:
    where = f"sweep: axes.{axis}.{name}"
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: {fields!r}: a table of fields is needed")
    fields = dict(fields)
    tune = fields.pop("tune", {})
    if not isinstance(tune, dict) or not all(
        isinstance(v, list) and v for v in tune.values()
    ):
        raise ConfigError(f'{where}: tune: write it as {{ "path.to.field" = [...] }}')
    for path, values in tune.items():
        texts = [str(value) for value in values]
        for one in texts:
            if texts.count(one) > 1:
                raise ConfigError(f"{where}: tune: {path}: {one} occurs twice")
    tried = tuple(
        (tuple(schema.parse_path(path)), tuple(values)) for path, values in tune.items()
    )
    clean = fields.pop("clean", False)
    if not isinstance(clean, bool):
        raise ConfigError(f"{where}: clean: {clean!r}: true or false is needed")
    return Choice(name, tuple(_flat(fields)), tried, clean)


def _flat(fields: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Change]:
    """Yields paths and values; a table without a kind is one of further fields."""
    for name, value in fields.items():
        keys = (*path, *(schema.parse_path(name) if "." in name else [name]))
        if isinstance(value, dict) and "kind" not in value and value:
            yield from _flat(value, keys)
        else:
            yield keys, value


# Columns of the tables of results, beside those that begin like a metric's.
RESERVED = frozenset(
    {
        "attack_success",
        "clients",
        "column",
        "malicious_clients",
        "reason",
        "round",
        "row",
        "selected",
        "status",
        "train_loss",
        "tuned",
    }
)
PREFIXES = ("attack_", "best_", "final_", "mean_", "oracle_", "test_", "validation_")


def _check_axes(axes: Sequence[Axis]):
    """Refuses axes that undo each other, or whose names results have for themselves."""
    for axis in axes:
        if axis.name in RESERVED or axis.name.startswith(PREFIXES):
            raise ConfigError(
                f"sweep: axes.{axis.name}: the tables of results have a column of that "
                "name: give the axis another one, with named values"
            )
    taken: dict[tuple[str, ...], str] = {}
    for axis in axes:
        for path in {
            path
            for choice in axis.choices
            for path in (*(p for p, _ in choice.changes), *(p for p, _ in choice.tune))
        }:
            for other, owner in taken.items():
                short = min(len(path), len(other))
                if owner != axis.name and path[:short] == other[:short]:
                    raise ConfigError(
                        f"sweep: axes.{axis.name}: sets {'.'.join(path)}, which "
                        f"axes.{owner} sets too: one would undo the other"
                    )
            taken[path] = axis.name


def _report(raw: Any, axes: Sequence[Axis]) -> ReportSettings:
    try:
        report = msgspec.convert(raw, ReportSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"sweep: report: {error}") from None
    names = [axis.name for axis in axes]
    taken: dict[str, str] = {}
    for role in ("rows", "columns", "worst", "repeats"):
        named = getattr(report, role)
        if named not in names:
            if isinstance(raw, dict) and role in raw:
                raise ConfigError(
                    f"sweep: report.{role}: there is no axis {named!r}; axes: "
                    + ", ".join(names)
                )
            continue
        if named in taken:
            raise ConfigError(
                f"sweep: report.{role}: axis {named!r} is report.{taken[named]} "
                "already: name another axis for one of them"
            )
        taken[named] = role
    for axis in axes:
        if taken.get(axis.name) in ("worst", "repeats") and any(
            choice.tune for choice in axis.choices
        ):
            raise ConfigError(
                f"sweep: axes.{axis.name}: tune: validation chooses among settings of "
                f"candidates, and this axis is report.{taken[axis.name]}: name one "
                "value for each setting"
            )
    return report


def _check_values(base: dict[str, Any], axes: Sequence[Axis]):
    """Tries every value once, so that an error names the value that it comes from."""
    first = tuple(change for axis in axes for change in axis.choices[0].changes)
    _complete(base, first, "sweep: the first value of every axis")
    for place, axis in enumerate(axes):
        for choice in axis.choices[1:]:
            changes = tuple(
                change
                for number, other in enumerate(axes)
                for change in (
                    choice.changes if number == place else other.choices[0].changes
                )
            )
            _complete(base, changes, f"sweep: axes.{axis.name}: {choice.value}")


def _complete(base: dict[str, Any], changes: Sequence[Change], where: str) -> Config:
    try:
        return complete(change(base, changes))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _cells(base: dict[str, Any], axes: Sequence[Axis]) -> Iterator[Cell]:
    for chosen in itertools.product(*(axis.choices for axis in axes)):
        values = {
            axis.name: choice.value for axis, choice in zip(axes, chosen, strict=True)
        }
        where = "sweep: " + ", ".join(f"{n}={v}" for n, v in values.items())
        changes = [change for choice in chosen for change in choice.changes]
        tried = [
            [(path, value) for value in tries]
            for choice in chosen
            for path, tries in choice.tune
        ]
        for variant in itertools.product(*tried):
            config = _complete(base, [*changes, *variant], where)
            if any(choice.clean for choice in chosen):
                config = _clean(config, where)
            config = _quiet(config)
            tuned = {".".join(path): str(value) for path, value in variant}
            yield Cell(values, tuned, config, config_hash(config)[:16])


def _clean(config: Config, where: str) -> Config:
    """Returns the configuration with nobody malicious and the same assumptions."""
    share = config.malicious
    if isinstance(share, tuple):
        raise ConfigError(
            f"{where}: malicious: {list(share)}: a clean value needs a share of the "
            "clients, such as 0.2, so that rules assume as many as before"
        )
    assumed = config.assumed_malicious
    return msgspec.structs.replace(
        config, malicious=0.0, assumed_malicious=share if assumed is None else assumed
    )


def _quiet(config: Config) -> Config:
    """Returns the configuration without attacks where nobody carries them out."""
    if config.malicious:
        return config
    return msgspec.structs.replace(
        config,
        attack=None,
        data_attack=None,
        attackers=Attackers(),
        assumed_malicious=config.assumed_malicious or 0.0,
    )
