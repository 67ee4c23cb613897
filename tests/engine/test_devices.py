"""Asking for CPU devices, each case in a fresh process; what the machine offers."""

import builtins
import os
import subprocess
import sys

import jax
import pytest

from fedjax_health.engine import devices


def python(code):
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }
    environment["JAX_PLATFORMS"] = "cpu"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )


def test_devices_are_there_when_asked_for_in_time():
    done = python(
        "import jax\n"
        "from fedjax_health import use_cpu_devices\n"
        "print(use_cpu_devices(3), len(jax.devices()), use_cpu_devices(3))"
    )
    assert done.stdout.split() == ["3", "3", "3"], done.stderr


def test_too_late_is_said_with_what_to_do():
    done = python(
        "import jax\n"
        "from fedjax_health import use_cpu_devices\n"
        "have = len(jax.devices())\n"
        "print(use_cpu_devices(have) == have)\n"
        "use_cpu_devices(have + 1)"
    )
    assert done.returncode != 0
    assert done.stdout.split() == ["True"]
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("RuntimeError: jax has started with 1 CPU device(s)")
    assert "too late for 2" in error
    assert "before the first jax computation" in error


def test_the_default_is_a_device_per_core():
    done = python(
        "import jax\n"
        "from fedjax_health.engine.devices import available_cores, use_cpu_devices\n"
        "count = use_cpu_devices()\n"
        "print(count == len(jax.devices()) == min(available_cores(), 8))"
    )
    assert done.stdout.split() == ["True"], done.stderr


def test_this_process_has_started():
    assert len(jax.devices()) == 4
    assert devices.use_cpu_devices(4) == 4
    with pytest.raises(RuntimeError, match=r"4 CPU device\(s\), too late for 5"):
        devices.use_cpu_devices(5)


@pytest.mark.parametrize("count", [0, -2])
def test_no_devices_are_refused(count):
    with pytest.raises(ValueError, match=f"1 or more, not {count}"):
        devices.use_cpu_devices(count)


def test_cores_are_those_of_this_process(monkeypatch):
    assert 1 <= devices.available_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 9}, raising=False)
    assert devices.available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert devices.available_cores() == 1


def test_memory_is_read_in_bytes(monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16 kB\nMemAvailable:    1234 kB\n", "ascii")
    redirect(monkeypatch, {"/proc/meminfo": meminfo})
    assert devices.available_memory() == 1234 * 1024


def redirect(monkeypatch, files):
    """Opens the files named, and no other."""
    real = builtins.open

    def opened(path, **kwargs):
        if path not in files:
            raise FileNotFoundError(path)
        return real(files[path], **kwargs)

    monkeypatch.setattr(builtins, "open", opened)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("1000000", 1_000_000 - 600_000 + 50_000), ("max", 1234 * 1024), ("9" * 18, None)],
)
@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_that_of_the_control_group(
    monkeypatch, tmp_path, limit, expected, version
):
    names = {
        2: ("memory.max", "memory.current", "memory.stat"),
        1: (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
        ),
    }[version]
    cache = "inactive_file" if version == 2 else "total_inactive_file"
    texts = (limit, "600000", f"anon 7\n{cache} 50000")
    files = {"/proc/meminfo": tmp_path / "meminfo"}
    files["/proc/meminfo"].write_text("MemAvailable:    1234 kB\n", "ascii")
    for number, (name, text) in enumerate(zip(names, texts, strict=True)):
        files[f"/sys/fs/cgroup/{name}"] = tmp_path / str(number)
        (tmp_path / str(number)).write_text(text + "\n", "ascii")
    redirect(monkeypatch, files)
    assert devices.available_memory() == (expected or 1234 * 1024)


def test_memory_without_proc_is_asked_of_the_system(monkeypatch):
    def missing(path, **kwargs):
        raise FileNotFoundError(path)

    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(builtins, "open", missing)
    pages = {"SC_AVPHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert devices.available_memory() == 40_960
    monkeypatch.setattr(os, "sysconf", unknown)
    assert devices.available_memory() is None
