"""Walks raw TOML beside the types of the records.

msgspec checks types and ranges. It names neither valid fields nor near misses and
accepts infinities, so a walk over ``msgspec.inspect`` comes first: it refuses those,
and fills in the kind of a record that does not say its own.
"""

import datetime
import difflib
import math
import tomllib
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect as types

from fedjax_health.config.common import ConfigError

MISSING = object()
# The greatest float32: beyond it a number would train as infinity.
GREATEST = (2 - 2.0**-23) * 2.0**127


def normalise(raw: Any, schema: types.Type, path: str, default: Any = None) -> Any:
    """Checks names and numbers of a raw tree and completes its kinds.

    Args:
      raw: a value as TOML gives it.
      schema: the type it is read as.
      path: where it stands; "" at the top.
      default: the value of the field where the tree says nothing.

    Returns:
      The tree with the kind of every record in it.

    Raises:
      ConfigError: for an unknown field, kind or choice, or a number that is not finite.
    """
    records = _records(schema)
    if records and isinstance(raw, str) and not _is(schema, types.StrType):
        raw = {"kind": raw}
    if records and isinstance(raw, dict):
        record = _record_of(raw, records, path, default)
        known = {field.name: field for field in record.fields}
        for name in raw:
            if name not in known and (name != "kind" or record.tag is None):
                _refuse_field(_join(path, name), name, known, record.tag)
        out: dict[str, Any] = {} if record.tag is None else {"kind": record.tag}
        for name, value in raw.items():
            if name in known:
                field = known[name]
                where = _join(path, name)
                out[name] = normalise(value, field.type, where, default_of(field))
        return out
    for option in _options(schema):
        if isinstance(option, types.VarTupleType) and isinstance(raw, list | tuple):
            return [
                normalise(item, option.item_type, _join(path, str(index)))
                for index, item in enumerate(raw)
            ]
        if isinstance(option, types.DictType) and isinstance(raw, dict):
            return {
                name: normalise(item, option.value_type, _join(path, str(name)))
                for name, item in raw.items()
            }
        if isinstance(option, types.LiteralType) and isinstance(raw, str):
            if raw not in option.values and not _is(schema, types.StrType):
                raise ConfigError(
                    f"config: {path}: {raw!r} is none of its choices"
                    f"{_near(raw, option.values)}; valid: {_names(option.values)}"
                )
            return raw
    _refuse_unsafe(raw, path)
    if _is(schema, types.FloatType) and isinstance(raw, float) and abs(raw) > GREATEST:
        raise ConfigError(f"config: {path}: {raw} is too large for a 32-bit float")
    return raw


class Given(NamedTuple):
    """A value as TOML gives it, where another would be read from text."""

    value: Any


def assign(
    raw: Any,
    keys: list[str],
    new: str | Given,
    schema: types.Type,
    path: str,
    default: Any,
) -> Any:
    """Sets one value inside a raw tree by its path.

    Args:
      raw: the tree, or ``MISSING`` where the parent does not mention it.
      keys: the rest of the path.
      new: the value, as text (a TOML literal or a plain string) or as it is given.
      schema: the type of the tree.
      path: the path so far; "" at the top.
      default: the value of the field where the tree says nothing.

    Returns:
      The new tree; ``MISSING`` where the value was taken away.

    Raises:
      ConfigError: for a path that does not exist.
    """
    records = _records(schema)
    if not keys:
        text = new.strip() if isinstance(new, str) else new.value
        if isinstance(text, str) and _is_choice(schema, text):
            # A choice may look like a literal of another type, as "nan" does.
            return text
        if text == "none" and _is(schema, types.NoneType):
            return MISSING
        value = parse_value(new)[0] if isinstance(new, str) else new.value
        return normalise(value, schema, path, default)
    key, *rest = keys
    where = _join(path, key)
    if isinstance(raw, str) and records:
        raw = {"kind": raw}
    if records:
        if raw is not MISSING and not isinstance(raw, dict):
            raise ConfigError(f"config: {path}: {raw!r}: expected a table")
        tree: dict[str, Any] = dict(raw) if isinstance(raw, dict) else {}
        record = _record_of(tree, records, path, default)
        if record.tag is not None:
            tree["kind"] = record.tag
        known = {field.name: field for field in record.fields}
        if key == "kind" and record.tag is not None and not rest:
            return assign(raw, [], new, schema, path, default)
        if key not in known:
            _refuse_field(where, key, known, record.tag)
        field = known[key]
        child = tree.get(key, MISSING)
        made = assign(child, rest, new, field.type, where, default_of(field))
        if made is MISSING:
            tree.pop(key, None)
        else:
            tree[key] = made
        return tree
    if raw is MISSING:
        raw = msgspec.to_builtins(default)
    option = next(
        (o for o in _options(schema) if isinstance(o, types.VarTupleType)), None
    )
    if option is not None and isinstance(raw, list | tuple | float | int | None):
        items = list(raw) if isinstance(raw, list | tuple) else []
        index = _index(key, len(items), path)
        child = items[index] if index < len(items) else MISSING
        # A new item of a slot starts as the kind it is given, so a nested path into
        # an item that does not exist has nothing to hold on to.
        if child is MISSING and rest:
            raise ConfigError(
                f"config: {where}: there is no such item yet: first --set {where}=..."
            )
        made = assign(child, rest, new, option.item_type, where, None)
        return [*items[:index], made, *items[index + 1 :]]
    free = next((o for o in _options(schema) if isinstance(o, types.DictType)), None)
    if free is not None or _is(schema, types.AnyType):
        inner = types.AnyType() if free is None else free.value_type
        tree = dict(raw) if isinstance(raw, dict) else {}
        if isinstance(raw, list):
            index = _index(key, len(raw), path)
            child = raw[index] if index < len(raw) else MISSING
            made = assign(child, rest, new, inner, where, None)
            return [*raw[:index], made, *raw[index + 1 :]]
        tree[key] = assign(tree.get(key, MISSING), rest, new, inner, where, None)
        return tree
    raise ConfigError(f"config: {where}: {path} is a single value and has no fields")


