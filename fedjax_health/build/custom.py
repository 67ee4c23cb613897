"""Entries of a configuration that name a function of the user."""

from typing import Any

from fedjax_health.config import ConfigError, Custom, call_custom


def optional_entry(entry: Custom | None, kind: type, *, path: str) -> Any:
    """Calls a custom entry of a slot that may be empty."""
    return None if entry is None else custom_entry(entry, kind, path=path)


def custom_entry(entry: Custom, kind: type, *arguments: Any, path: str) -> Any:
    """Calls a custom entry and refuses what does not fit its slot."""
    value = call_custom(entry, *arguments, path=path)
    if not isinstance(value, kind):
        raise misfit(entry, value, kind.__name__, path=path)
    return value


def misfit(entry: Custom, value: Any, kind: str, *, path: str) -> ConfigError:
    """Returns the error for a custom entry that returned the wrong thing."""
    return ConfigError(
        f"config: {path}.target: {entry.target} returned {type(value).__name__}, but "
        f"this slot takes a {kind}"
    )
