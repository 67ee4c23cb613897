"""Finds and calls the function that a ``Custom`` record names."""

import difflib
import importlib
import re
from collections.abc import Callable
from typing import Any

from fedjax_health.config.common import ConfigError, Custom

TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def check_target(target: str, path: str):
    """Refuses what is not ``package.module:function``.

    Args:
      target: the text to check.
      path: path of its slot, for the message.

    Raises:
      ConfigError: naming the form that is expected.
    """
    if not TARGET.fullmatch(target):
        raise ConfigError(
            f"config: {path}.target: {target!r}: write it as package.module:function"
        )


def import_target(target: str, *, path: str = "custom") -> Callable[..., Any]:
    """Imports a function by name.

    Args:
      target: ``package.module:function``.
      path: path of the slot, for the message.

    Returns:
      The function.

    Raises:
      ConfigError: if there is no such module or no such function in it.
    """
    check_target(target, path)
    module_name, name = target.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"config: {path}.target: no module {error.name!r}: install its package, or "
            "put the folder that holds it on PYTHONPATH"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        near = difflib.get_close_matches(name, dir(module), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"config: {path}.target: {module_name} has no function {name!r}{hint}"
        )
    return function


def call_custom(custom: Custom, *arguments: Any, path: str = "custom") -> Any:
    """Calls the function of a record.

    Args:
      custom: the record; its args are passed as keywords.
      *arguments: what the slot passes before them.
      path: path of the slot, for the message.

    Returns:
      What the function returns.

    Raises:
      ConfigError: if the function cannot be found, does not take these arguments or
        refuses them with a ValueError.
    """
    function = import_target(custom.target, path=path)
    try:
        return function(*arguments, **custom.args)
    except TypeError as error:
        # A TypeError from inside the function is its own; only a call that never
        # entered it is a matter of the configuration.
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise ConfigError(f"config: {path}.args: {error}") from error
        raise
    except ValueError as error:
        # Errors of this package are ValueErrors too, and say where they come from.
        if type(error) is not ValueError:
            raise
        raise ConfigError(f"config: {path}: {custom.target}: {error}") from error
