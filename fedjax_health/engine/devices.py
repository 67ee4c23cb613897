"""Host devices: on CPU, XLA runs one program per device, so one device per core."""

import os


def use_cpu_devices(count: int | None = None) -> int:
    """Asks XLA for several CPU devices, over which the engine spreads clients.

    Call it before jax computes anything; importing jax is not too late.

    Args:
      count: devices; None for one per core that this process may use, at most 8.

    Returns:
      The number of devices asked for.

    Raises:
      ValueError: if ``count`` is not a positive number.
      RuntimeError: if jax has started already and has another number of devices.
    """
    if count is None:
        count = min(available_cores(), 8)
    if count < 1:
        raise ValueError(f"the number of CPU devices must be 1 or more, not {count}")
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        have = len(jax.devices("cpu"))
        if have != count:
            raise RuntimeError(
                f"jax has started with {have} CPU device(s), too late for {count}: "
                "call fedjax_health.use_cpu_devices() before the first jax computation"
            ) from None
    return count


def available_cores() -> int:
    """Returns how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Returns the bytes of memory that can still be used, or None if unknown.

    That is what the system has free, or what the control group of this process (a
    container, a job) may still take, whichever is less.
    """
    known = [_system_memory(), *(_group_memory(*files) for files in _GROUP_FILES)]
    return min((n for n in known if n is not None), default=None)


# Limit, use and statistics of a control group, versions 2 and 1, and the entry of the
# statistics that can be given back at once.
_GROUP_FILES = (
    (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.current",
        "/sys/fs/cgroup/memory.stat",
        "inactive_file",
    ),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def _group_memory(limit: str, used: str, statistics: str, cache: str) -> int | None:
    try:
        # "max" stands for no limit.
        free = int(_text(limit)) - int(_text(used))
    except (OSError, ValueError):
        return None
    try:
        lines = dict(line.split() for line in _text(statistics).splitlines())
        free += int(lines.get(cache, 0))
    except (OSError, ValueError):
        pass
    return max(free, 0)


def _text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _system_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def enable_cache(folder: str) -> None:
    """Points jax at an existing folder of compiled programs.

    Args:
      folder: where they are kept between processes.
    """
    import jax

    jax.config.update("jax_compilation_cache_dir", folder)
    # The default of one second leaves out programs that add up to several seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
