"""Four virtual CPU devices, so that every test can spread clients over 1, 2 or 4."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the public data sets; the test is skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("FEDJAX_HEALTH_DATA", default))
    if not root.is_dir():
        pytest.skip(
            f"public data sets not found in {root}: set FEDJAX_HEALTH_DATA to a folder "
            "that holds them"
        )
    return root


@pytest.fixture(scope="session")
def meshes() -> dict[int, jax.sharding.Mesh]:
    """Meshes of 1, 2 and 4 devices."""
    return {n: jax.sharding.Mesh(jax.devices()[:n], ("clients",)) for n in (1, 2, 4)}


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Forgets compiled programs before the system runs out of places for them.

    Each takes a dozen memory mappings, of which Linux grants a process 65,530; beyond
    them the compiler crashes.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 35_000:
        jax.clear_caches()
