"""Ready configurations and sweeps, one TOML file each.

The first comment line of a file says what it is.
"""

import difflib
from importlib import resources
from importlib.resources.abc import Traversable

from fedjax_health.config.common import ConfigError


def preset_names() -> tuple[str, ...]:
    """Returns the names of all configurations, in alphabetical order."""
    return _names(resources.files(__name__))


def sweep_names() -> tuple[str, ...]:
    """Returns the names of all sweeps, in alphabetical order."""
    return _names(resources.files(__name__).joinpath("sweeps"))


def preset_text(name: str) -> str:
    """Returns the TOML text of a preset.

    Args:
      name: one of ``preset_names()`` or ``sweep_names()``.

    Raises:
      ConfigError: with the valid names.
    """
    folder = resources.files(__name__)
    if name in sweep_names():
        folder = folder.joinpath("sweeps")
    elif name not in preset_names():
        raise ConfigError(unknown_preset(name))
    return folder.joinpath(f"{name}.toml").read_text("utf-8")


def preset_summary(name: str) -> str:
    """Returns the first comment line of a preset.

    Args:
      name: one of ``preset_names()`` or ``sweep_names()``.
    """
    return preset_text(name).partition("\n")[0].lstrip("# ").strip()


def unknown_preset(name: str) -> str:
    """Returns the message for a name that is no configuration.

    Args:
      name: what was asked for.
    """
    if name in sweep_names():
        return f"config: {name} is a sweep: fedjax-health sweep --config {name}"
    return f"config: no preset {name!r}{_hint(name, preset_names())}"


def unknown_sweep(name: str) -> str:
    """Returns the message for a name that is no sweep.

    Args:
      name: what was asked for.
    """
    if name in preset_names():
        return (
            f"sweep: {name} is a single run (fedjax-health run --config {name}): name "
            "a sweep, or a file with [axes]"
        )
    return f"sweep: no sweep {name!r}{_hint(name, sweep_names())}"


def _hint(name: str, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    near = f"; did you mean {close[0]}?" if close else ""
    return f"{near}; presets: {', '.join(names)}; a file is named with its ending .toml"


def _names(folder: Traversable) -> tuple[str, ...]:
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(n.removesuffix(".toml") for n in names if n.endswith(".toml")))
