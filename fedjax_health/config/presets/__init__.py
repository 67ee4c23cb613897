"""Ready configurations, one TOML file each; its first comment line says what it is."""

import difflib
from importlib import resources

from fedjax_health.config.common import ConfigError


def preset_names() -> tuple[str, ...]:
    """Returns the names of all presets, in alphabetical order."""
    folder = resources.files(__name__)
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(n.removesuffix(".toml") for n in names if n.endswith(".toml")))


def preset_text(name: str) -> str:
    """Returns the TOML text of a preset.

    Args:
      name: one of ``preset_names()``.

    Raises:
      ConfigError: with the valid names.
    """
    if name not in preset_names():
        raise ConfigError(unknown_preset(name))
    return resources.files(__name__).joinpath(f"{name}.toml").read_text("utf-8")


def preset_summary(name: str) -> str:
    """Returns the first comment line of a preset.

    Args:
      name: one of ``preset_names()``.
    """
    return preset_text(name).partition("\n")[0].lstrip("# ").strip()


def unknown_preset(name: str) -> str:
    """Returns the message for a name that is no preset.

    Args:
      name: what was asked for.
    """
    names = preset_names()
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return (
        f"config: no preset {name!r}{hint}; presets: {', '.join(names)}; "
        "a file is named with its ending .toml"
    )
