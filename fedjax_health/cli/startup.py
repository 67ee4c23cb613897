"""What has to happen before jax starts: host devices and the compilation cache."""

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "FEDJAX_HEALTH_CACHE"


def prepare_jax(
    *, devices: int | None, cache_dir: str | None = None, no_cache: bool = False
):
    """Asks for host devices and turns the persistent compilation cache on.

    Args:
      devices: CPU devices; None for one per core, at most 8.
      cache_dir: folder of the cache; see ``cache_folder``.
      no_cache: leave the cache alone.
    """
    from fedjax_health.engine.devices import enable_cache, use_cpu_devices

    use_cpu_devices(devices)
    cache = prepare_cache(cache_dir, no_cache=no_cache)
    if cache is not None:
        enable_cache(cache)


def prepare_cache(cache_dir: str | None, *, no_cache: bool) -> str | None:
    """Returns the folder of compiled programs, created where absent.

    A folder that cannot be written is only a warning.

    Args:
      cache_dir: folder of the cache; see ``cache_folder``.
      no_cache: leave the cache alone.

    Returns:
      None for no cache, or for jax's own setting.
    """
    folder = None if no_cache else cache_folder(cache_dir)
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"fedjax-health: no compilation cache: {folder}: {error.strerror}",
            file=sys.stderr,
        )
        return None
    return str(folder)


def cache_folder(cache_dir: str | None = None) -> Path | None:
    """Returns where compiled programs are kept, or None where jax knows it already.

    Args:
      cache_dir: what the user asked for; else ``FEDJAX_HEALTH_CACHE``, else jax's own
        ``JAX_COMPILATION_CACHE_DIR``, else the user's cache folder.
    """
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "fedjax-health" / "xla"