def parse_value(text: str) -> tuple[Any, bool]:
    """Reads a value as a TOML literal, or else as a plain string.

    Args:
      text: the value as it was typed.

    Returns:
      The value, and whether it was a literal.
    """
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text, False
    value = read["value"]
    dated = isinstance(value, datetime.date | datetime.time)
    return (text, False) if set(read) != {"value"} or dated else (value, True)


def parse_path(text: str) -> list[str]:
    """Reads a dotted path with TOML's rules for quoting.

    Args:
      text: such as ``data.modalities."my flow".0``.

    Returns:
      Its parts.

    Raises:
      ConfigError: if it is not a dotted path.
    """
    try:
        tree = tomllib.loads(f"{text} = 0") if "\n" not in text else {}
    except tomllib.TOMLDecodeError:
        tree = {}
    keys: list[str] = []
    while isinstance(tree, dict) and len(tree) == 1:
        ((key, tree),) = tree.items()
        keys.append(key)
    if not keys or tree != 0:
        raise ConfigError(f"config: --set {text!r}: not a path such as local.epochs")
    return keys


def default_of(field: types.Field) -> Any:
    """Returns the value that a field has where nothing is said, None without one."""
    if field.default is not msgspec.NODEFAULT:
        return field.default
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return None


def _options(schema: types.Type) -> tuple[types.Type, ...]:
    return schema.types if isinstance(schema, types.UnionType) else (schema,)


def _records(schema: types.Type) -> tuple[types.StructType, ...]:
    return tuple(o for o in _options(schema) if isinstance(o, types.StructType))


def _is_choice(schema: types.Type, text: str) -> bool:
    options = _options(schema)
    return any(isinstance(o, types.LiteralType) and text in o.values for o in options)


def _is(schema: types.Type, kind: type) -> bool:
    return any(isinstance(option, kind) for option in _options(schema))


def _record_of(
    raw: dict[str, Any],
    records: tuple[types.StructType, ...],
    path: str,
    default: Any,
) -> types.StructType:
    """Returns the record that a table stands for."""
    if records[0].tag is None:
        return records[0]
    kinds = [str(record.tag) for record in records]
    kind = raw.get("kind", MISSING)
    if kind is MISSING:
        if default is None:
            default = next(
                (r.cls() for r in records if getattr(r.cls, "assumed", False)), None
            )
        if default is None:
            raise ConfigError(
                f"config: {path}: say which kind; valid: {_names(kinds)} "
                f"(--set {path}={kinds[0]})"
            )
        kind = type(default).__struct_config__.tag
    if kind not in kinds:
        raise ConfigError(
            f"config: {path}: unknown kind {kind!r}{_near(kind, kinds)}; "
            f"valid: {_names(kinds)}"
        )
    return records[kinds.index(kind)]


def _refuse_field(where: str, name: str, known: Iterable[str], tag: Any):
    known = list(known)
    owner = f" of {tag}" if tag is not None else ""
    raise ConfigError(
        f"config: {where}: no such field{owner}{_near(name, known)}; "
        f"valid: {_names(known) or 'none'}"
    )


def _refuse_unsafe(raw: Any, path: str):
    if isinstance(raw, float) and not math.isfinite(raw):
        raise ConfigError(f"config: {path}: {raw} is not a finite number")
    if isinstance(raw, datetime.date | datetime.time):
        raise ConfigError(f"config: {path}: {raw} is a date: write it as text, quoted")
    if isinstance(raw, dict):
        for name, value in raw.items():
            _refuse_unsafe(value, _join(path, str(name)))
    elif isinstance(raw, list | tuple):
        for index, value in enumerate(raw):
            _refuse_unsafe(value, _join(path, str(index)))


def _index(key: str, size: int, path: str) -> int:
    if not key.isascii() or not key.isdigit() or int(key) > size:
        raise ConfigError(
            f"config: {path}.{key}: {path} is a list of {size}: use an index from 0 to "
            f"{size} ({size} appends)"
        )
    return int(key)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _names(names: Iterable[Any]) -> str:
    return ", ".join(str(name) for name in names)


def _near(name: Any, names: Iterable[Any]) -> str:
    close = difflib.get_close_matches(str(name), [str(n) for n in names], 1)
    return f"; did you mean {close[0]}?" if close else ""
