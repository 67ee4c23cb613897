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
    from fedjax_health.engine.devices import use_cpu_devices

    use_cpu_devices(devices)
    if not no_cache:
        enable_cache(cache_folder(cache_dir))


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


def enable_cache(folder: Path | None):
    """Points jax at the cache; a folder that cannot be written is only a warning.

    Args:
      folder: the folder, created where absent; None leaves jax's own setting.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"fedjax-health: no compilation cache: {folder}: {error.strerror}",
            file=sys.stderr,
        )
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The default of one second leaves out programs that add up to several seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
