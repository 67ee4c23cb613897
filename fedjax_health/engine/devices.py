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
    """Returns the bytes of memory that can still be used, or None if unknown."""
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
